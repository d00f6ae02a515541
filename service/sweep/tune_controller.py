"""Adjustments to Ray Tune's controller for sweeps of thousands of short cells.

Tune keeps every trial until the end of a sweep in order to print, restore and return it. The ledger does all three, so
the driver forgets trials that have ended: it stays as small after 10,000 cells as after ten (docs/scale.md).
"""

from __future__ import annotations

from typing import Any

from ray.tune.experiment import Trial
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import FIFOScheduler

TRIAL_SETS = ("_live_trials", "_stopped_trials", "_failed_trials", "_trials_to_cache")
"""Sets of trials in a ``TuneController``, which has no public way to forget one; missing sets are skipped."""
TRIAL_METADATA = "_trial_metadata"
"""Its dictionary of what ``Tuner.restore`` would read, by trial id."""
ENDED = (Trial.TERMINATED, Trial.ERROR)


class SilentReporter(TrialProgressCallback):
    """Replaces Tune's own reporter, which keeps every trial to print it."""

    def on_trial_result(self, *arguments: Any, **info: Any) -> None: ...

    def on_trial_error(self, *arguments: Any, **info: Any) -> None: ...

    def on_trial_complete(self, *arguments: Any, **info: Any) -> None: ...


class FifoScheduler(FIFOScheduler):
    """Trials in the order of their suggestion, and no trial is kept after the next one ends.

    It leaves to Tune which trial starts next, and Tune starts the newest in the actor of the one that ended. Tune's own
    FIFO scheduler picks the oldest trial that waits: that trial takes the actor, and the actor that was starting for it
    is killed, so that with cells shorter than an actor's start most actors never come up.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        return None

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        forget_ended_trials(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        forget_ended_trials(tune_controller, trial)


def forget_ended_trials(controller: Any, current: Trial) -> None:
    """Remove the trials that ended before ``current``, which Tune still needs, from a ``TuneController``."""
    trials: list[Trial] = controller.get_trials()
    ended = {trial for trial in trials if trial.status in ENDED and trial is not current}
    trials[:] = [trial for trial in trials if trial not in ended]
    attributes = vars(controller)
    for name in TRIAL_SETS:
        attributes.get(name, set()).difference_update(ended)
    for trial in ended:
        attributes.get(TRIAL_METADATA, {}).pop(trial.trial_id, None)
