"""``oec forecast`` on a home whose ledgers and rows come from the real writers, with synthetic training."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from dashboards.forecast import FEATURES
from search_spaces.cell import Cell
from search_spaces.plan import Plan
from search_spaces.record import CellResult, EndState, Row
from search_spaces.study import Study
from service.home.layout import Home
from service.home.ledger import Ledger
from service.home.location import open_home
from service.report.forecast import load_features
from tests.service.oec import oec
from trainers.rows import Rows

LRS = (0.01, 0.1, 0.5, 1.0, 2.0, 4.0)
STEPS = 100


def diverges(cell: Cell) -> bool:
    return cell.lr > 0.7


def write_rows(home: Home, study: str, cell: Cell) -> None:
    folder = home.cell(cell.id, study)
    folder.mkdir(parents=True)
    rows = Rows(folder / "metrics.jsonl")
    for step in range(0, STEPS + 1, 10):
        growth = math.exp(cell.lr * step / 10)
        metrics = {"val_loss": 5.0, "logits_mean": -growth, "qkv_norm/0": growth, "proj_norm/0": growth}
        rows.append(Row(step, 0.0, metrics))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Creates a home with study ``one``, which has 18 cells, one of them running, and study ``two``, which reuses its
    results."""
    home = open_home(tmp_path_factory.mktemp("home"))
    study = Study.load("smoke")
    study = study.model_copy(update={"lrs": LRS, "training": study.training.model_copy(update={"steps": STEPS})})
    cells = Plan(study, "data").cells
    with (
        Ledger(home.ledger("one"), "one", write=True) as one,
        Ledger(home.ledger("two"), "two", write=True) as two,
    ):
        one.plan(cells)
        two.plan(cells)
        for cell in cells[:-1]:
            write_rows(home, "one", cell)
            state: EndState = "diverged" if diverges(cell) else "finished"
            result = CellResult(state=state, steps=STEPS, train_seconds=10.0)
            one.end(cell.id, result)
            two.end(cell.id, result, reused_from="one")
        write_rows(home, "one", cells[-1])
        one.start(cells[-1].id)
    return home


def test_each_cell_is_read_once_wherever_it_was_trained(home: Home) -> None:
    everything, two = load_features(home), load_features(home, ["two"])
    assert len(everything) == 18
    assert everything["cell"].is_unique
    assert everything["curve"].nunique() == 3
    assert sorted(everything["state"].value_counts().items()) == [("diverged", 8), ("finished", 9), ("running", 1)]
    assert two["cell"].tolist() == everything.query("state != 'running'")["cell"].tolist()
    assert two[["norm_growth", "logits_drift"]].notna().all(axis=None), (
        "the rows of the study that trained the cells must be used"
    )
    assert list(two[list(FEATURES)].isna().all()) == [False, True, False]


def test_the_command_scores_its_forecast_and_lists_running_cells(home: Home) -> None:
    done = oec("forecast", home=home.path)
    assert done.returncode == 0, done.stderr
    assert "17 runs to forecast, 8 of which diverged" in done.stdout
    own = next(line for line in done.stdout.splitlines() if "forecast, p >= 0.5" in line)
    # 8 of 17 runs of 10 s diverged; stopping each early saves its last 8 s.
    assert [part.strip() for part in own.split("│")[2:8]] == ["1.00", "1.00", "8", "0", "0", f"{64 / 170:.1%}"]
    (running,) = [line for line in done.stdout.splitlines() if "running" in line]
    assert "mu-centering lr=4" in running


def test_with_cells_every_run_has_its_probability(home: Home) -> None:
    done = oec("forecast", "two", "--cells", home=home.path)
    assert done.returncode == 0, done.stderr
    lines = [line.split("│") for line in done.stdout.splitlines() if "seed=" in line]
    assert len(lines) == 17
    assert all((float(p) > 0.5) == (state.strip() == "diverged") for *_, state, p, _ in lines)


def test_a_home_without_runs(tmp_path: Path) -> None:
    done = oec("forecast", home=tmp_path)
    assert (done.returncode, done.stdout) == (0, "no forecast: no run has started yet\n")


def test_a_study_that_does_not_exist(tmp_path: Path) -> None:
    done = oec("forecast", "nowhere", home=tmp_path)
    assert done.returncode == 2
    assert "'nowhere'" in done.stderr
