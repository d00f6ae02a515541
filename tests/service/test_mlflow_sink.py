"""The MLflow sink on a real SQLite store: everything arrives, twice is once, and a store that is down stops nothing."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from search_spaces.cell import Cell
from search_spaces.plan import Plan
from search_spaces.study import Study
from service.home import Home
from service.ledger import Ledger
from service.mlflow_sink import EXPERIMENT, MlflowSink, Store

STUDY = Study.load("smoke")
CELL = Plan(STUDY, "data").cells[1]
RECORD = {"state": "finished", "val_loss": 2.5, "l_init": 5.5, "steps": 20, "gamma": CELL.gamma, "reason": ""}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """One home for the module: a fresh MLflow database takes seconds."""
    home = Home.open(tmp_path_factory.mktemp("home"))
    folder = home.cell(CELL.id)
    folder.mkdir()
    rows = [
        {"step": step, "time": 1000.5 + step, "val_loss": 5.5 - step / 10, "logits_mean": 0.1} for step in range(30)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 30, "ti')
    return home


@pytest.fixture
def uri(home: Home) -> str:
    return f"sqlite:///{home.path / 'mlflow.db'}"


def named(name: str) -> Study:
    return STUDY.model_copy(update={"name": name})


def child(uri: str, study: str, cell: Cell = CELL) -> tuple[MlflowClient, str]:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    (run,) = client.search_runs(
        [experiment.experiment_id], f"tags.`oec.study` = '{study}' and tags.`oec.cell` = '{cell.id}'"
    )
    return client, run.info.run_id


def test_everything_arrives_and_twice_is_once(home: Home, uri: str) -> None:
    for _ in range(2):  # a second process that knows nothing of the first
        store = Store(uri, home, named("twice"))
        store.deliver(CELL, {"state": "running"})
        store.deliver(CELL, RECORD)
    client, run_id = child(uri, "twice")
    history = client.get_metric_history(run_id, "val_loss")
    assert [(point.step, point.timestamp) for point in history] == [(step, 1000500 + 1000 * step) for step in range(30)]
    run = client.get_run(run_id)
    assert run.data.metrics["final_val_loss"] == 2.5
    assert run.data.metrics["steps"] == 20
    assert run.data.params["gamma"] == "0.0001"
    assert run.data.params["training.steps"] == "20"
    assert run.data.tags["oec.state"] == "finished"
    assert run.info.run_name == CELL.label
    assert run.info.status == "FINISHED"


def test_a_crash_is_a_failed_run_with_its_reason(home: Home, uri: str) -> None:
    store = Store(uri, home, named("crash"))
    store.deliver(CELL, {"state": "crashed", "reason": "Traceback\n" + "x" * 10_000})
    client, run_id = child(uri, "crash")
    run = client.get_run(run_id)
    assert run.info.status == "FAILED"
    assert run.data.tags["oec.reason"].startswith("Traceback")


def test_two_studies_of_one_store_keep_apart(home: Home, uri: str) -> None:
    for name in ("one", "two"):
        Store(uri, home, named(name)).deliver(CELL, RECORD)
    assert child(uri, "one")[1] != child(uri, "two")[1]


def test_the_report_lies_on_the_parent(home: Home, uri: str, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("<html></html>")
    store = Store(uri, home, named("report"))
    store.deliver(CELL, RECORD)
    store.artifacts(tmp_path)
    client, run_id = child(uri, "report")
    parent = client.get_run(client.get_run(run_id).data.tags["mlflow.parentRunId"])
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} == {"report.html", "study.yaml"}
    assert (home.path / "mlflow").is_dir(), "artifacts of an embedded store belong to the home"
    assert parent.info.status == "FINISHED"


def test_a_store_that_is_down_stops_nothing_and_is_told_later(home: Home, uri: str, tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.jsonl", "down", write=True) as ledger:
        sink = MlflowSink("http://127.0.0.1:9", home, named("down"), ledger)
        began = time.monotonic()
        sink.running(CELL)
        sink.ended(CELL, RECORD)
        assert time.monotonic() - began < 0.5, "the sweep waited for MLflow"
        assert sink.close(timeout_s=0.5) == [CELL.id]
        ledger.plan([CELL])
        ledger.end(CELL.id, "finished", RECORD)
        later = MlflowSink(uri, home, named("down"), ledger)
        assert later.close(timeout_s=60) == []
    client, run_id = child(uri, "down")
    assert client.get_run(run_id).data.metrics["final_val_loss"] == 2.5
