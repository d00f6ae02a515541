"""Training speeds measured in a home."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from service.home.layout import Home
from service.home.ledger import Entry
from service.home.studies import read_ledger, with_ledger


def all_entries(home: Home) -> Iterator[Entry]:
    """The cells of every study of the home. A cell that several studies share occurs several times."""
    for name in with_ledger(home):
        yield from read_ledger(home, name).entries.values()


def measured_speeds(entries: Iterable[Entry]) -> dict[str, float]:
    """The last measured tokens per second of a cell, by scale."""
    return {entry.cell.scale: speed for entry in entries if (speed := entry.result.tokens_per_second)}
