"""A whole study with the real command: Ray Tune, Ray Train, DDP workers, Optuna and MLflow, on real text."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from benchmarks.invariants import agree, ledger_of, runs_of
from dashboards.files import NOT_DRAWN
from dashboards.runs import from_records, read_mlflow
from dashboards.sensitivity import edge_of
from search_spaces.edge import Edge
from search_spaces.plan import Plan
from search_spaces.record import RUN_COLUMNS
from search_spaces.study import Study
from service.home.layout import Home
from service.home.ledger import Ledger
from service.mlflow.store import EXPERIMENT
from service.sweep.run import reuse_results
from tests.conftest import write
from tests.service.oec import oec
from trainers.storage.files import remove_unfinished


def test_every_cell_ended_once(trained: Path) -> None:
    ledger = ledger_of(trained, "first")
    counts = ledger.counts()
    assert counts["finished"] + counts["diverged"] == 6 + 3 + 3
    assert counts["diverged"] >= 1, "a learning rate of 30 must diverge"
    lines = [json.loads(line) for line in ledger.path.read_text().splitlines()]
    ended = [line["cell"] for line in lines if line["event"] in ("finished", "diverged")]
    assert len(ended) == len(set(ended)) == 12
    cells = trained / "studies" / "first" / "cells"
    for entry in ledger.entries.values():
        assert set(entry.result.record()) <= set(RUN_COLUMNS), "a result has a column that is not in RUN_COLUMNS"
        assert entry.result.val_loss is not None
        assert entry.result.torch == torch.__version__
        rows = [json.loads(line) for line in (cells / entry.cell.id / "metrics.jsonl").read_text().splitlines()]
        assert next(row["step"] for row in rows) == 0
        if entry.state == "finished":
            assert rows[-1]["step"] == 20
            assert rows[-1]["val_loss"] == entry.result.val_loss
        assert not (cells / entry.cell.id / "checkpoints").exists()


def test_ledger_and_mlflow_agree(trained: Path) -> None:
    agree(trained, "first")


def test_mlflow_holds_the_curves_and_the_report(trained: Path) -> None:
    (parent,), children = runs_of(trained, "first")
    client = MlflowClient(f"sqlite:///{trained / 'mlflow.db'}")
    artifacts = {artifact.path for artifact in client.list_artifacts(parent.info.run_id)}
    assert {"study.yaml", "report.html", "tables"} <= artifacts
    finished = [run for run in children.values() if run.data.tags["oec.state"] == "finished"]
    history = client.get_metric_history(finished[0].info.run_id, "val_loss")
    assert [point.step for point in history] == [0, 10, 20]
    assert all(math.isfinite(point.value) for point in history)


def test_mlflow_and_ledger_give_the_same_table(trained: Path) -> None:
    table = read_mlflow(f"sqlite:///{trained / 'mlflow.db'}", EXPERIMENT, "first").set_index("cell")
    for record in ledger_of(trained, "first").records():
        row = table.loc[record["cell"]]
        assert row["state"] == record["state"]
        assert row["lr"] == record["lr"]
        assert row["val_loss"] == pytest.approx(record["val_loss"], rel=1e-6)
        assert row["torch"] == record["torch"]


def test_refinement_proposed_one_cell_per_method_within_the_grid(trained: Path) -> None:
    refined = [entry.cell for entry in ledger_of(trained, "first").entries.values() if entry.origin == "refine"]
    assert sorted(cell.method for cell in refined) == ["baseline", "mu-centering", "z-loss"]
    assert all(1e-3 <= cell.lr <= 30.0 for cell in refined)


def test_the_edge_of_every_curve_is_between_the_two_learning_rates(trained: Path) -> None:
    """Narrowing the edge to a factor of 200 takes one run, between 0.001, which converges, and 30, which does not."""
    entries = ledger_of(trained, "first").entries.values()
    searched = [(entry.cell.method, entry.cell.lr) for entry in entries if entry.origin == "edge"]
    assert sorted(searched) == [("baseline", 0.1732), ("mu-centering", 0.1732), ("z-loss", 0.1732)]
    for _, runs in from_records(ledger_of(trained, "first").records()).groupby("method"):
        assert edge_of(runs) in (Edge(low=1e-3, high=0.1732), Edge(low=0.1732, high=30.0))


def test_a_study_of_known_cells_trains_nothing_and_is_still_in_mlflow(trained: Path, tmp_path: Path) -> None:
    done = oec("run", write(tmp_path, "known"), home=trained)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 cells, 0 to train" in done.stdout
    assert {entry.reused_from for entry in ledger_of(trained, "known").entries.values()} == {"first"}
    agree(trained, "known")
    _, children = runs_of(trained, "known")
    client = MlflowClient(f"sqlite:///{trained / 'mlflow.db'}")
    finished = [run for run in children.values() if run.data.tags["oec.state"] == "finished"]
    history = client.get_metric_history(finished[0].info.run_id, "val_loss")
    assert [point.step for point in history] == [0, 10, 20], "expected the curve from the study that trained the cell"


def test_a_study_with_some_known_cells_trains_the_others(trained: Path, tmp_path: Path) -> None:
    study = Study.load(str(write(tmp_path, "second", lrs=[1e-3, 2e-3, 3e-3, 4e-3, 5e-3, 6e-3, 30.0])))
    with Ledger(tmp_path / "ledger.jsonl", "second", write=True) as ledger:
        ledger.plan(Plan(study, ledger_of(trained, "first").ended()[0].cell.data).cells)
        reuse_results(ledger, Home(trained), retry_crashed=False, given_up=True)
        assert [entry.reused_from for entry in ledger.ended()] == ["first"] * 6
        assert {entry.cell.lr for entry in ledger.ended()} == {1e-3, 30.0}
        assert len(ledger.missing()) == 15


def test_other_commands_read_the_home(trained: Path, first: Path, tmp_path: Path) -> None:
    status = oec("status", "first", "--cells", home=trained)
    assert status.returncode == 0
    assert status.stdout.count("baseline") == 4
    report = oec("report", "mlflow:first", "--out", tmp_path / "from-mlflow", home=trained)
    assert report.returncode == 0, report.stderr
    assert (tmp_path / "from-mlflow" / "report.html").is_file()
    forecast = oec("forecast", "first", home=trained)
    assert forecast.returncode == 0, forecast.stderr
    assert "12 without an evaluation by then" in forecast.stdout
    assert "no forecast: needs at least" in forecast.stdout
    plan = oec("plan", first, home=trained)
    assert "at most 21 cells, 15 of them off the grid (6 already in the home)" in plan.stdout
    sync = oec("sync", "first", home=trained)
    assert sync.stdout.startswith("12 cells are in MLflow: ")
    agree(trained, "first")


def test_one_cell_without_ray_gives_the_same_loss(trained: Path, first: Path, tmp_path: Path) -> None:
    done = oec("train", first, "--method", "z-loss", "--lr", 1e-3, home=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [line.split(maxsplit=1) for line in done.stdout.splitlines() if line.startswith("  ")]
    printed = {name: value for name, *rest in lines for value in rest}
    (entry,) = [entry for cell, entry in ledger_of(trained, "first").entries.items() if cell == printed["cell"]]
    assert float(printed["val_loss"]) == pytest.approx(entry.result.val_loss, rel=1e-5), (
        "one process and two must agree"
    )


HIDDEN = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "vl_convert":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.modules["vl_convert"] = None
sys.meta_path.insert(0, Hidden())
"""
"""A ``sitecustomize`` that hides the package that draws figures from every process."""


