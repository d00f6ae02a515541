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


class AsSuggested(FIFOScheduler):
    """Tune's order of trials, which is that of their suggestion, without what costs a long sweep of short cells.

    An end makes it forget those that ended before. (Not the last one: Tune is not done with it yet, and returns it.)

    Which trial is next it leaves to Tune: the new one, in the actor of the one that ended. Tune's own scheduler names
    the oldest trial that waits instead. That one gets the actor, and the actor that starts for it is ended, so that
    with cells shorter than the start of an actor most slots never come up.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        return None

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
