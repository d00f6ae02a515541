"""A real Ray Tune sweep forgets trials that have ended, so that its driver does not grow with their number."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from service.sweep.tune_controller import FifoScheduler, SilentReporter

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.usefixtures("embedded")]

TRIALS = 8


class Numbers(Searcher):
    """Suggests the trials 0, 1, 2, ...; every fourth one fails twice."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def suggest(self, trial_id: str) -> dict[str, Any] | str:  # type: ignore[override]
        self.number += 1
        return {"number": self.number - 1} if self.number <= TRIALS else Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None: ...

    def save(self, checkpoint_path: str) -> None: ...

    def restore(self, checkpoint_path: str) -> None: ...


class Census(tune.Callback):
    """Counts the trial objects in this process whenever a trial ends."""

    def __init__(self) -> None:
        self.alive: list[int] = []

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        gc.collect()
        self.alive.append(sum(type(one) is Trial for one in gc.get_objects()))


def train(config: dict[str, Any]) -> None:
    if config["number"] % 4 == 3:
        raise ValueError(f"trial {config['number']}")
    tune.report({"number": config["number"]})


def test_a_driver_holds_no_trial_that_has_ended(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    census = Census()
    tune.Tuner(
        tune.with_resources(train, {"memory": 1e6}),
        tune_config=tune.TuneConfig(
            search_alg=Numbers(), scheduler=FifoScheduler(), num_samples=-1, max_concurrent_trials=2, reuse_actors=True
        ),
        run_config=tune.RunConfig(
            name="numbers",
            storage_path=str(tmp_path),
            failure_config=tune.FailureConfig(max_failures=1),
            callbacks=[census, SilentReporter()],
            verbose=0,
        ),
    ).fit()
    assert len(census.alive) == TRIALS * 3 // 4, "a trial is missing"
    assert max(census.alive) <= 5, (
        f"expected at most two running, two ended and one waiting trial, but Tune keeps more: {census.alive}"
    )
    assert "completed" not in capfd.readouterr().out, "Tune prints to the user's log"
