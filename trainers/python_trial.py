"""A trial that wraps a user's object, which a study names as ``trainer: {python: "module:Name"}``."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from search_spaces.errors import InvalidInput
from search_spaces.record import CellResult
from search_spaces.trainer import TrainerSpec
from trainers.protocol import Checkpoint, Context, Report, Trial, TrialCell
from trainers.reported_run import ReportedRun, open_folder


class EndOfTrial(BaseException):
    """Raised by ``report`` in a trial of one worker that was asked to stop, or whose loss is no longer finite, so that
    an object that never asks ends as well. Not an Exception, which the object might catch."""


@dataclass
class PythonTrial:
    """Sets up the object once, and keeps the rows that it reports."""

    spec: TrainerSpec
    _ready: tuple[Trial, Context] | None = field(default=None, init=False, repr=False, compare=False)

    def setup(self, context: Context) -> None:
        trial = load(self.spec)()
        trial.setup(replace(context, options=self.spec.options))
        self._ready = trial, context

    def train(self, cell: TrialCell, report: Report, checkpoint: Checkpoint) -> CellResult:
        assert self._ready, "setup comes first"
        trial, context = self._ready
        if context.rank:
            trial.train(cell, report, checkpoint)
            return CellResult(state="finished")  # rank 0's counts
        open_folder(checkpoint.folder, checkpoint.mirror)
        run = ReportedRun(checkpoint, report, l_init=self.spec.l_init)

        def should_stop() -> bool:
            return bool(run.diverged) or checkpoint.should_stop()

        def report_and_check(step: int, /, **metrics: float) -> None:
            run.report(step, **metrics)
            if context.size == 1 and should_stop():
                raise EndOfTrial

        returned: Any = None
        try:
            with suppress(EndOfTrial):  # what it has reported is the result
                returned = trial.train(cell, report_and_check, replace(checkpoint, should_stop=should_stop))
        finally:  # what it has saved is in the bucket before it starts again, perhaps on another machine
            run.close()
        if isinstance(returned, CellResult):
            state = returned.state or "finished"
            if state == "finished" and not (returned.val_loss is None or math.isfinite(returned.val_loss)):
                return run.result(returned.val_loss)
            return replace(returned, state=state)
        if checkpoint.should_stop() and not run.diverged:
            return run.end("stopped", "asked to stop")
        return run.result(_final_loss(returned))


def _final_loss(returned: float | Mapping[str, float] | None) -> float | None:
    """The final validation loss in what ``train`` has returned."""
    value = returned.get("val_loss") if isinstance(returned, Mapping) else returned
    return None if value is None else float(value)


def load(spec: TrainerSpec) -> Any:
    """The class that a study names.

    Raises:
        InvalidInput: the module cannot be imported, or has no such object.
    """
    assert spec.python is not None
    module, _, name = spec.python.partition(":")
    if spec.directory not in sys.path:
        sys.path.insert(0, spec.directory)
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        remedy = f"{spec.directory} must hold it on every node, and its imports must be installed there"
        raise InvalidInput("trainer.python", spec.python, f"cannot be imported ({error})", remedy) from error
