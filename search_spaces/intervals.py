"""The field ``intervals`` of a study: when a run is evaluated, saved, and given up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from pydantic import ConfigDict, Field

from search_spaces.frozen import Frozen
from search_spaces.record import CellResult

MIN_EVALUATION_INTERVAL = 20
"""Fewest steps between two evaluations by default; the diagnostics of one then cost at most 2 % of the time."""


class GiveUp(Frozen):
    """When a run is beyond hope. It then ends as diverged, as it would have after its last step: its loss on the curve
    is ``l_init`` in either case. A run that would have come back below ``l_init`` is lost."""

    model_config = ConfigDict(serialize_by_alias=True, validate_by_name=True)

    above: Literal["l_init"] = Field(default="l_init", description="The loss to compare with: that before training.")
    evaluations: int = Field(
        gt=0,
        alias="for",
        description="Consecutive evaluations with a validation loss above it that end a run as diverged.",
    )

    def is_reached(self, losses: Sequence[float], l_init: float) -> bool:
        """Whether a run is given up after these evaluations; only the last ones matter."""
        last = losses[-self.evaluations :]
        return len(last) == self.evaluations and min(last) > l_init

    def reason(self, step: int, val_loss: float, l_init: float) -> str:
        """Why a run ended at ``step`` with this validation loss."""
        above = f"validation loss {val_loss:.4f} at step {step} is above l_init {l_init:.4f}"
        return f"{above} for {self.evaluations} evaluations in a row (intervals.give_up)"


class Intervals(Frozen):
    """How often a cell is evaluated and saved, and when it is given up; does not change its id."""

    evaluate: int | None = Field(
        default=None, gt=0, description="Steps between evaluations; default: a twentieth of the run, at least 20."
    )
    checkpoint: int | None = Field(
        default=None, gt=0, description="Steps between checkpoints; default: at every evaluation."
    )
    give_up: GiveUp | None = Field(
        default=None, description="End a cell that is beyond hope, for example {above: l_init, for: 3}."
    )


def given_up_note(results: Iterable[CellResult]) -> str:
    """What giving up has saved, in a sentence without its period; an empty string if no run was given up."""
    given_up = [result for result in results if result.skipped_steps is not None]
    if not given_up:
        return ""
    seconds = sum((one.train_seconds or 0.0) / one.steps * (one.skipped_steps or 0) for one in given_up if one.steps)
    saved = f", which saved {seconds / 60:.1f} min of training" if seconds else ""
    runs, were = ("runs", "were") if len(given_up) > 1 else ("run", "was")
    return f"{len(given_up)} {runs} stayed above l_init and {were} given up early{saved} (intervals.give_up)"
