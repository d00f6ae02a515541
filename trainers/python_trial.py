"""A trial around an object of someone else's, which a study names as ``trainer: {python: "module:Name"}``."""

from __future__ import annotations

import importlib
import math
import sys
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from search_spaces.errors import InvalidInput
from search_spaces.record import CellResult
from search_spaces.trainer import TrainerSpec
from trainers.protocol import Checkpoint, Context, Report, Trial, TrialCell
from trainers.reported_run import ReportedRun, final_loss, open_folder


class EndOfTrial(BaseException):
    """Raised by ``report`` in a trial of one worker that was asked to stop, or whose loss is no longer finite, so that
    an object that never asks ends all the same. Not an Exception, which the object might catch."""


@dataclass
class PythonTrial:
    """Sets up the object once, and keeps the rows that it reports."""

    spec: TrainerSpec
    _trial: Trial | None = field(default=None, init=False, repr=False, compare=False)
    _context: Context | None = field(default=None, init=False, repr=False, compare=False)

    def setup(self, context: Context) -> None:
        trial = load(self.spec)()
        trial.setup(replace(context, options=self.spec.options))
        self._trial, self._context = trial, context

    def train(self, cell: TrialCell, report: Report, checkpoint: Checkpoint) -> CellResult:
        assert self._trial is not None, "setup comes first"
        assert self._context is not None
        if self._context.rank:
            self._trial.train(cell, report, checkpoint)
            return CellResult(state="finished")  # rank 0's counts
        open_folder(checkpoint.folder, checkpoint.mirror)
        run = ReportedRun(
            checkpoint.folder, report, l_init=self.spec.l_init, give_up=checkpoint.give_up, mirror=checkpoint.mirror
        )
        alone = self._context.size == 1

        def should_stop() -> bool:
            return bool(run.diverged) or checkpoint.should_stop()

        def report_and_check(step: int, /, **metrics: float) -> None:
            run.report(step, **metrics)
            if alone and should_stop():
                raise EndOfTrial

        returned: Any = None
        try:
            with suppress(EndOfTrial):  # what it has reported is the result
                returned = self._trial.train(cell, report_and_check, replace(checkpoint, should_stop=should_stop))
        finally:  # what it has saved is in the bucket before it starts again, perhaps on another machine
            run.close()
        if isinstance(returned, CellResult):
            state = returned.state or "finished"
            if state == "finished" and not (returned.val_loss is None or math.isfinite(returned.val_loss)):
                return run.result(returned.val_loss)
            return replace(returned, state=state)
        if checkpoint.should_stop() and not run.diverged:
            return run.end("stopped", "asked to stop")
        return run.result(final_loss(returned))


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
