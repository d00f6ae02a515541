"""Ray Tune keeps every trial of a sweep until its end, to show it, restore it and return it. The ledger does all three,
so a driver forgets a trial that has ended: it is then as small after 10,000 cells as after ten."""

from __future__ import annotations

from typing import Any

from ray.tune.experiment import Trial
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import FIFOScheduler

HOLDERS = ("_live_trials", "_stopped_trials", "_failed_trials", "_trials_to_cache")
"""Sets of a ``TuneController``, which has no public way to forget; one that it does not have holds nothing."""
ENDED = (Trial.TERMINATED, Trial.ERROR)
STATES = "_trial_metadata"
"""Its dictionary of what ``Tuner.restore`` would read, by trial id."""


class Silent(TrialProgressCallback):
    """In place of Tune's own, which Tune adds otherwise, and which keeps each trial to print its lines."""

    def on_trial_result(self, *arguments: Any, **info: Any) -> None: ...

    def on_trial_error(self, *arguments: Any, **info: Any) -> None: ...

    def on_trial_complete(self, *arguments: Any, **info: Any) -> None: ...


class Forgetful(FIFOScheduler):
    """Tune's order of trials, which is that of their suggestion; an end makes it forget those that ended before.

    Not the last one: Tune is not done with it yet, and returns it. (And its steps walk through all trials that it has.)
    """

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        forget_ended(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        forget_ended(tune_controller, trial)  # which may be tried again


def forget_ended(controller: Any, current: Trial) -> None:
    """Remove the trials that ended before ``current`` from everything that a ``TuneController`` keeps them in."""
    trials: list[Trial] = controller.get_trials()
    ended = {trial for trial in trials if trial.status in ENDED and trial is not current}
    trials[:] = [trial for trial in trials if trial not in ended]
    kept = vars(controller)
    for holder in HOLDERS:
        kept.get(holder, set()).difference_update(ended)
    for trial in ended:
        kept.get(STATES, {}).pop(trial.trial_id, None)
