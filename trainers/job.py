"""What a worker group is asked to do next, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from search_spaces.cell import AnyCell
from search_spaces.record import CellResult, Row
from trainers.protocol import Checkpoint

Event = Row | CellResult
"""Rows as they are measured; the result comes last."""


def result_in(events: Sequence[Event]) -> CellResult | None:
    """The result among the events; None while the cell still trains."""
    return next((event for event in events if isinstance(event, CellResult)), None)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A cell on its way to a worker group."""

    cell: AnyCell
    checkpoint: Checkpoint
    """Its folder is one that every worker sees or, with a mirror, a local one. Each worker adds its own callbacks."""
