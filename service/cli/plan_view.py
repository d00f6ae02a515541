"""``oec plan``: what a study will train, and what it takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.filesize import decimal
from rich.table import Table

from dashboards.factors import display_names, varied
from search_spaces.errors import InvalidInput
from search_spaces.factors import LR, format_factor, short_name
from search_spaces.methods import label
from search_spaces.plan import Plan
from search_spaces.study import Study
from service.cluster.connection import local_nodes
from service.cluster.placement import KINDS, Node, fit_study
from service.home.ledger import Entry
from service.pace import duration


def plan_tables(plan: Plan, entries: Sequence[Entry], speeds: Mapping[str, float]) -> Iterator[RenderableType]:
    """The curves, then totals with an estimate.

    Args:
        entries: those of every study of the home.
        speeds: measured in the home: tokens per second of a cell, by scale.
    """
    study = plan.study
    axis = "learning rates" if study.lr_factor == LR else short_name(study.lr_factor)
    yield curve_table(plan, axis)
    is_measured = {cell.scale for cell in plan.cells} <= set(speeds)
    basis = "at the speeds measured in this home" if is_measured else "a guess until cells have run in this home"
    done = {entry.id for entry in entries if entry.state in ("finished", "diverged")}
    known = sum(cell.id in done for cell in plan.cells)
    off_grid = plan.cell_count - len(plan.cells)
    cells = (
        f"at most {plan.cell_count} cells, {off_grid} of them off the grid" if off_grid else f"{plan.cell_count} cells"
    )
    if size := kept_bytes(plan):
        yield f"keep_weights: at most {decimal(size)} of weights, if every cell is trained here"
    max_concurrent = concurrent_here(study)
    parallel = f"{max_concurrent} cells in parallel"
    time = f"about {duration(plan.seconds(speeds, max_concurrent))} with {parallel}"
    if study.trainer:
        identity = ", ".join(study.trainer.identity_files()) or "no file"
        about = time if study.trainer.name in speeds else f"{parallel}, for a time unknown until one has run"
        yield f"a cell's id includes the contents of: {identity}"
        yield f"{cells} ({known} already in the home), {about}"
        return
    yield f"{cells} ({known} already in the home), {plan.tokens:,} tokens; {time}, {basis}"


def curve_table(plan: Plan, axis: str) -> Table:
    """A line for each curve of the plan.

    Args:
        axis: heading of the values on the curves' axis.
    """
    study = plan.study
    names = varied(key.factors for key in study.curve_keys)
    about = ("trainer",) if study.trainer else ("scale", "parameters", "method")
    sizes = () if study.trainer else ("tokens per cell",)
    columns = (*about, *display_names(names).values(), "cells", axis, *sizes)
    table = Table(*columns, title=study.name, box=SIMPLE_HEAD, pad_edge=False)
    for curve in plan.curves:
        key = curve.key
        factors = [format_factor(dict(key.factors)[name]) for name in names]
        row = [*factors, str(len(curve.cells)), f"{study.grid[0]:g} .. {study.grid[-1]:g}"]
        if study.trainer:
            table.add_row(curve.scale, *row)
        else:
            name = label(key.method, key.gamma, key.attention_norm)
            table.add_row(curve.scale, f"{curve.cells[0].parameters:,}", name, *row, f"{curve.tokens:,}")
    return table


def kept_bytes(plan: Plan) -> int:
    """Bytes of the weights that a study keeps: float32, one file each time."""
    keep = plan.study.keep_weights
    largest: dict[str, int] = {}
    total = 0
    for cell in plan.cells:
        files = (len(range(keep.every, cell.steps or 0, keep.every)) if keep.every else 0) + keep.last
        size = 4 * files * cell.parameters
        total, largest[cell.scale] = total + size, max(size, largest.get(cell.scale, 0))
    return total + sum(largest[scale] * cells for scale, cells in plan.refinement_cells.items())


def cluster_line(plan: Plan, speeds: Mapping[str, float], nodes: Sequence[Node], *, can_grow: bool = False) -> str:
    """What a study would take on these nodes: cells in parallel, time, and what limits it.

    Times are those of training, from ``speeds`` or a nominal one, if cells were spread evenly.

    Args:
        speeds: as for ``plan_tables``.
        can_grow: the nodes are those of a real cluster, which starts more for a study with ``autoscale``.

    Raises:
        InvalidInput: not even one cell fits.
    """
    resources = plan.study.resources
    found = fit_study(plan.study, nodes, cells=plan.cell_count, can_grow=can_grow)
    workers = found.cells * resources.workers
    hours = plan.seconds(speeds, found.cells) / 3600
    taken = {"CPU": workers * resources.cpus_per_worker, "GPU": workers * resources.gpus_per_worker}
    parts = [f"{hours * taken['CPU']:,.3g} core-hours"]
    if resources.gpus_per_worker:
        parts.append(f"{hours * taken['GPU']:,.3g} GPU-hours")
    grows = can_grow and resources.autoscale
    where = f"a cluster that grows to {describe_nodes([taken])}" if grows else describe_nodes(nodes)
    return (
        f"on {where}: {found.cells} cells in parallel, {workers} workers, limited by {found.bound_by}; "
        f"about {duration(3600 * hours)}, {', '.join(parts)}"
    )


def describe_nodes(nodes: Sequence[Node]) -> str:
    """``4 nodes with 64 CPU, 8 GPU``, or what the only node has."""
    totals = {kind: sum(node.get(kind, 0) for node in nodes) for kind in KINDS}
    listed = ", ".join(f"{number:g} {kind}" for kind, number in totals.items() if number)
    return listed if len(nodes) == 1 else f"{len(nodes)} nodes with {listed}"


def concurrent_here(study: Study) -> int:
    """Cells in parallel on this machine; for a study that does not fit here, what it asks for, or one."""
    try:
        return fit_study(study, local_nodes()).cells
    except InvalidInput:
        return study.resources.concurrency or 1
