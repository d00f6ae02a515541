"""The sweep: every missing cell of a study as a Ray Tune trial on warm worker groups."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.trainable import wrap_function

from search_spaces.cell import Cell
from search_spaces.plan import Plan
from search_spaces.study import Study
from service.cluster.placement import TRIAL_MEMORY
from service.home.layout import Home
from service.home.ledger import IDENTITY, TERMINAL, Ledger
from service.sweep.search import CellSearch, open_storage
from service.sweep.tune_scheduler import AsSuggested, Silent
from service.sweep.worker_group import GroupConfig, release, shared
from trainers import weights
from trainers.data import TokenFiles, Tokens
from trainers.job import Event, Job

logger = logging.getLogger(__name__)

ALIKE = 3
"""As many first cells of a sweep that crash with the same error end it."""


Train = Callable[[Job], Iterator[list[Event]]]
"""Trains a cell, in the actor of its trial, and yields its events as they come, the last one of kind ``done``."""


class Observer(Protocol):
    """Something that watches a sweep; it must neither block nor raise."""

    def running(self, cell: Cell) -> None: ...
    def row(self, cell: Cell, row: Event) -> None: ...
    def ended(self, cell: Cell, record: dict[str, Any]) -> None: ...


def sweep(
    plan: Plan,
    train: Train,
    home: Home,
    ledger: Ledger,
    observers: Sequence[Observer],
    *,
    at_once: int,
    retry_crashed: bool = False,
) -> str | None:
    """Train what the ledger misses by ``train``, ``at_once`` cells at a time; Ray is connected already.

    Returns when every cell has ended, or early with the error that all of the first cells crashed with. Every end is
    in the ledger before an observer hears of it.

    Raises:
        OSError: the ledger can not be written; the cells whose end it does not hold are trained again.
    """
    alike = CrashedAlike()
    missing = ledger.missing(retry_crashed=retry_crashed)
    stops = home.stops(plan.study.name)
    search = CellSearch(
        plan,
        ledger,
        open_storage(home.optuna(plan.study.name)),
        missing,
        prune=stops.write,
    )
    tuner = tune.Tuner(
        tune.with_resources(trainable(plan.study, train, home), {"memory": TRIAL_MEMORY}),
        tune_config=tune.TuneConfig(
            search_alg=search,
            scheduler=AsSuggested(),
            num_samples=-1,  # until the search says that it is finished
            max_concurrent_trials=at_once,
            reuse_actors=True,
            trial_name_creator=lambda trial: str(trial.trial_id),
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=tune.RunConfig(
            name=f"sweep-{plan.study.name}",
            storage_path=str(home.ray),
            failure_config=tune.FailureConfig(max_failures=plan.study.resources.max_failures),
            callbacks=[Recorder(ledger, [*observers, alike]), Silent()],
            stop=alike,
            verbose=0,
        ),
    )
    tuner.fit()
    return alike.error


def warm(study: Study, tokens: Tokens, home: Home) -> Train:
    """Trains by the warm worker group of the process that calls it."""
    group = GroupConfig(
        tokens=TokenFiles.of(tokens, home.mirror(tokens.folder) if tokens.folder else None),
        resources=study.resources,
        ray_folder=home.ray,
        micro_batch_memo=home.micro_batches,
    )
    return lambda job: shared(group).run(job)


def trainable(study: Study, train: Train, home: Home) -> type[tune.Trainable]:
    """What a trial runs: one cell. Its actor ends its warm group before it ends itself."""
    stops = home.stops(study.name)

    def train_cell(config: dict[str, Any]) -> None:
        cell = Cell.model_validate(config["cell"])
        folder = home.workplace(cell.id, study.name)
        job = Job(
            cell=cell,
            folder=folder,
            mirror=home.mirror(folder, home.cell(cell.id, study.name), archive=weights.FOLDER),
            evaluate_every=study.evaluate_every,
            checkpoint_every=study.checkpoint_every,
            keep_weights=study.keep_weights,
        )
        step = 0
        for events in train(job):
            why = stops.read(cell.id)
            if why is not None and not any(event["kind"] == "done" for event in events):
                pruned = {"kind": "done", "state": "pruned", "reason": why, "steps": step}
                tune.report({"events": [*events, pruned]})
                return  # which lets go of the cell; the group stays warm
            step = max([step, *(event["step"] for event in events if event["kind"] == "row")])
            if events:
                tune.report({"events": events})

    class TrialOfCells(wrap_function(train_cell)):  # type: ignore[misc]  # a class made for this function
        def cleanup(self) -> None:
            super().cleanup()
            release()

    return TrialOfCells


class CrashedAlike(tune.Stopper):
    """An observer that ends a sweep of which nothing comes: its first cells all crashed with the same error."""

    def __init__(self) -> None:
        self._last_lines: list[str] = []
        self._works = False
        self.error: str | None = None
        """The last line of their reasons, once that is so."""

    def running(self, cell: Cell) -> None: ...

    def row(self, cell: Cell, row: Event) -> None: ...

    def ended(self, cell: Cell, record: dict[str, Any]) -> None:
        self._works = self._works or record["state"] != "crashed"
        if self._works:
            return
        last_line = str(record.get("reason")).strip().rpartition("\n")[2]
        self._last_lines.append(last_line.replace(cell.id, "CELL"))  # as in the path of a file
        if len(self._last_lines) == ALIKE and len(set(self._last_lines)) == 1:
            self.error = last_line

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether this trial alone is to end: none is."""
        return False

    def stop_all(self) -> bool:
        return self.error is not None


class Recorder(tune.Callback):
    """Writes what trials report into the ledger, then tells the observers."""

    def __init__(self, ledger: Ledger, observers: Sequence[Observer]) -> None:
        self._ledger, self._observers = ledger, observers

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks for ``Tuner.restore``, which is never used: the ledger restores a sweep."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        cell = self._cell(trial)
        self._ledger.running(cell.id)
        for observer in self._observers:
            observer.running(cell)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        cell = self._cell(trial)
        for event in result["events"]:
            if event["kind"] == "row":
                for observer in self._observers:
                    observer.row(cell, event)
            elif event["kind"] == "done":
                self._end(cell, {name: value for name, value in event.items() if name != "kind"})

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """The trial's actor or its group died more often than Tune and the mailbox try again."""
        reason = Path(trial.error_file).read_text() if trial.error_file else "its trial failed without a message"
        self._end(self._cell(trial), {"state": "crashed", "reason": reason})

    def _end(self, cell: Cell, result: dict[str, Any]) -> None:
        if self._ledger.entries[cell.id].state in TERMINAL:
            logger.warning("cell %s ended once more; the first end counts", cell.id)
            return
        outcome = {name: value for name, value in result.items() if name not in IDENTITY}
        self._ledger.end(cell.id, result["state"], outcome)
        record = self._ledger.entries[cell.id].record(self._ledger.study)
        for observer in self._observers:
            observer.ended(cell, record)

    def _cell(self, trial: Trial) -> Cell:
        """The ledger's own, of which an observer may keep as many as it likes."""
        return self._ledger.entries[Cell.model_validate(trial.config["cell"]).id].cell
