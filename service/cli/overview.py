"""Plans and ledgers as a person reads them in a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from rich.console import RenderableType
from rich.filesize import decimal
from rich.table import Table

from search_spaces.errors import InvalidInput
from search_spaces.methods import label
from search_spaces.plan import Plan
from search_spaces.scales import SCALES
from search_spaces.study import ResourceSpec
from service.cluster.connection import this_machine
from service.cluster.placement import KINDS, Node, concurrency, of_a_plan
from service.home.layout import Home
from service.home.ledger import STATES, Entry, Ledger
from service.sweep.progress import clock_time


def plan_tables(plan: Plan, home: Home) -> Iterator[RenderableType]:
    """Curves, then the totals with an estimate from speeds measured in this home."""
    study = plan.study
    table = Table("scale", "parameters", "method", "cells", "learning rates", "tokens a cell", title=study.name)
    for curve in plan.curves:
        parameters = SCALES[curve.scale].parameters(study.data.V, tied=study.model.tied)
        lrs = f"{study.lrs[0]:g} .. {study.lrs[-1]:g}"
        name = label(curve.method, curve.gamma, curve.attention_norm)
        tokens = f"{curve.cells[0].tokens:,}"
        table.add_row(curve.scale, f"{parameters:,}", name, str(len(curve.cells)), lrs, tokens)
    yield table
    fits = fits_here(study.resources)
    measured = measured_speeds(home)
    basis = "speeds measured in this home" if measured else "a nominal speed of one core a worker"
    known = len(plan.cells) - len(_missing(plan, home))
    beside = plan.cell_count - len(plan.cells)
    cells = (
        f"at most {plan.cell_count} cells, {beside} of them beside the grid" if beside else f"{len(plan.cells)} cells"
    )
    if size := kept_bytes(plan):
        yield f"keep_weights: {decimal(size)} of weights at most, if every cell is trained here"
    yield (
        f"{cells} ({known} already in the home), {plan.tokens:,} tokens; about "
        f"{clock_time(plan.seconds(measured, fits))} with {fits} cells at once, from {basis}"
    )


def kept_bytes(plan: Plan) -> int:
    """Room that the weights of a study take: float32, a file each time that they are kept."""
    study, keep = plan.study, plan.study.keep_weights
    files = (len(range(keep.every, study.training.steps, keep.every)) if keep.every else 0) + keep.last
    cells = Counter(cell.scale for cell in plan.cells) + Counter(plan.refinement_cells)
    of_cells = (SCALES[scale].parameters(study.data.V, tied=study.model.tied) * n for scale, n in cells.items())
    return 4 * files * sum(of_cells)


def cluster_line(plan: Plan, home: Home, nodes: Sequence[Node], *, grows: bool = False) -> str:
    """What a study would take on these nodes: cells at once, time, and what binds.

    Times are those of training, from speeds measured in this home or a nominal one, were the cells spread evenly.

    Args:
        grows: these are the nodes that are up, of a cluster that starts others for a study with ``autoscale``.

    Raises:
        InvalidInput: not even one cell fits.
    """
    resources = plan.study.resources
    cells, bound = of_a_plan(resources, nodes, plan.cell_count, grows=grows)
    workers, hours = cells * resources.workers, plan.seconds(measured_speeds(home), cells) / 3600
    taken = {"CPU": workers * resources.cpus_per_worker, "GPU": workers * resources.gpus_per_worker}
    parts = [f"{hours * taken['CPU']:,.3g} core-hours"]
    if resources.gpus_per_worker:
        parts.append(f"{hours * taken['GPU']:,.3g} accelerator-hours")
    where = f"a cluster that grows to {has([taken])}" if grows and resources.autoscale else has(nodes)
    return (
        f"on {where}: {cells} cells at once, {workers} workers, bound by {bound}; "
        f"about {clock_time(3600 * hours)}, {', '.join(parts)}"
    )


def has(nodes: Sequence[Node]) -> str:
    """``4 nodes with 64 CPU, 8 GPU``, or what the only node has."""
    totals = {kind: sum(node.get(kind, 0) for node in nodes) for kind in KINDS}
    listed = ", ".join(f"{number:g} {kind}" for kind, number in totals.items() if number)
    return listed if len(nodes) == 1 else f"{len(nodes)} nodes with {listed}"


def fits_here(resources: ResourceSpec) -> int:
    """Cells at once on this machine; for a study that does not fit here, what it asks for, or one."""
    try:
        return concurrency(resources, this_machine())
    except InvalidInput:
        return resources.concurrency or 1


def measured_speeds(home: Home) -> dict[str, float]:
    """Tokens per second of a cell, by scale: the last one measured in this home."""
    return speeds(_entries(home))


def speeds(entries: Iterable[Entry]) -> dict[str, float]:
    """Tokens per second of a cell, by scale: the last one among these."""
    return {entry.cell.scale: float(speed) for entry in entries if (speed := entry.result.get("tokens_per_second"))}


def status_tables(home: Home, study: str | None, cells: bool) -> Iterator[RenderableType]:
    """Cells by state, a line a study; with ``cells`` a line a cell; and every crash with its reason.

    Raises:
        InvalidInput: no such study in the home.
    """
    if study is not None:
        home.require(study)
    ledgers = [Ledger(home.ledger(name), name) for name in ([study] if study else home.known())]
    summary = Table("study", *STATES)
    for ledger in ledgers:
        counts = ledger.counts()
        summary.add_row(ledger.study, *(str(counts[state]) for state in STATES))
    yield summary
    if cells:
        table = Table("cell", "what", "state", "val loss", "train time")
        for ledger in ledgers:
            for entry in ledger.entries.values():
                loss, seconds = entry.result.get("val_loss"), entry.result.get("train_seconds")
                table.add_row(
                    entry.cell.id,
                    entry.cell.label,
                    entry.state,
                    "" if loss is None else f"{loss:.4f}",
                    "" if seconds is None else clock_time(seconds),
                )
        yield table
    for ledger in ledgers:
        for entry in ledger.entries.values():
            if entry.state == "crashed":
                yield f"{entry.cell.id} {entry.cell.label} crashed:\n{entry.result.get('reason', '')}"


def _entries(home: Home) -> Iterator[Entry]:
    for name in home.known():
        yield from Ledger(home.ledger(name), name).entries.values()


def _missing(plan: Plan, home: Home) -> set[str]:
    done = {entry.cell.id for entry in _entries(home) if entry.state in ("finished", "diverged")}
    return {cell.id for cell in plan.cells} - done
