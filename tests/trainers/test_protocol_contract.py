"""The contract that every trial fulfills: our own trainer, a command, and a Python object. One suite tests all of
them."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from search_spaces.cell import Cell, ForeignCell
from search_spaces.intervals import GiveUp
from search_spaces.record import CellResult
from search_spaces.trainer import TrainerSpec
from tests.trainers import tiny
from tests.trainers.scripts import CELL, QUADRATIC, Reported, command, context
from trainers.command.trial import CommandTrial
from trainers.data import TokenFiles
from trainers.oec_trial import OecTrial
from trainers.protocol import Checkpoint, ServedTrial, never_stop
from trainers.python_trial import PythonTrial
from trainers.rows import read

PYTHON = """
import json

class Quadratic:
    setups = 0

    def setup(self, context):
        Quadratic.setups += 1
        self.steps = context.options["steps"]

    def train(self, cell, report, checkpoint):
        state = checkpoint.folder / "state.json"
        x, start = json.loads(state.read_text()) if state.exists() else (1.0 + cell.seed, 0)
        if cell.seed == 13:
            raise ValueError("an unlucky seed")
        for step in range(start, self.steps + 1):
            state.write_text(json.dumps([x, step]))
            report(step, val_loss=x * x)
            if checkpoint.stop_requested():
                return
            x -= 2 * cell.lr * x
