"""The MLflow sink on a real SQLite store: everything is delivered, twice has the effect of once, and an outage stops
nothing."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from search_spaces.cell import Cell
from search_spaces.errors import InvalidInput
from search_spaces.plan import Plan
from search_spaces.record import NO_RESULT, CellResult, State
from search_spaces.study import Study
from service.home.layout import Home
from service.home.ledger import Entry, Ledger
from service.home.location import open_home
from service.mlflow.address import check_store
from service.mlflow.sink import MlflowSink, sync
from service.mlflow.store import EXPERIMENT, Store
from tests.timing import within

STUDY = Study.load("smoke")
CELL = Plan(STUDY, "data").cells[1]
RESULT = CellResult(state="finished", val_loss=2.5, l_init=5.5, steps=20)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Creates one home for the whole module, because a new MLflow database takes seconds."""
    home = open_home(tmp_path_factory.mktemp("home"))
    folder = home.cell(CELL.id, "trained")
    folder.mkdir(parents=True)
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


def entry(state: State, result: CellResult) -> Entry:
    """Returns the entry of a cell that another study of the home, ``trained``, has trained."""
    return Entry(CELL.id, CELL, "grid", state, result, reused_from="trained")


def deliver(store: Store, result: CellResult) -> None:
    assert result.state is not None
    assert result.state != "stopped"
    store.deliver(entry(result.state, result))


def test_everything_is_delivered_and_a_second_delivery_changes_nothing(home: Home, uri: str) -> None:
    for _ in range(2):  # the second store stands for a new process that knows nothing of the first
        store = Store(uri, home, named("twice"))
        store.deliver(entry("running", NO_RESULT))
        deliver(store, RESULT)
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
    assert (run.info.start_time, run.info.end_time) == (1_000_500, 1_029_500), (
        "the run must have the cell's start and end time"
    )


def test_a_run_left_without_params_by_a_kill_gets_them(home: Home, uri: str) -> None:
    store = Store(uri, home, named("killed"))
    store._create(store.connect(), CELL.label, {"oec.cell": CELL.id, "mlflow.parentRunId": store._parent})
    deliver(Store(uri, home, named("killed")), RESULT)
    client, run_id = child(uri, "killed")
    assert client.get_run(run_id).data.params["lr"] == str(CELL.lr)


def test_a_crash_is_a_failed_run_with_its_reason(home: Home, uri: str) -> None:
    store = Store(uri, home, named("crash"))
    deliver(store, CellResult(state="crashed", reason="Traceback\n" + "x" * 10_000))
    client, run_id = child(uri, "crash")
    run = client.get_run(run_id)
    assert run.info.status == "FAILED"
    assert run.data.tags["oec.reason"].startswith("Traceback")


def test_two_studies_in_one_store_have_separate_runs(home: Home, uri: str) -> None:
    for name in ("one", "two"):
        deliver(Store(uri, home, named(name)), RESULT)
    assert child(uri, "one")[1] != child(uri, "two")[1]


def test_the_report_is_an_artifact_of_the_parent(home: Home, uri: str, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("<html></html>")
    store = Store(uri, home, named("report"))
    deliver(store, RESULT)
    store.log_artifacts(tmp_path)
    client, run_id = child(uri, "report")
    parent = client.get_run(client.get_run(run_id).data.tags["mlflow.parentRunId"])
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} == {"report.html", "study.yaml"}
    assert (home.path / "mlflow").is_dir(), "artifacts of an embedded store belong in the home"
    assert parent.info.status == "FINISHED"


def test_a_crash_that_was_retried_is_no_longer_a_crash(home: Home, uri: str) -> None:
    deliver(Store(uri, home, named("again")), CellResult(state="crashed", reason="out of memory"))
    deliver(Store(uri, home, named("again")), RESULT)
    client, run_id = child(uri, "again")
    run = client.get_run(run_id)
    assert run.data.tags["oec.state"] == "finished"
    assert run.data.tags["oec.reason"] == ""
    assert run.info.status == "FINISHED"
    assert (run.info.start_time, run.info.end_time) == (1_000_500, 1_029_500), (
        "the run must have the cell's start and end time"
    )


def test_a_store_that_is_down_stops_nothing_and_is_synced_later(home: Home, uri: str, tmp_path: Path) -> None:
    study = named("down")
    with Ledger(home.ledger("down"), "down", write=True) as ledger:
        ledger.plan([CELL])
        ledger.end(CELL.id, RESULT, reused_from="trained")
        sink = MlflowSink(DOWN, home, study)
        began = time.monotonic()
        sink.on_start(ledger.entries[CELL.id])
        sink.on_end(ledger.entries[CELL.id])
        assert time.monotonic() - began < within(0.5), "the sweep waited for MLflow"
        sink.close(timeout_s=0.1)
        with pytest.raises(InvalidInput, match="does not accept study down"):
            sync(DOWN, home, study, ledger, tmp_path)
        (tmp_path / "report.html").write_text("<html></html>")
        assert sync(uri, home, study, ledger, tmp_path) == 1
        client, run_id = child(uri, "down")
        assert client.get_run(run_id).data.metrics["final_val_loss"] == 2.5
        assert sync(uri, home, study, ledger, tmp_path) == 1
        with pytest.raises(InvalidInput, match="does not accept study down"):
            sync(DOWN, home, study, ledger, tmp_path)  # delivery to one store does not count for another


DOWN = "http://127.0.0.1:9"


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("http://localhost:port", "is not an address"),
        ("http://[bad", "is not an address"),
        ("http://me:secret@127.0.0.1:9", "is not reachable"),
        ("postgresql+psycopg2://me:secret@127.0.0.1:9/mlflow", "is not reachable"),
        ("file:///tmp/mlruns", "is not an MLflow store"),
        ("nonsense", "is not an MLflow store"),
    ],
)
def test_an_unusable_address_is_refused_at_once(uri: str, problem: str) -> None:
    with pytest.raises(InvalidInput, match=problem) as refused:
        check_store(uri)
    assert "secret" not in str(refused.value)
