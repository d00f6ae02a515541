"""What a user's trial has reported: ``metrics.jsonl``, and the result that follows from it.

A run has *diverged* if a loss that it reported is not finite, if its last validation loss is above ``l_init``, which is
its first unless the study gives it, or if it was given up because several in a row were above that. It has *crashed*
if it reported no validation loss at all.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from itertools import islice
from pathlib import Path

from search_spaces.record import CellResult, EndState, Row, columns_from
from trainers.protocol import Checkpoint, Report
from trainers.rows import Rows, read
from trainers.storage.bucket import Mirror

METRICS = "metrics.jsonl"
LOSSES = ("val_loss", "train_loss")
ROW_FIELDS = ("step", "time")
"""What a row has besides its metrics; a metric of this name gets an underscore."""
_COLUMNS = columns_from("metrics")


class ReportedRun:
    """The rows of one cell, on rank 0. Rows of an earlier start are kept until a row at an earlier step arrives."""

    def __init__(self, checkpoint: Checkpoint, report: Report, *, l_init: float | None = None) -> None:
        self._report, self._l_init = report, l_init
        self._give_up, self._mirror = checkpoint.give_up, checkpoint.mirror
        path = checkpoint.folder / METRICS
        self._file, self._rows = Rows(path), read(path)
        self._file.keep_until(self.last_step)  # without a torn last line
        self._started = time.monotonic()
        self._seconds_before = self._rows[-1].time - self._rows[0].time if self._rows else 0.0
        self.reported = 0
        """New rows since this object exists."""
        self.diverged = ""
        """Why the run has diverged already; an empty string if it has not."""
        self._given_up = False

    def report(self, step: int, /, **metrics: float) -> None:
        """Write a row and pass it on. A row that is already there changes nothing: a log may be read again."""
        if self.diverged:
            return  # the run has not been ended yet
        values = {f"{name}_" if name in ROW_FIELDS else name: float(value) for name, value in metrics.items()}
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        for name in LOSSES:
            if name in values and name not in finite and not self.diverged:
                self.diverged = f"{name} is {values[name]} at step {step}"
        if self._rows and step <= self._rows[-1].step:
            at = bisect_left(self._rows, step, key=lambda row: row.step)
            if self._rows[at].step == step and self._rows[at].metrics == finite:
                return
            del self._rows[at:]
            self._file.keep_until(step - 1)
        row = Row(step, time.time(), finite)
        self._rows.append(row)
        self.reported += 1
        self._file.append(row)
        if self._mirror:
            self._mirror.push()
        self._report(step, **finite)
        if "val_loss" in finite and not self.diverged:
            self.diverged = self._beyond_hope()
            self._given_up = bool(self.diverged)

    def _beyond_hope(self) -> str:
        """Why the run is given up after its last evaluation; an empty string if it is not."""
        if self._give_up is None or self.l_init is None:
            return ""
        losses = (row.val_loss for row in reversed(self._rows) if row.val_loss is not None)
        last = list(islice(losses, self._give_up.evaluations))[::-1]
        if not self._give_up.is_reached(last, self.l_init):
            return ""
        return self._give_up.reason(self.last_step, last[-1], self.l_init)

    @property
    def last_step(self) -> int:
        """Of the last row; -1 if there is none."""
        return self._rows[-1].step if self._rows else -1

    @property
    def l_init(self) -> float | None:
        """The loss before the first step: the study's, or the first validation loss."""
        if self._l_init is not None:
            return self._l_init
        return next((row.val_loss for row in self._rows if row.val_loss is not None), None)

    @property
    def evaluated(self) -> bool:
        return any(row.val_loss is not None for row in self._rows)

    def result(self, val_loss: float | None = None) -> CellResult:
        """The result of a run that came to its end.

        Args:
            val_loss: the final loss, if it is not that of the last evaluation.
        """
        last = next((row.val_loss for row in reversed(self._rows) if row.val_loss is not None), None)
        final = last if val_loss is None else val_loss
        if self.diverged:
            return self.end("diverged", self.diverged)
        if final is None:
            return self.end("crashed", "it reported no val_loss")
        if not math.isfinite(final):
            return self.end("diverged", f"final validation loss is {final}")
        if self.l_init is not None and final > self.l_init:
            above = f"final validation loss {final:.4f} is above l_init {self.l_init:.4f}"
            return self.end("diverged", above, final)
        return self.end("finished", "", final)

    def end(self, state: EndState, reason: str, val_loss: float | None = None) -> CellResult:
        """A result with what the rows say."""
        metrics: dict[str, float] = {}
        for row in self._rows:
            metrics |= row.metrics
        return CellResult(
            state=state,
            steps=self._rows[-1].step if self._rows else 0,
            skipped_steps=0 if self._given_up else None,
            val_loss=metrics.get("val_loss") if val_loss is None else val_loss,
            train_loss=metrics.get("train_loss"),
            l_init=self.l_init,
            train_seconds=self._seconds_before + time.monotonic() - self._started,
            reason=reason,
            metrics={name: value for name, value in metrics.items() if name in _COLUMNS},
        )

    def close(self) -> None:
        """Upload what is left to the bucket, if the home is in one."""
        if self._mirror:
            self._mirror.push()
            self._mirror.remove_local()


def open_folder(folder: Path, mirror: Mirror | None) -> None:
    """Create the cell's folder, with what an earlier start has left in the bucket."""
    folder.mkdir(parents=True, exist_ok=True)
    if mirror:
        mirror.pull()
