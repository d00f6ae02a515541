"""What to train next: the missing cells of the grid first, exactly as planned, then edges, then Optuna's proposals.

There is one Optuna study per (scale, attention norm, method, factors) and one Ray Tune ``Searcher`` over all of them,
so that a single sweep keeps every core busy across curves. (``ray.tune.search.optuna.OptunaSearch`` holds one study; a
sweep per study would end with idle cores each time, and all of them would have the same name.) Optuna's journal is a
view: the ledger decides what is done.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import Trial, TrialState
from ray.tune.search import Searcher

from search_spaces.cell import AnyCell, round_significant
from search_spaces.factors import CurveKey, to_text
from search_spaces.plan import Plan, refinement_space
from search_spaces.record import Row
from search_spaces.tolerance import snap
from service.home.ledger import Entry, Ledger
from service.sweep.refinement import Refinement

logger = logging.getLogger(__name__)

MAX_REPEATS = 10
"""A sampler that proposes known cells this many times in a row is considered exhausted."""
SAMPLERS: dict[str, Callable[..., optuna.samplers.BaseSampler]] = {
    "tpe": partial(optuna.samplers.TPESampler, multivariate=True, constant_liar=True),
    "gp": optuna.samplers.GPSampler,
}
PRUNED_REASON = "the median pruner: val_loss {loss:.4g} at step {step}"


class CurveSearch:
    """The Optuna study of one (scale, attention norm, method, factors)."""

    def __init__(self, plan: Plan, ledger: Ledger, storage: BaseStorage, group: CurveKey) -> None:
        self.plan, self.ledger, self.group = plan, ledger, group
        spec = plan.study.refine
        warmup = 0 if plan.study.trainer else plan.study.training.warmup_steps
        seed = int(plan.study.hash, 16) % 2**32
        self.study = optuna.create_study(
            storage=storage,
            study_name="/".join((plan.study.name, *_names(group), plan.study.hash)),
            sampler=SAMPLERS[spec.sampler](seed=seed),
            pruner=optuna.pruners.MedianPruner(n_warmup_steps=warmup),
            direction="minimize",
            load_if_exists=True,
        )
        self.space: dict[str, FloatDistribution] = {
            name: FloatDistribution(low, high, log=True)
            for name, (low, high) in refinement_space(group.method, plan.study).items()
        }
        self._distributions: dict[str, BaseDistribution] = dict(self.space)
        self._prunes = spec.pruner is not None
        self._trials: dict[int, Trial] = {}
        self._losses: dict[str, dict[int, float]] = {}
        """Validation losses by step, for each running cell; the pruner uses them."""
        self.proposed = sum(entry.origin == "refine" and self._owns(entry.cell) for entry in ledger.off_grid)
        """Number of cells that the sampler has proposed so far."""
        self._reconcile()

    def propose(self) -> tuple[int, AnyCell]:
        """A trial that the sampler proposes, as a cell of the first seed."""
        trial = self.study.ask(self._distributions)
        self._trials[trial.number] = trial
        rounded = {name: round_significant(value) for name, value in trial.params.items()}
        params = {name: min(max(x, self.space[name].low), self.space[name].high) for name, x in rounded.items()}
        key, study = self.group._replace(gamma=params.get("gamma")), self.plan.study
        cell = self.plan.cell(key, snap(study.grid, params[study.lr_factor]), study.seeds[0])
        trial.set_user_attr("cell", cell.id)
        return trial.number, cell

    def tell(self, number: int | None, entry: Entry) -> None:
        """Tell the sampler the outcome of its trial ``number``, or of a cell that it did not propose.

        A diverged cell counts with ``l_init``, a crashed one as a failed trial, and a pruned one with its losses so
        far. A cell that was not proposed becomes a trial only here: one line in the journal instead of five.
        """
        losses, value = self._losses.pop(entry.id, {}), entry.outcome.loss
        state = TrialState.FAIL if value is None else TrialState.COMPLETE
        state = TrialState.PRUNED if entry.state == "pruned" else state
        if number is not None:
            del self._trials[number]
            self.study.tell(number, value, state)
        elif self._in_box(entry.cell):
            self._add(entry.cell, state, value, losses)

    def should_prune(self, number: int | None, cell_id: str, step: int, loss: float) -> bool:
        """Whether the pruner would end a trial with this validation loss, in nats, at this step."""
        losses = self._losses.setdefault(cell_id, {})
        if not self._prunes or step <= max(losses, default=-1):  # a resumed cell repeats some rows
            return False
        losses[step] = loss
        if number is None:
            return False
        self._trials[number].report(loss, step)
        return self._trials[number].should_prune()

    def _reconcile(self) -> None:
        """Make the Optuna study agree with the ledger after a driver died: no trial stays RUNNING, and every outcome
        is recorded once."""
        recorded = set()
        for trial in self.study.get_trials(deepcopy=False):
            number = trial.number
            if trial.state == TrialState.COMPLETE:
                recorded.add(trial.user_attrs["cell"])
            elif trial.state == TrialState.WAITING:
                number = self.study.ask(self._distributions).number  # dequeues the oldest WAITING trial, this one
            if not trial.state.is_finished():
                self.study.tell(number, state=TrialState.FAIL)
        for cell_id, entry in self.ledger.entries.items():
            value = entry.outcome.loss
            if self._in_box(entry.cell) and value is not None and cell_id not in recorded:
                self._add(entry.cell, TrialState.COMPLETE, value, {})

    def _add(self, cell: AnyCell, state: TrialState, value: float | None, losses: dict[int, float]) -> None:
        """Add a trial that has already ended."""
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

    def _owns(self, cell: AnyCell) -> bool:
        return cell.curve.group == self.group

    def _in_box(self, cell: AnyCell) -> bool:
        """Whether the sampler of this study could have proposed the cell."""
        params = self._params(cell)
        return self._owns(cell) and all(box.low <= params[name] <= box.high for name, box in self.space.items())

    def _params(self, cell: AnyCell) -> dict[str, float]:
        gamma = {} if cell.gamma is None else {"gamma": cell.gamma}
        return {cell.lr_factor: cell.x, **gamma}


class CellSearch(Searcher):
    """Hands Ray Tune one cell per trial, as ``{"cell": <its fields>, "id": <its id>}``."""

    def __init__(
        self,
        plan: Plan,
        ledger: Ledger,
        storage: BaseStorage,
        missing: list[AnyCell],
        prune: Callable[[str, str], None] = lambda cell_id, reason: None,
    ) -> None:
        """
        Args:
            missing: the cells to train first.
            prune: asks for the end of a running cell, with the reason.
        """
        super().__init__()
        self._ledger, self._prune = ledger, prune
        self._missing = deque(missing)
        self._refinement = Refinement(plan, ledger)
        self._wanted = plan.trials
        self._curves = {key: CurveSearch(plan, ledger, storage, key) for key in self._wanted}
        self._running: dict[str, tuple[CurveSearch, int | None, Entry]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its searcher for ``Tuner.restore``, which is never used: a sweep resumes from the ledger."""
        return {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # FINISHED is a str
        """The next cell; None while running cells may lead to more; ``FINISHED`` when nothing is left.

        ``FINISHED`` lets idle worker groups end, and perhaps frees cores for another study.
        """
        if self._missing:
            return self._start(trial_id, self._missing.popleft())
        if self._refinement.budget_exhausted:
            return Searcher.FINISHED
        if edge := self._refinement.edge_cell():
            self._ledger.plan([edge], origin="edge")
            return self._start(trial_id, edge)
        if proposed := self._propose():
            curve, number, cell = proposed
            return self._start(trial_id, cell, curve, number)
        return None if self._running and any(self._refinement.cells_left.values()) else Searcher.FINISHED

    def _propose(self) -> tuple[CurveSearch, int, AnyCell] | None:
        """A new cell that a sampler proposes, and its trial; a curve is refined once its grid has ended."""
        for key, curve in self._curves.items():
            if curve.proposed >= self._wanted[key]:
                continue
            if any(running is curve and entry.origin == "grid" for running, _, entry in self._running.values()):
                continue
            for _ in range(MAX_REPEATS):
                number, cell = curve.propose()
                if (known := self._ledger.entries.get(cell.id)) is None:
                    self._ledger.plan([cell], origin="refine")
                    curve.proposed += 1
                    return curve, number, cell
                curve.tell(number, known)
            self._wanted[key] = curve.proposed
            logger.warning("%s: the sampler only repeats known cells; no further refinement", key)
        return None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell Optuna what the ledger holds for the trial's cell."""
        curve, number, entry = self._running.pop(trial_id)
        if error or result is None:
            logger.warning("the trial of cell %s ended without a result", entry.id)
        curve.tell(number, entry)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Prune a proposal of the sampler by its intermediate losses.

        Cells of a grid or an edge are never pruned: to drop the learning rates that lose would falsify the curve.
        """
        curve, number, entry = self._running[trial_id]
        for event in result["events"]:
            if not isinstance(event, Row) or (loss := event.val_loss) is None:
                continue
            if curve.should_prune(number, entry.id, event.step, loss) and entry.origin == "refine":
                self._prune(entry.id, PRUNED_REASON.format(loss=loss, step=event.step))

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: ledger and journal are already on disk."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: a sweep starts from the ledger."""

    def _start(
        self, trial_id: str, cell: AnyCell, curve: CurveSearch | None = None, number: int | None = None
    ) -> dict[str, Any]:
        """``number``: the cell's trial in its Optuna study; None for a cell that no sampler proposed."""
        cell_id = cell.id
        curve = curve or self._curves[cell.curve.group]
        self._running[trial_id] = (curve, number, self._ledger.entries[cell_id])
        return {"cell": cell.model_dump(mode="json"), "id": cell_id}


def _names(group: CurveKey) -> tuple[str, ...]:
    """The parts of a group that name its Optuna study; curves without factors keep the names that they had."""
    factors = to_text(dict(group.factors))
    return (group.scale, group.attention_norm, group.method, *([factors] if factors else []))


def open_storage(path: Path) -> BaseStorage:
    """Optuna's journal file: it needs no server, is safe on shared storage, and one sweep at a time appends to it."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if path.exists() and not _is_intact(path):
        damaged = path.replace(path.with_suffix(".damaged"))
        logger.warning("Optuna's journal was damaged: it is kept as %s and rebuilt from the ledger", damaged)
    return JournalStorage(JournalFileBackend(str(path)))


def _is_intact(path: Path) -> bool:
    """Whether every line of a journal is JSON and the last one is complete; Optuna would append to a torn one."""
    content = path.read_bytes()
    try:
        for line in content.splitlines():
            json.loads(line)
    except ValueError:
        return False
    return content.endswith(b"\n")
