"""The order of a sweep: first the exact grid, then refinement. After a crash, Optuna agrees with the ledger."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher

from search_spaces.cell import Cell
from search_spaces.factors import CurveKey
from search_spaces.plan import Plan
from search_spaces.record import CellResult, Row
from search_spaces.study import Study
from service.home.ledger import Ledger
from service.sweep.search import CellSearch, open_storage


def study(trials: int, sampler: str = "tpe") -> Study:
    return Study.validate_fields(
        {
            "name": "mine",
            "scales": ["tiny"],
            "methods": ["baseline", {"method": "z-loss", "gamma": [1e-4, 1e3]}],
            "lrs": [1e-3, 1e-2],
            "refine": {"trials": trials, "sampler": sampler},
        }
    )


@pytest.fixture
def plan() -> Plan:
    return Plan(study(trials=2), "data")


def started(plan: Plan, folder: Path) -> tuple[Ledger, CellSearch]:
    ledger = Ledger(folder / "ledger.jsonl", "mine", write=True)
    ledger.plan(plan.cells)
    return ledger, CellSearch(plan, ledger, open_storage(folder / "optuna.journal"), ledger.missing())


def finish(ledger: Ledger, search: CellSearch, trial: str, cell: Cell, loss: float | None) -> None:
    ledger.start(cell.id)
    ledger.end(cell.id, CellResult(state="diverged" if loss is None else "finished", val_loss=loss, l_init=5.0))
    search.on_trial_complete(trial, {"events": []})


def suggested(search: CellSearch, trial: str) -> Cell:
    config = search.suggest(trial)
    assert isinstance(config, dict), config
    return Cell.model_validate(config["cell"])


def optuna_trials(folder: Path) -> list[optuna.trial.FrozenTrial]:
    storage = open_storage(folder / "optuna.journal")
    return [trial for one in optuna.get_all_study_summaries(storage) for trial in storage.get_all_trials(one._study_id)]


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_grid_first_and_exact_then_refinement(sampler: str, tmp_path: Path) -> None:
    plan = Plan(study(trials=2, sampler=sampler), "data")
    ledger, search = started(plan, tmp_path)
    for number, cell in enumerate(plan.cells):
        assert suggested(search, str(number)) == cell
    assert search.suggest("too early") is None, "refinement must wait for its curve's grid"
    for number, cell in enumerate(plan.cells):
        finish(ledger, search, str(number), cell, None if cell.lr == 1e-2 else 3.0 + number / 10)
    refined = []
    while isinstance(config := search.suggest(f"r{len(refined)}"), dict):
        cell = Cell.model_validate(config["cell"])
        finish(ledger, search, f"r{len(refined)}", cell, 3.5)
        refined.append(cell)
    assert config == Searcher.FINISHED
    assert [cell.method for cell in refined] == ["baseline", "baseline", "z-loss", "z-loss"]
    assert all(1e-3 <= cell.lr <= 1e-2 and float(f"{cell.lr:.4g}") == cell.lr for cell in refined)
    assert [cell.gamma is None for cell in refined] == [True, True, False, False]
    trials = optuna_trials(tmp_path)
    assert {trial.user_attrs["cell"]: trial.value for trial in trials} == {
        entry.id: 5.0 if entry.state == "diverged" else entry.result.val_loss for entry in ledger.entries.values()
    }
    lr_of = {entry.id: entry.cell.lr for entry in ledger.entries.values()}
    assert all(trial.params["lr"] == pytest.approx(lr_of[trial.user_attrs["cell"]], rel=1e-3) for trial in trials)
    ledger.close()


def test_after_a_killed_driver_optuna_agrees_with_the_ledger(plan: Plan, tmp_path: Path) -> None:
    ledger, search = started(plan, tmp_path)
    cells = [suggested(search, str(number)) for number in range(3)]
    finish(ledger, search, "0", cells[0], 3.0)
    ledger.end(cells[1].id, CellResult(state="finished", val_loss=4.0, l_init=5.0))  # killed before Optuna was told
    curve = search._curves[CurveKey("tiny", "qk-norm", "baseline", None)]
    curve.study.enqueue_trial({"lr": 1e-3})  # killed between enqueue and ask
    ledger.close()

    ledger, search = started(plan, tmp_path)
    trials = optuna_trials(tmp_path)
    assert not [trial for trial in trials if not trial.state.is_finished()]
    complete = {trial.user_attrs["cell"]: trial.value for trial in trials if trial.state == TrialState.COMPLETE}
    assert complete == {cells[0].id: 3.0, cells[1].id: 4.0}
    assert suggested(search, "again") == cells[2], "the cell that was running must be suggested again"
    ledger.close()


def test_an_interrupted_refinement_is_trained_before_new_ones_are_proposed(plan: Plan, tmp_path: Path) -> None:
    ledger, search = started(plan, tmp_path)
    for number, cell in enumerate(plan.cells):
        assert suggested(search, str(number)) == cell
        finish(ledger, search, str(number), cell, 3.0 + number)
    cut_short = suggested(search, "r0")
    ledger.close()

    ledger, search = started(plan, tmp_path)
    assert suggested(search, "r0") == cut_short
    finish(ledger, search, "r0", cut_short, 2.0)
    assert suggested(search, "r1").method == "baseline"
    assert suggested(search, "r2").method == "z-loss", "expected two refinements per method, not three"
    ledger.close()


def test_a_crashed_cell_has_no_value_for_the_sampler(plan: Plan, tmp_path: Path) -> None:
    ledger, search = started(plan, tmp_path)
    cell = suggested(search, "0")
    ledger.end(cell.id, CellResult(state="crashed", reason="out of memory"))
    search.on_trial_complete("0", None, error=True)
    assert [trial.state for trial in optuna_trials(tmp_path)] == [TrialState.FAIL]
    ledger.close()


def test_a_cell_without_a_finite_initial_loss_has_no_value(plan: Plan, tmp_path: Path) -> None:
    ledger, search = started(plan, tmp_path)
    cell = suggested(search, "0")
    ledger.end(cell.id, CellResult(state="diverged"))
    search.on_trial_complete("0", {"events": []})
    assert [trial.state for trial in optuna_trials(tmp_path)] == [TrialState.FAIL]
    ledger.close()
    started(plan, tmp_path)[0].close()


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_torn_journal_is_rebuilt_from_the_ledger(end: bytes, plan: Plan, tmp_path: Path) -> None:
    ledger, search = started(plan, tmp_path)
    finish(ledger, search, "0", suggested(search, "0"), 3.0)
    ledger.close()
    journal = tmp_path / "optuna.journal"
    journal.write_bytes(journal.read_bytes()[:-20] + end)
    ledger, search = started(plan, tmp_path)
    assert (tmp_path / "optuna.damaged").exists()
    assert [trial.value for trial in optuna_trials(tmp_path)] == [3.0]
    ledger.close()


def test_the_pruner_ends_sampled_cells_but_never_grid_cells(tmp_path: Path) -> None:
    """Six grid cells have good losses at step 200. A worse grid cell continues, but a worse cell from the sampler is
    ended."""
    content = study(trials=2).model_dump(mode="json")
    content |= {"methods": ["baseline"], "lrs": [10.0**-i for i in range(7, 0, -1)]}
    content |= {"refine": {"trials": 2, "pruner": "median"}, "training": {"warmup_steps": 100, "min_lr": 0.0}}
    plan = Plan(Study.validate_fields(content), "data")
    asked: list[tuple[str, str]] = []
    ledger = Ledger(tmp_path / "ledger.jsonl", "mine", write=True)
    ledger.plan(plan.cells)
    storage = open_storage(tmp_path / "optuna.journal")
    search = CellSearch(plan, ledger, storage, ledger.missing(), lambda cell, reason: asked.append((cell, reason)))

    def evaluated(trial: str, step: int, loss: float | None) -> None:
        search.on_trial_result(trial, {"events": [Row(step, 0.0, {} if loss is None else {"val_loss": loss})]})

    for number, _ in enumerate(plan.cells):
        cell = suggested(search, str(number))
        evaluated(str(number), 200, 9.0 if number == 6 else 3.0)
        evaluated(str(number), 200, 3.0)  # sent again, as after a restart; only the first value counts
        finish(ledger, search, str(number), cell, 3.0)
    first, second = suggested(search, "r0"), suggested(search, "r1")
    evaluated("r0", 200, 2.9)
    evaluated("r1", 10, 8.0)
    evaluated("r1", 190, None)
    assert asked == [], (
        "nothing may be pruned that is better than the median, still warming up, or without a finite loss"
    )
    evaluated("r1", 200, 8.0)
    assert asked == [(second.id, "the median pruner: val_loss 8 at step 200")]
    finish(ledger, search, "r0", first, 2.8)
    ledger.end(second.id, CellResult(state="pruned", reason=asked[0][1]))
    search.on_trial_complete("r1", {"events": []})
    states = {trial.user_attrs["cell"]: trial.state for trial in optuna_trials(tmp_path)}
    assert (states[first.id], states[second.id]) == (TrialState.COMPLETE, TrialState.PRUNED)
    assert search.suggest("r2") == Searcher.FINISHED, "a pruned trial counts toward the number of trials"
    ledger.close()
    again, resumed = started(plan, tmp_path)
    assert resumed.suggest("0") == Searcher.FINISHED
    assert again.missing() == []