"""
SLOW = (
    QUADRATIC.replace("import argparse", "import time, argparse")
    .replace("x -= 2", 'while step == 2 and pathlib.Path("hold").exists(): time.sleep(0.02)\n        x -= 2')
    .replace("x, start, state =", 'assert options.seed != 13, "an unlucky seed"\nx, start, state =')
)


@dataclass
class Case:
    """A trial that has been set up, and a cell for it."""

    trial: ServedTrial
    folder: Path
    cell: Any
    _number: Iterator[int]

    def train(
        self,
        cell: Any = None,
        report: Reported | None = None,
        folder: Path | None = None,
        should_stop: Callable[[], bool] = never_stop,
        give_up: GiveUp | None = None,
    ) -> tuple[CellResult, Path]:
        """Returns the result, and the folder of the cell."""
        folder = folder or self.folder / f"cell-{next(self._number)}"
        checkpoint = Checkpoint(
            folder=folder, evaluate_every=2, checkpoint_every=1, should_stop=should_stop, give_up=give_up
        )
        return self.trial.train(cell or self.cell, report or Reported(), checkpoint), folder

    def stop(self, cell: Any = None) -> tuple[CellResult, Path]:
        """Trains a cell that is asked to stop after three rows. The script of a command waits until then."""
        report, hold = Reported(), self.folder / "hold"
        hold.touch()
        try:
            return self.train(cell, report, should_stop=lambda: len(report.rows) > 2)
        finally:
            hold.unlink()

    def with_fields(self, **fields: Any) -> Any:
        return self.cell.model_copy(update=fields)


def oec(folder: Path) -> tuple[ServedTrial, Any]:
    return OecTrial(TokenFiles.of(tiny.tokens(folder))), tiny.cell()


def by_command(folder: Path) -> tuple[ServedTrial, Any]:
    return CommandTrial(command(folder, SLOW, resume="--resume")), CELL


def by_python(folder: Path) -> tuple[ServedTrial, Any]:
    (folder / "quadratic_trial.py").write_text(PYTHON)
    spec = TrainerSpec(python="quadratic_trial:Quadratic", directory=str(folder), options={"steps": 10})
    return PythonTrial(spec), ForeignCell(trainer="digest", name="quadratic", kind="python", lr=0.1, seed=1)


@pytest.fixture(scope="module", params=[oec, by_command, by_python], ids=["ours", "command", "python"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("trial")
    trial, cell = request.param(folder)
    trial = pickle.loads(pickle.dumps(trial))  # as a worker receives it
    trial.setup(context(folder))
    return Case(trial, folder, cell, itertools.count())


def test_equal_trials_share_a_worker_group(case: Case) -> None:
    """They are equal whether or not they have been set up."""
    assert replace(case.trial) == case.trial


def test_rows_are_streamed_stored_and_determine_the_result(case: Case) -> None:
    report = Reported()
    result, folder = case.train(report=report)
    assert result.state == "finished"
    assert result.reason == ""
    steps = [step for step, _ in report.rows]
    assert steps == sorted(set(steps))
    assert steps[0] == 0
    assert [(row.step, dict(row.metrics)) for row in read(folder / "metrics.jsonl")] == report.rows
    assert result.l_init == report.rows[0][1]["val_loss"]
    assert result.val_loss == report.rows[-1][1]["val_loss"]
    assert result.val_loss < result.l_init
    assert result.steps == steps[-1]
    assert result.train_seconds is not None
    assert result.train_seconds > 0


def test_the_same_cell_gives_the_same_result_in_a_warm_process(case: Case) -> None:
    (first, _), (other, _), (again, _) = case.train(), case.train(case.with_fields(lr=0.01)), case.train()
    assert again.val_loss == first.val_loss
    assert other.val_loss != first.val_loss


def test_divergence_is_a_result(case: Case) -> None:
    result, _ = case.train(case.with_fields(lr=1e30))
    assert result.state == "diverged"
    assert result.reason
    assert case.train()[0].state == "finished"


def hopeless(case: Case) -> Any:
    """Returns a cell whose loss rises from the first step on but stays finite."""
    return case.with_fields(lr=30.0 if isinstance(case.cell, Cell) else 1.1)


def test_a_hopeless_run_is_given_up(case: Case) -> None:
    result, folder = case.train(hopeless(case), give_up=GiveUp(evaluations=3))
    first, *above = read(folder / "metrics.jsonl")
    assert first.val_loss == result.l_init
    assert [row.val_loss > first.val_loss for row in above] == [True] * 3
    assert result.state == "diverged"
    assert result.steps == above[-1].step
    assert result.reason == (
        f"validation loss {above[-1].val_loss:.4f} at step {result.steps} is above l_init {result.l_init:.4f} for 3 "
        "evaluations in a row (intervals.give_up)"
    )
    steps = case.cell.steps
    assert result.skipped_steps == (steps - result.steps if steps else 0)
    whole, _ = case.train(hopeless(case))
    assert whole.state == "diverged"
    assert whole.skipped_steps is None
    assert whole.steps > result.steps
    assert whole.l_init == result.l_init, "the value on the curve must stay the same"


def test_giving_up_never_changes_a_run_that_learns(case: Case) -> None:
    undisturbed, _ = case.train()
    result, _ = case.train(give_up=GiveUp(evaluations=1))
    assert (result.state, result.val_loss, result.skipped_steps) == ("finished", undisturbed.val_loss, None)


def test_evaluations_before_an_interruption_are_counted(case: Case) -> None:
    stopped, folder = case.stop(hopeless(case))
    assert stopped.state == "stopped"
    before = len(read(folder / "metrics.jsonl"))
    resumed, _ = case.train(hopeless(case), folder=folder, give_up=GiveUp(evaluations=3))
    assert resumed.state == "diverged"
    assert len(read(folder / "metrics.jsonl")) == max(4, before + 1), (
        "expected one row before training, and three above it"
    )


def test_a_stopped_cell_resumes_to_the_result_of_an_undisturbed_one(case: Case) -> None:
    undisturbed, _ = case.train()
    stopped, folder = case.stop()
    assert stopped.state == "stopped"
    assert stopped.steps < undisturbed.steps
    resumed, _ = case.train(folder=folder)
    assert (resumed.state, resumed.val_loss, resumed.l_init, resumed.steps) == (
        "finished", undisturbed.val_loss, undisturbed.l_init, undisturbed.steps,
    )  # fmt: skip
    steps = [row.step for row in read(folder / "metrics.jsonl")]
    assert steps == sorted(set(steps))
    assert steps[-1] == undisturbed.steps


def test_a_failure_has_a_reason_and_leaves_the_process_warm(case: Case) -> None:
    broken = case.with_fields(data="other tokens") if isinstance(case.trial, OecTrial) else case.with_fields(seed=13)
    try:
        result, _ = case.train(broken)
        assert result.state == "crashed"
        reason = result.reason
    except Exception as error:
        reason = str(error)
    assert "other tokens" in reason or "an unlucky seed" in reason
    assert case.train()[0].state == "finished"
