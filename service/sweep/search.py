"""What to train next: the missing cells of the grid first and exact, then edges, then Optuna's proposals.

One Optuna study for each (scale, attention norm, method), as a ``Searcher`` of Ray Tune over all of them, so that one
sweep keeps every core busy across curves. (``ray.tune.search.optuna.OptunaSearch`` holds one study, and a sweep for
each would end in a tail of idle cores; it also names every study alike.) The journal is a view: the ledger decides what
is done.
"""

from __future__ import annotations

import json
import logging
import math
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import Trial, TrialState
from ray.tune.search import Searcher

from search_spaces.cell import Cell, rounded
from search_spaces.plan import Plan, refinement_space
from service.home.ledger import Entry, Ledger
from service.sweep.refinement import Refinement

logger = logging.getLogger(__name__)

REPEATS = 10
"""A sampler that proposes known cells this often in a row has nothing more to say."""
PRUNED = "the median pruner: val_loss {loss:.4g} at step {step}"


class CurveSearch:
    """The Optuna study of one (scale, attention norm, method)."""

    def __init__(
        self, plan: Plan, ledger: Ledger, storage: BaseStorage, scale: str, attention_norm: str, method: str
    ) -> None:
        self.plan, self.ledger = plan, ledger
        self.scale, self.attention_norm, self.method = scale, attention_norm, method
        spec = plan.study.refine
        seed = int(plan.study.hash, 16) % 2**32
        sampler = (
            optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
            if spec.sampler == "tpe"
            else optuna.samplers.GPSampler(seed=seed)
        )
        self.study = optuna.create_study(
            storage=storage,
            study_name=f"{plan.study.name}/{scale}/{attention_norm}/{method}/{plan.study.hash}",
            sampler=sampler,
            pruner=optuna.pruners.MedianPruner(n_warmup_steps=plan.study.training.warmup_steps),
            direction="minimize",
            load_if_exists=True,
        )
        self.space: dict[str, FloatDistribution] = {
            name: FloatDistribution(low, high, log=True)
            for name, (low, high) in refinement_space(method, plan.study).items()
        }
        self._distributions: dict[str, BaseDistribution] = dict(self.space)
        self._prunes = spec.pruner is not None
        self._trials: dict[int, Trial] = {}
        self._losses: dict[str, dict[int, float]] = {}
        """Validation losses by step of the cells that run, for the pruner."""
        self.proposed = sum(entry.origin == "refine" and self._owns(entry.cell) for entry in ledger.beside)
        """Cells that the sampler proposed so far."""
        self._reconcile()

    def propose(self) -> tuple[int, Cell]:
        """A trial that the sampler proposes, as a cell of the first seed."""
        trial = self._ask()
        params = {
            name: min(max(rounded(value), self.space[name].low), self.space[name].high)
            for name, value in trial.params.items()
        }
        gamma, seed = params.get("gamma"), self.plan.study.seeds[0]
        cell = self.plan.cell(self.scale, self.attention_norm, self.method, gamma, params["lr"], seed)
        trial.set_user_attr("cell", cell.id)
        return trial.number, cell

    def tell(self, number: int | None, entry: Entry) -> None:
        """The outcome of the sampler's trial ``number``, or of a cell that was decided without it.

        Diverged is a value, ``l_init``; a crash is none at all; of a pruned trial the sampler knows the losses that it
        had. A cell that was decided becomes a trial only now, in one line of the journal instead of five.
        """
        losses = self._losses.pop(entry.cell.id, {})
        value = objective(entry)
        state = TrialState.FAIL if value is None else TrialState.COMPLETE
        state = TrialState.PRUNED if entry.state == "pruned" else state
        if number is not None:
            del self._trials[number]
            self.study.tell(number, value, state)
        elif self._inside(entry.cell):
            self._add(entry.cell, state, value, losses)

    def hopeless(self, number: int | None, cell_id: str, step: int, loss: float) -> bool:
        """Whether the pruner would end a trial that has this validation loss at this step. What is not finite ends by
        itself."""
        losses = self._losses.setdefault(cell_id, {})
        if (
            not self._prunes or not math.isfinite(loss) or step <= max(losses, default=-1)
        ):  # a resumed cell repeats some
            return False
        losses[step] = loss
        if number is None:
            return False
        self._trials[number].report(loss, step)
        return self._trials[number].should_prune()

    def _ask(self) -> Trial:
        trial = self.study.ask(self._distributions)
        self._trials[trial.number] = trial
        return trial

    def _reconcile(self) -> None:
        """Make the Optuna study agree with the ledger after a driver died: no trial stays RUNNING, every outcome
        is told once."""
        told = set()
        for trial in self.study.get_trials(deepcopy=False):
            number = trial.number
            if trial.state == TrialState.COMPLETE:
                told.add(trial.user_attrs["cell"])
            elif trial.state == TrialState.WAITING:
                number = self.study.ask(
                    self._distributions
                ).number  # takes the oldest one that waits, which is this one
            if not trial.state.is_finished():
                self.study.tell(number, state=TrialState.FAIL)
        for cell_id, entry in self.ledger.entries.items():
            value = objective(entry)
            if self._inside(entry.cell) and value is not None and cell_id not in told:
                self._add(entry.cell, TrialState.COMPLETE, value, {})

    def _add(self, cell: Cell, state: TrialState, value: float | None, losses: dict[int, float]) -> None:
        """A trial that has ended already."""
        self.study.add_trial(
            optuna.trial.create_trial(
                state=state,
                params=self._params(cell),
                distributions=self._distributions,
                value=value if state == TrialState.COMPLETE else None,
                intermediate_values=losses,
                user_attrs={"cell": cell.id},
            )
        )

    def _owns(self, cell: Cell) -> bool:
        return (cell.scale, cell.attention_norm, cell.method) == (self.scale, self.attention_norm, self.method)

    def _inside(self, cell: Cell) -> bool:
        """Whether the cell is one of this study that its sampler could have proposed."""
        box = self.space.items()
        return self._owns(cell) and all(one.low <= self._params(cell)[name] <= one.high for name, one in box)

    def _params(self, cell: Cell) -> dict[str, float]:
        gamma = {} if cell.gamma is None else {"gamma": cell.gamma}
        return {"lr": cell.lr, **gamma}