def test_without_the_drawing_package_a_study_ends_with_page_and_tables(
    trained: Path, first: Path, tmp_path: Path
) -> None:
    home, path = tmp_path / "home", tmp_path / "path"
    path.mkdir()
    (path / "sitecustomize.py").write_text(HIDDEN)
    shutil.copytree(trained, home)
    report = home / "studies" / "first" / "report"
    shutil.rmtree(report)
    done = oec("run", first, home=home, PYTHONPATH=f"{path}:{Path(__file__).parents[3]}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(NOT_DRAWN) == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert {"report.html", "tables", "runs.csv", "runs.parquet"} == {found.name for found in report.iterdir()}
    page = (report / "report.html").read_text()
    assert NOT_DRAWN in page
    assert "vegaEmbed = vegaEmbed" not in page


def test_a_half_written_file_of_a_killed_run_is_removed_by_the_next_one(tmp_path: Path) -> None:
    """Other hidden files are kept."""
    folder = tmp_path / "studies" / "mine"
    (folder / "cells" / "c").mkdir(parents=True)
    (folder / f".study.yaml-{'0' * 32}").touch()
    (folder / ".kept-0").touch()
    assert [path.name for path in remove_unfinished(folder)] == [f".study.yaml-{'0' * 32}"]
    assert [path.name for path in folder.glob(".*")] == [".kept-0"]
