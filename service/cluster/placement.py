"""How many cells of a study run concurrently on a cluster, and which resource or setting limits that.

A worker runs on one node, and its share of an accelerator is on one device. The workers of a cell run on one node where
possible (Ray's ``PACK`` strategy) and on several nodes otherwise, so the slots of all nodes add up. Those of a command
on several nodes run on as many distinct ones (``STRICT_SPREAD``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from search_spaces.errors import InvalidInput
from search_spaces.resources import GPU_UNIT, ResourceSpec
from search_spaces.study import Study

Node = Mapping[str, float]
"""The resources of a node: ``CPU``, ``GPU`` and, where it is known, ``memory`` in bytes, as Ray names them."""

KINDS = ("CPU", "GPU")
TRIAL_MEMORY = 512 * 2**20
"""Bytes that a trial's actor reserves. It reserves no core: the cores are for its workers."""


def parse_nodes(text: str) -> list[Node]:
    """Parse ``CPU=64,GPU=8``, or ``4xCPU=16,GPU=2`` for four nodes: a cluster that does not have to exist.

    Raises:
        InvalidInput: the text has another form.
    """
    part = rf"\s*({'|'.join(KINDS)})\s*=\s*(\d+)\s*"
    match = re.fullmatch(rf"(?:([1-9]\d*)x)?({part}(?:,{part})*)", text)
    if not match:
        remedy = "write CPU=64,GPU=8, 4xCPU=16,GPU=2 for four such nodes, or the address of a Ray cluster, host:6379"
        raise InvalidInput("--cluster", text, "is not a valid description of a cluster", remedy)
    return [{kind: float(number) for kind, number in re.findall(part, match[2])}] * int(match[1] or 1)


def joined_nodes() -> list[Node]:
    """The nodes of the cluster that this process has joined."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Fit:
    """How many cells run concurrently, and what limits that."""

    cells: int
    bound_by: str
    """The resource or setting that allows no more cells."""


def fit(
    resources: ResourceSpec,
    nodes: Sequence[Node],
    *,
    distinct_nodes: bool = False,
    cells: int | None = None,
    can_grow: bool = False,
) -> Fit:
    """Compute how many cells of a study run concurrently on these nodes.

    Args:
        distinct_nodes: every worker of a cell runs on a node of its own.
        cells: the number of cells in the study; default: no limit.
        can_grow: the nodes belong to a real cluster, which starts more of them for a study with ``autoscale``.

    Raises:
        InvalidInput: not even one cell fits; the message shows the arithmetic.
    """
    if can_grow and resources.autoscale:
        assert resources.concurrency is not None, "ResourceSpec requires it"
        limits = {"resources.concurrency": resources.concurrency}
    else:
        spread = {"the number of nodes": _on_distinct_nodes(resources, nodes)} if distinct_nodes else {}
        limits = _limits(resources, nodes) | spread
    if cells is not None:
        limits = {"the number of cells": cells, **limits}
    bound = min(limits, key=lambda name: limits[name])
    return Fit(limits[bound], bound)


def fit_study(study: Study, nodes: Sequence[Node], *, cells: int | None = None, can_grow: bool = False) -> Fit:
    """``fit`` for the worker groups of a study."""
    return fit(study.group_resources, nodes, distinct_nodes=study.distinct_nodes, cells=cells, can_grow=can_grow)


def _limits(resources: ResourceSpec, nodes: Sequence[Node]) -> dict[str, int]:
    """The number of cells that each resource or setting allows."""
    workers = resources.workers
    limits = {kind: sum(slots) // workers for kind, slots in _worker_slots(resources, nodes)}
    limits["the nodes' mix of CPU and GPU"] = sum(workers_on(resources, node) for node in nodes) // workers
    if not min(limits.values()):
        raise _does_not_fit(resources, nodes)
    if all("memory" in node for node in nodes):
        limits["memory"] = sum(int(node["memory"] // TRIAL_MEMORY) for node in nodes)
        if not limits["memory"]:
            has = f"{sum(node['memory'] for node in nodes) / 2**20:.0f} MiB of memory"
            problem = f"cannot hold one trial, which takes {TRIAL_MEMORY >> 20} MiB"
            raise InvalidInput("--address", has, problem, "use larger nodes")
    if resources.concurrency:
        limits["resources.concurrency"] = resources.concurrency
    return limits


def _on_distinct_nodes(resources: ResourceSpec, nodes: Sequence[Node]) -> int:
    """The number of cells whose workers have a node each.

    Raises:
        InvalidInput: there are too few nodes for one, which Ray would wait for without an end.
    """
    number, slots = resources.workers, [workers_on(resources, node) for node in nodes]
    if (found := sum(n > 0 for n in slots)) < number:
        each = f"{resources.cpus_per_worker} CPU and {resources.gpus_per_worker:g} GPU"
        problem = f"needs {number} nodes with {each} each, and there {'is' if found == 1 else 'are'} {found}"
        raise InvalidInput("trainer.nodes", number, problem, "lower it, or use a cluster with more nodes (--address)")
    # Any number of cells fits that leaves no node with more workers than cells (McNaughton's wrap-around rule).
    return max(cells for cells in range(sum(slots) + 1) if sum(min(n, cells) for n in slots) >= cells * number)


def workers_on(resources: ResourceSpec, node: Node) -> int:
    """The number of workers that fit on a node."""
    return min(slots for _, (slots,) in _worker_slots(resources, [node]))


def _worker_slots(resources: ResourceSpec, nodes: Sequence[Node]) -> Iterator[tuple[str, list[int]]]:
    """Each kind of resource that a worker takes, with the number of workers that it allows on each node."""
    yield "CPU", [int(node.get("CPU", 0) // resources.cpus_per_worker) for node in nodes]
    if units := round(resources.gpus_per_worker / GPU_UNIT):
        per_device = round(1 / GPU_UNIT)
        devices = [int(node.get("GPU", 0)) for node in nodes]
        whole, workers_per_device = -(-units // per_device), per_device // units
        yield "GPU", [n * workers_per_device if units <= per_device else n // whole for n in devices]


def _does_not_fit(resources: ResourceSpec, nodes: Sequence[Node]) -> InvalidInput:
    """Explain why not even one cell fits: the cluster has too little of one resource, or its nodes are too small."""
    workers = resources.workers
    for kind, each in (("CPU", resources.cpus_per_worker), ("GPU", resources.gpus_per_worker)):
        total, need = sum(int(node.get(kind, 0)) for node in nodes), workers * each
        if each and need > total:
            problem = f"the cluster can run: {workers} workers x {each:g} {kind} = {need:g} {kind}, of {total}"
            most = int(total // each)
            remedy = f"use a cluster with {kind}s, or set resources.autoscale for one that starts nodes"
            break
    else:
        takes = f"{resources.cpus_per_worker} CPU"
        takes += f" and {resources.gpus_per_worker:g} GPU" if resources.gpus_per_worker else ""
        most = sum(workers_on(resources, node) for node in nodes)
        problem = f"the nodes can run: each worker takes {takes} on one node, and the nodes have room for {most}"
        remedy = "use larger nodes, or fewer resources per worker"
    remedy = f"use at most {most} workers" if most else remedy
    return InvalidInput("resources.workers", workers, f"is more than {problem}", remedy)
