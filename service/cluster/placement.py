"""How many cells of a study a cluster holds at once, node by node, and what keeps it from being more.

A worker lies on one node, and a share of an accelerator on one device. The workers of a cell lie on one node where that
is possible (Ray's strategy ``PACK``) and on several where it is not, so that all places of a cluster count.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from search_spaces.errors import InvalidInput
from search_spaces.study import GPU_UNIT, ResourceSpec

Node = Mapping[str, float]
"""What a node has: ``CPU``, ``GPU`` and, where it is known, ``memory`` in bytes, as Ray names them."""

KINDS = ("CPU", "GPU")
DECLARED = re.compile(r"(?:(?P<nodes>[1-9]\d*)x)?(?P<each>.+)", re.DOTALL)
TRIAL_MEMORY = 512 * 2**20
"""Bytes declared for a trial's actor. It asks for no core: those are its workers'."""


def declared(text: str) -> list[Node]:
    """``CPU=64,GPU=8``, or ``4xCPU=16,GPU=2``, as the nodes of a cluster that need not be there.

    Raises:
        InvalidInput: anything else.
    """
    form = DECLARED.fullmatch(text)
    found = {}
    for part in form["each"].split(",") if form else [""]:
        kind, _, number = part.partition("=")
        if kind.strip() not in KINDS or not number.strip().isdecimal():
            remedy = (
                "write CPU=64,GPU=8, 4xCPU=16,GPU=2 for four such nodes, or the address of a Ray cluster, host:6379"
            )
            raise InvalidInput("--cluster", text, "is no cluster", remedy)
        found[kind.strip()] = float(number)
    return [found] * int(form["nodes"] or 1) if form else []


def joined_nodes() -> list[Node]:
    """The nodes of the cluster that this process has joined."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Fit:
    """How many cells run concurrently, and why not more."""

    cells: int
    bound_by: str
    """The resource or setting that keeps it from being more."""


def fit(resources: ResourceSpec, nodes: Sequence[Node], *, cells: int | None = None, can_grow: bool = False) -> Fit:
    """How many cells of a study run concurrently on these nodes.

    Args:
        cells: how many the study has; no limit by default.
        can_grow: the nodes are those of a real cluster, which starts more for a study with ``autoscale``.

    Raises:
        InvalidInput: not even one cell fits; the message shows the arithmetic.
    """
    if can_grow and resources.autoscale:
        assert resources.concurrency is not None, "ResourceSpec requires it"
        limits = {"resources.concurrency": resources.concurrency}
    else:
        limits = _limits(resources, nodes)
    if cells is not None:
        limits = {"the number of cells": cells, **limits}
    bound = min(limits, key=lambda name: limits[name])
    return Fit(limits[bound], bound)


def _limits(resources: ResourceSpec, nodes: Sequence[Node]) -> dict[str, int]:
    """Cells that each kind of resource allows."""
    workers = resources.workers
    limits = {kind: sum(places) // workers for kind, places in _places(resources, nodes)}
    limits["the nodes' mix of CPU and GPU"] = sum(places_on(resources, node) for node in nodes) // workers
    if not min(limits.values()):
        raise _none_fits(resources, nodes)
    if all("memory" in node for node in nodes):
        limits["memory"] = sum(int(node["memory"] // TRIAL_MEMORY) for node in nodes)
        if not limits["memory"]:
            has = f"{sum(node['memory'] for node in nodes) / 2**20:.0f} MiB of memory"
            problem = f"cannot hold one trial, which takes {TRIAL_MEMORY >> 20} MiB"
            raise InvalidInput("--address", has, problem, "use larger nodes")
    if resources.concurrency:
        limits["resources.concurrency"] = resources.concurrency
    return limits


def places_on(resources: ResourceSpec, node: Node) -> int:
    """Workers that fit on a node."""
    return min(places for _, (places,) in _places(resources, [node]))


def _places(resources: ResourceSpec, nodes: Sequence[Node]) -> Iterator[tuple[str, list[int]]]:
    """Each kind of resource that a worker takes, and how many workers it is enough for, node by node."""
    yield "CPU", [int(node.get("CPU", 0) // resources.cpus_per_worker) for node in nodes]
    if share := round(resources.gpus_per_worker / GPU_UNIT):
        a_device = round(1 / GPU_UNIT) // share
        yield "GPU", [int(node.get("GPU", 0)) * a_device for node in nodes]


def _none_fits(resources: ResourceSpec, nodes: Sequence[Node]) -> InvalidInput:
    """Why not even one cell fits: a kind of which there is too little, or nodes that are too small."""
    workers = resources.workers
    for kind, each in (("CPU", resources.cpus_per_worker), ("GPU", resources.gpus_per_worker)):
        total, need = sum(int(node.get(kind, 0)) for node in nodes), workers * each
        if each and need > total:
            return InvalidInput(
                "resources.workers",
                workers,
                f"is more than the cluster has: {workers} workers x {each:g} {kind} = {need:g} {kind}, of {total}",
                f"use at most {int(total // each)} workers"
                if total >= each
                else f"use a cluster with {kind}s, or set resources.autoscale for one that starts nodes",
            )
    places = sum(places_on(resources, node) for node in nodes)
    takes = f"{resources.cpus_per_worker} CPU"
    takes += f" and {resources.gpus_per_worker:g} GPU" if resources.gpus_per_worker else ""
    return InvalidInput(
        "resources.workers",
        workers,
        f"is more than the nodes hold: a worker takes {takes} of one node, and of those {places} fit",
        f"use at most {places} workers" if places else "use larger nodes, or less a worker",
    )
