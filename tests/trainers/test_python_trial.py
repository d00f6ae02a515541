"""What a Python object may return and do, in addition to the contract of all trials."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from search_spaces.cell import ForeignCell
from search_spaces.errors import InvalidInput
from search_spaces.record import CellResult
from search_spaces.trainer import TrainerSpec
from tests.trainers.scripts import Reported, context
from trainers.protocol import Checkpoint
from trainers.python_trial import PythonTrial
from trainers.rows import read

CELL = ForeignCell(trainer="digest", name="mine", kind="python", lr=0.1, seed=1, factors={"wd": 0.5})


def train(folder: Path, body: str, should_stop: Any = lambda: False, **fields: Any) -> tuple[CellResult, Reported]:
    """Trains with an object whose ``train`` method has this body."""
    name = f"module_{abs(hash((body, str(folder))))}"
    lines = "".join(f"        {line}\n" for line in body.splitlines())
    source = "class Trial:\n    def setup(self, context): self.context = context\n"
    (folder / f"{name}.py").write_text(f"{source}    def train(self, cell, report, checkpoint):\n{lines}")
    trial = PythonTrial(TrainerSpec(python=f"{name}:Trial", directory=str(folder), **fields))
    trial.setup(context(folder))
    report = Reported()
    result = trial.train(CELL, report, Checkpoint(folder=folder / "cell", should_stop=should_stop))
    return result, report


@pytest.mark.parametrize("returned", ["2.0", "{'val_loss': 2}", "None"])
def test_the_returned_value_is_the_final_loss(returned: str, tmp_path: Path) -> None:
    result, _ = train(tmp_path, f"report(0, val_loss=3.0)\nreport(5, val_loss=2.0, other=1)\nreturn {returned}")
    assert (result.state, result.val_loss, result.l_init, result.steps) == ("finished", 2.0, 3.0, 5)


def test_a_returned_result_is_used_unchanged(tmp_path: Path) -> None:
    body = "from search_spaces.record import CellResult\nreturn CellResult(val_loss=1.0, l_init=2.0, tokens=7)"
    assert train(tmp_path, body)[0] == CellResult(state="finished", val_loss=1.0, l_init=2.0, tokens=7)


def test_metrics_with_the_names_of_a_rows_own_fields(tmp_path: Path) -> None:
    _, report = train(tmp_path, "report(3, val_loss=1.0, time=7.0, step=8.0)")
    assert report.rows == [(3, {"val_loss": 1.0, "time_": 7.0, "step_": 8.0})]
    (row,) = read(tmp_path / "cell/metrics.jsonl")
    assert row.step == 3
    assert row.time > 1e9
    assert row.metrics == {"val_loss": 1.0, "time_": 7.0, "step_": 8.0}


def test_a_result_without_a_finite_loss_is_diverged(tmp_path: Path) -> None:
    body = "from search_spaces.record import CellResult\nreturn CellResult(state='finished', val_loss=float('nan'))"
    result, _ = train(tmp_path, body)
    assert (result.state, result.reason) == ("diverged", "final validation loss is nan")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("report(0, val_loss=3.0)\nreturn float('nan')", "final validation loss is nan"),
        ("return float('inf')", "final validation loss is inf"),
        ("report(0, val_loss=3.0)\nreturn 3.5", "final validation loss 3.5000 is above l_init 3.0000"),
        ("report(0, val_loss=3.0)\nreport(7, train_loss=float('inf'))", "train_loss is inf at step 7"),
    ],
)
def test_divergence(body: str, reason: str, tmp_path: Path) -> None:
    result, _ = train(tmp_path, body)
    assert (result.state, result.reason) == ("diverged", reason)


def test_a_run_without_any_loss_is_crashed(tmp_path: Path) -> None:
    result, _ = train(tmp_path, "report(3, accuracy=0.5)")
    assert (result.state, result.reason) == ("crashed", "it reported no val_loss")


@pytest.mark.parametrize("reason", ["stop", "nan"])
def test_an_object_that_never_asks_is_ended_by_its_next_report(reason: str, tmp_path: Path) -> None:
    last = "1.0" if reason == "stop" else "float('nan')"
    lines = ["try:", f"    report(step, val_loss=1.0 if step < 9 else {last})", "except Exception:", "    pass"]
    body = "\n    ".join(["step = 0\nwhile True:", *lines, "step += 1"])
    rows: list[int] = []

    def should_stop() -> bool:
        rows.append(1)
        return reason == "stop" and len(rows) > 4

    result, _ = train(tmp_path, body, should_stop)
    assert result.state == ("stopped" if reason == "stop" else "diverged")


def test_options_factors_and_l_init(tmp_path: Path) -> None:
    body = "return self.context.options['scale'] * cell.factors['wd'] * cell.lr"
    result, _ = train(tmp_path, body, options={"scale": 4}, l_init=1.0)
    assert (result.val_loss, result.l_init) == (pytest.approx(0.2), 1.0)


@pytest.mark.parametrize(
    ("python", "problem"), [("no_such_module:Trial", "No module named"), ("json:Nothing", "has no")]
)
def test_an_object_that_cannot_be_imported_is_named(python: str, problem: str, tmp_path: Path) -> None:
    trial = PythonTrial(TrainerSpec(python=python, directory=str(tmp_path), identity=()))
    with pytest.raises(InvalidInput, match=problem):
        trial.setup(context(tmp_path))
    assert str(tmp_path) in sys.path
