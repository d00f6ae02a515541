"""What a worker group is asked to do next, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from search_spaces.cell import AnyCell
from search_spaces.intervals import GiveUp
from search_spaces.keep_weights import NO_WEIGHTS, KeepWeights
from search_spaces.record import CellResult, Row
from trainers.storage.bucket import Mirror

Event = Row | CellResult
"""Rows as they are measured; the result comes last."""


def result_in(events: Sequence[Event]) -> CellResult | None:
    """The result among the events; None while the cell still trains."""
    return next((event for event in events if isinstance(event, CellResult)), None)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A cell on its way to a worker group."""

    cell: AnyCell
    folder: Path
    """Where its metrics, checkpoints and weights go: a folder that every worker sees or, with a mirror, a local one."""
    evaluate_every: int
    """Steps between evaluations."""
    checkpoint_every: int
    """Steps between checkpoints."""
    give_up: GiveUp | None = None
    keep_weights: KeepWeights = NO_WEIGHTS
    mirror: Mirror | None = None
    """Copies ``folder`` to the bucket that holds the home."""
