"""A simulated cell: it replays the closest published run in less time.

A published run only has final values. The path to them, starting at a uniform guess, is invented; so is the effect of a
seed, which changes the loss by a hundredth and the time by a tenth.
"""

from __future__ import annotations

import csv
import math
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from dashboards.published import GAMMA, L_INIT, RUNS_CSV
from search_spaces.cell import Cell
from search_spaces.record import CellResult, Row
from trainers.job import Event, Job
from trainers.rows import Rows

DIAGNOSTICS = ("output_mu_norm", "logits_mean", "logits_absmax", "log_z_squared")
"""Columns that a published run shares with a row and a result."""
_ended_at: float | None = None
"""When this process's last cell ended; a slot is idle between two cells."""


@dataclass(frozen=True)
class Replay:
    """Replaces a warm worker group: takes a job, yields its events, and writes its metrics into the home."""

    speedup: float
    """Published seconds per second."""
    evaluations: int
    """Rows after the row of step 0."""

    def __call__(self, job: Job) -> Iterator[list[Event]]:
        global _ended_at
        began = time.time()
        waited = None if _ended_at is None else began - _ended_at
        loss, seconds, diagnostics = end_of(job.cell)
        folder = job.checkpoint.folder
        folder.mkdir(parents=True, exist_ok=True)
        rows, steps = Rows(folder / "metrics.jsonl"), job.cell.training.steps
        for number in range(self.evaluations + 1):
            share = number / self.evaluations
            time.sleep(max(0.0, began + share * seconds / self.speedup - time.time()))
            val_loss = loss + (L_INIT - loss) * (1 - share) ** 4
            row = Row(round(share * steps), time.time(), {"val_loss": val_loss, **diagnostics})
            rows.append(row)
            yield [row]
        _ended_at = time.time()
        times = {"slot": os.getpid(), "ended_at": _ended_at}
        if waited is not None:
            times["waited_seconds"] = waited
        yield [
            CellResult(
                state="diverged" if loss > L_INIT else "finished",
                val_loss=loss,
                train_loss=loss,
                l_init=L_INIT,
                steps=steps,
                tokens=job.cell.tokens,
                train_seconds=seconds,
                tokens_per_second=job.cell.tokens / seconds,
                metrics={**diagnostics, **times},
            )
        ]


def end_of(cell: Cell) -> tuple[float, float, dict[str, float]]:
    """Returns loss, seconds and diagnostics at the end of the published run that is closest to a cell."""
    alike = [run for run in published() if (run["scale"], run["method"]) == (cell.scale, cell.method)]
    run = min(alike, key=lambda run: abs(math.log(float(run["lr"]) / cell.lr)))
    chance = random.Random(cell.id)
    loss = float(run["test_loss"]) * chance.gauss(1.0, 0.01)
    return loss, float(run["train_seconds"]) * chance.gauss(1.0, 0.1), {k: float(run[k]) for k in DIAGNOSTICS}


@cache
def published() -> tuple[dict[str, str], ...]:
    """Returns the 140 runs of the main comparison."""
    with RUNS_CSV.open(encoding="utf-8", newline="") as file:
        return tuple(run for run in csv.DictReader(file) if float(run["gamma"]) in (0.0, GAMMA))
