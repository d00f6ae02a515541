"""``oec status``: the progress of the studies of a home."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table

from search_spaces.record import STATES
from service.home.layout import Home
from service.home.studies import read_ledger, require_study, with_ledger
from service.pace import clock_time


def status_tables(home: Home, study: str | None, cells: bool) -> Iterator[RenderableType]:
    """Cells by state, one line per study; with ``cells``, one line per cell; then every crash with its reason.

    Raises:
        InvalidInput: the home has no such study.
    """
    if study is not None:
        require_study(home, study)
    ledgers = [read_ledger(home, name) for name in ([study] if study else with_ledger(home))]
    summary = Table("study", *STATES)
    for ledger in ledgers:
        counts = ledger.counts()
        summary.add_row(ledger.study, *(str(counts[state]) for state in STATES))
    yield summary
    entries = [entry for ledger in ledgers for entry in ledger.entries.values()]
    if cells:
        table = Table("cell", "what", "state", "val loss", "train time")
        for entry in entries:
            loss, seconds = entry.result.val_loss, entry.result.train_seconds
            shown = ("" if loss is None else f"{loss:.4f}", "" if seconds is None else clock_time(seconds))
            table.add_row(entry.id, entry.cell.label, entry.state, *shown)
        yield table
    for entry in entries:
        if entry.state == "crashed":
            yield f"{entry.id} {entry.cell.label} crashed:\n{entry.result.reason}"
