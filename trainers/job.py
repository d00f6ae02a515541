"""What a worker group is asked to do next."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search_spaces.cell import Cell
from search_spaces.keep_weights import NO_WEIGHTS, KeepWeights
from trainers.storage.bucket import Mirror

Event = dict[str, Any]
"""``{"kind": "row", ...metrics}`` or ``{"kind": "done", "state": ..., ...columns}``."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A cell on its way to a worker group."""

    cell: Cell
    folder: Path
    """Where its metrics, checkpoints and weights go: a folder that every worker sees, or with a mirror one of the
    node's own."""
    evaluate_every: int
    checkpoint_every: int
    keep_weights: KeepWeights = NO_WEIGHTS
    mirror: Mirror | None = None
    """Of ``folder``, where the home is in a bucket."""
