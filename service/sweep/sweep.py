"""The sweep: every missing cell of a study as a Ray Tune trial, trained by warm worker groups."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.trainable import wrap_function

from search_spaces.cell import parse_cell
from search_spaces.plan import Plan
from search_spaces.record import TERMINAL, CellResult, Row
from search_spaces.study import Study
from service.cluster.placement import TRIAL_MEMORY
from service.home import copies
from service.home.layout import Home
from service.home.ledger import Entry, Ledger
from service.sweep.search import CellSearch, open_storage
from service.sweep.stop import stop_requests
from service.sweep.tune_controller import FifoScheduler, SilentReporter
from service.sweep.worker_group import GroupConfig, close_group, group_of_this_process
from trainers import weights
from trainers.job import Event, Job, result_in
from trainers.protocol import Checkpoint

logger = logging.getLogger(__name__)

SAME_CRASHES = 3
"""A sweep ends early if this many cells crash with the same error before any other cell ends."""

TrainCell = Callable[[Job], Iterator[Sequence[Event]]]
"""Trains a cell in the actor of its trial. Yields events as they arrive, the result last."""


class Observer(Protocol):
    """Something that watches a sweep; it must neither block nor raise."""

    def on_start(self, entry: Entry) -> None: ...
    def on_row(self, entry: Entry, row: Row) -> None: ...
    def on_end(self, entry: Entry) -> None: ...


def sweep(
    plan: Plan,
    train_cell: TrainCell,
    home: Home,
    ledger: Ledger,
    observers: Sequence[Observer],
    *,
    max_concurrent: int,
    retry_crashed: bool = False,
) -> str | None:
    """Train all missing cells, ``max_concurrent`` at a time. Ray must be connected.

    Returns when every cell has ended, or early with the error if all of the first cells crashed with the same one. A
    result is written to the ledger before observers are called.

    Raises:
        OSError: the ledger cannot be written; cells without a result in it will be trained again.
    """
    same_crashes = SameCrashes()
    name = plan.study.name
    search = CellSearch(
        plan,
        ledger,
        open_storage(home.study(name) / "optuna.journal"),
        ledger.missing(retry_crashed=retry_crashed),
        prune=stop_requests(home, name).write,
    )
    tuner = tune.Tuner(
        tune.with_resources(cell_trainable(plan.study, train_cell, home), {"memory": TRIAL_MEMORY}),
        tune_config=tune.TuneConfig(
            search_alg=search,
            scheduler=FifoScheduler(),
            num_samples=-1,  # until the search is finished
            max_concurrent_trials=max_concurrent,
            reuse_actors=True,
            trial_name_creator=lambda trial: str(trial.trial_id),
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=tune.RunConfig(
            name=f"sweep-{name}",
            storage_path=str(home.ray),
            failure_config=tune.FailureConfig(max_failures=plan.study.resources.max_failures),
            callbacks=[Recorder(ledger, [*observers, same_crashes]), SilentReporter()],
            stop=same_crashes,
            verbose=0,
        ),
    )
    tuner.fit()
    return same_crashes.error


def by_worker_group(config: GroupConfig) -> TrainCell:
    """Trains cells with the warm worker group of the calling process."""
    return lambda job: group_of_this_process(config).run(job)


def cell_trainable(study: Study, train_cell: TrainCell, home: Home) -> type[tune.Trainable]:
    """A Tune trainable that trains one cell. Its actor closes its worker group before it ends."""
    requests = stop_requests(home, study.name)

    def run_trial(config: dict[str, Any]) -> None:
        cell, cell_id = parse_cell(config["cell"]), config["id"]
        folder = home.workplace(cell_id, study.name)
        job = Job(
            cell=cell,
            checkpoint=Checkpoint(
                folder=folder,
                mirror=copies.mirror(home, folder, home.cell(cell_id, study.name), archive=weights.FOLDER),
                evaluate_every=study.evaluate_every(cell),
                checkpoint_every=study.checkpoint_every(cell),
                give_up=study.intervals.give_up,
                keep_weights=study.keep_weights,
            ),
        )
        step = 0
        for events in train_cell(job):
            reason = requests.read(cell_id)
            if reason is not None and result_in(events) is None:
                tune.report({"events": [*events, CellResult(state="pruned", reason=reason, steps=step)]})
                return  # the group drops the cell and stays warm
            step = max([step, *(event.step for event in events if isinstance(event, Row))])
            if events:
                tune.report({"events": events})

    class CellTrainable(wrap_function(run_trial)):  # type: ignore[misc]  # a class made from this function
        def cleanup(self) -> None:
            super().cleanup()
            close_group()

    return CellTrainable


class SameCrashes(tune.Stopper):
    """An observer that ends a sweep whose first cells all crash with the same error."""

    def __init__(self) -> None:
        self._last_lines: list[str] = []
        self._works = False
        self.error: str | None = None
        """The last line of the common reason; None unless the sweep should end."""

    def on_start(self, entry: Entry) -> None: ...

    def on_row(self, entry: Entry, row: Row) -> None: ...

    def on_end(self, entry: Entry) -> None:
        self._works = self._works or entry.state != "crashed"
        if self._works:
            return
        last_line = entry.result.reason.strip().rpartition("\n")[2]
        self._last_lines.append(last_line.replace(entry.id, "CELL"))  # it may occur in a path
        if len(self._last_lines) == SAME_CRASHES and len(set(self._last_lines)) == 1:
            self.error = last_line

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether to end only this trial: never."""
        return False

    def stop_all(self) -> bool:
        return self.error is not None


class Recorder(tune.Callback):
    """Writes results of trials to the ledger, then calls the observers."""

    def __init__(self, ledger: Ledger, observers: Sequence[Observer]) -> None:
        self._ledger, self._observers = ledger, observers

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks for ``Tuner.restore``, which is never used: a sweep resumes from the ledger."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        entry = self._entry(trial)
        self._ledger.start(entry.id)
        for observer in self._observers:
            observer.on_start(entry)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        entry = self._entry(trial)
        for event in result["events"]:
            if isinstance(event, Row):
                for observer in self._observers:
                    observer.on_row(entry, event)
            else:
                self._end(entry, event)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """The trial's actor or its worker group died more often than Tune and the mailbox retry."""
        reason = "its trial failed without a message"
        if trial.error_file:
            reason = Path(trial.error_file).read_text(encoding="utf-8", errors="replace")
        self._end(self._entry(trial), CellResult(state="crashed", reason=reason))

    def _end(self, entry: Entry, result: CellResult) -> None:
        if entry.state in TERMINAL:
            logger.warning("cell %s ended twice; its first result counts", entry.id)
            return
        self._ledger.end(entry.id, result)
        for observer in self._observers:
            observer.on_end(entry)

    def _entry(self, trial: Trial) -> Entry:
        return self._ledger.entries[trial.config["id"]]