def objective(entry: Entry) -> float | None:
    """The finite number that Optuna minimises: the final validation loss, at most ``l_init``; None without one."""
    if entry.state not in ("finished", "diverged"):
        return None
    l_init, loss = entry.result.get("l_init"), entry.result.get("val_loss")
    if l_init is None:  # not even the first evaluation was finite
        return None
    return float(l_init if entry.state == "diverged" or loss is None else min(loss, l_init))


class CellSearch(Searcher):
    """Hands Ray Tune one cell a trial: ``{"cell": <Cell as a dict>}``."""

    def __init__(
        self,
        plan: Plan,
        ledger: Ledger,
        storage: BaseStorage,
        missing: list[Cell],
        prune: Callable[[str, str], None] = lambda cell_id, reason: None,
    ) -> None:
        """``prune`` asks for the end of a running cell, with the reason."""
        super().__init__()
        self._ledger, self._prune = ledger, prune
        self._missing = deque(missing)
        self._refinement = Refinement(plan, ledger)
        self._curves = {
            (scale, attention_norm, method): CurveSearch(plan, ledger, storage, scale, attention_norm, method)
            for scale, attention_norm, method, _ in plan.refinements
        }
        self._wanted = {(scale, norm, method): trials for scale, norm, method, trials in plan.refinements}
        self._running: dict[str, tuple[CurveSearch, int | None, str]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its searcher for ``Tuner.restore``, which is never used: the ledger restores a sweep."""
        return {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # FINISHED is a str
        """The next cell; None while what runs may lead to more; ``FINISHED`` when nothing is left."""
        if self._missing:
            return self._decided(trial_id, self._missing.popleft())
        if self._refinement.spent:
            return Searcher.FINISHED
        if edge := self._refinement.edge_cell():
            self._ledger.plan([edge], origin="edge")
            return self._decided(trial_id, edge)
        for key, curve in self._curves.items():
            if curve.proposed >= self._wanted[key]:
                continue
            if any(running is curve and self._of_grid(cell) for running, _, cell in self._running.values()):
                continue
            for _ in range(REPEATS):
                number, cell = curve.propose()
                if cell.id not in self._ledger.entries:
                    self._ledger.plan([cell], origin="refine")
                    curve.proposed += 1
                    return self._start(trial_id, curve, number, cell)
                curve.tell(number, self._ledger.entries[cell.id])
            self._wanted[key] = curve.proposed
            logger.warning("%s %s %s: the sampler only repeats itself, no further refinement", *key)
        more = self._running and any(self._refinement.cells_left.values())
        return (
            None if more else Searcher.FINISHED
        )  # which lets idle groups go, perhaps for a trial that waits for cores

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell Optuna what the ledger says of the trial's cell."""
        curve, number, cell_id = self._running.pop(trial_id)
        if error or result is None:
            logger.warning("trial of cell %s ended without a result", cell_id)
        curve.tell(number, self._ledger.entries[cell_id])

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Intermediate losses can end a proposal of the sampler. Curves stop only what is not finite: pruning the
        learning rates that lose is wrong for a picture of sensitivity."""
        curve, number, cell_id = self._running[trial_id]
        for event in result["events"]:
            if event["kind"] != "row" or "val_loss" not in event:
                continue
            step, loss = int(event["step"]), float(event["val_loss"])
            hopeless = curve.hopeless(number, cell_id, step, loss)
            if hopeless and self._ledger.entries[cell_id].origin == "refine":
                self._prune(cell_id, PRUNED.format(loss=loss, step=step))

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: ledger and journal are on disk already."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: a sweep starts from the ledger."""

    def _of_grid(self, cell_id: str) -> bool:
        return self._ledger.entries[cell_id].origin == "grid"

    def _decided(self, trial_id: str, cell: Cell) -> dict[str, Any]:
        return self._start(trial_id, self._curves[cell.scale, cell.attention_norm, cell.method], None, cell)

    def _start(self, trial_id: str, curve: CurveSearch, number: int | None, cell: Cell) -> dict[str, Any]:
        self._running[trial_id] = (curve, number, cell.id)
        return {"cell": cell.model_dump(mode="json")}


def open_storage(path: Path) -> BaseStorage:
    """Optuna's journal file: no server, safe on shared storage, appended to by one sweep at a time."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if path.exists() and not _whole(path):
        damaged = path.replace(path.with_suffix(".damaged"))
        logger.warning("Optuna's journal is damaged: kept as %s, and made anew from the ledger", damaged)
    return JournalStorage(JournalFileBackend(str(path)))


def _whole(path: Path) -> bool:
    """Whether every line of a journal is JSON and the last one is complete; Optuna appends to a torn one."""
    content = path.read_bytes()
    try:
        for line in content.splitlines():
            json.loads(line)
    except ValueError:
        return False
    return content.endswith(b"\n")
