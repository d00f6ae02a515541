"""Every source of metrics, read while it grows, with torn records, and after it was truncated or replaced."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.summary import scalar

from search_spaces.metrics_spec import SOURCES, MetricsSpec
from trainers.metric_streams import STREAMS, Evaluations
from trainers.metric_streams.base import Record
from trainers.metric_streams.text import Stdout

Write = Callable[[int, dict[str, float]], None]
Found = list[tuple[int, dict[str, float]]]


def stream(source: str, folder: Path, **fields: Any) -> Callable[[], Found]:
    """Returns a function that returns the new evaluations."""
    spec = MetricsSpec(**{source: "{folder}/" + PATHS[source], "val_loss": "val/loss", "others": ("lr",)} | fields)
    reader = STREAMS[source](spec, spec.path.replace("{folder}", str(folder)))
    evaluations = Evaluations(spec)
    return lambda: list(evaluations.read(reader.read()))


PATHS = {"file": "log.jsonl", "csv": "log.csv", "tensorboard": "events", "mlflow": "mlruns"}


def json_lines(folder: Path) -> Write:
    def write(step: int, values: dict[str, float]) -> None:
        with (folder / "log.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")

    return write


def csv_file(folder: Path) -> Write:
    def write(step: int, values: dict[str, float]) -> None:
        path = folder / "log.csv"
        new = not path.exists()
        with path.open("a") as file:
            writer = csv.DictWriter(file, ["step", "val/loss", "lr"])
            if new:
                writer.writeheader()
            writer.writerow({"step": step, **values})

    return write


def tensorboard(folder: Path) -> Write:
    """Uses the writer below ``SummaryWriter``, which would add a thread and a queue."""
    writers: list[EventsWriter] = []

    def write(step: int, values: dict[str, float]) -> None:
        if not writers:
            (folder / "events" / "val").mkdir(parents=True)
            writers.append(EventsWriter(str(folder / "events" / "val" / "events")))
        for key, value in values.items():
            writers[0].write_event(Event(step=step, summary=scalar(key, value)))
        writers[0].flush()

    return write


def mlflow_folder(folder: Path) -> Write:
    """Writes like MLflow's file store, which MLflow itself no longer uses unless it is told to."""

    def write(step: int, values: dict[str, float]) -> None:
        for key, value in values.items():
            path = folder / "mlruns/0/abc/metrics" / key
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as file:
                file.write(f"1700000000000 {value} {step}\n")

    return write


WRITERS = {"file": json_lines, "csv": csv_file, "tensorboard": tensorboard, "mlflow": mlflow_folder}


def test_every_source_has_a_reader_and_a_test() -> None:
    assert set(STREAMS) == set(SOURCES) == {*WRITERS, "stdout"}


@pytest.mark.parametrize("source", WRITERS)
def test_a_source_is_read_as_it_grows(source: str, tmp_path: Path) -> None:
    read = stream(source, tmp_path)
    assert read() == [], "nothing was written yet"
    write = WRITERS[source](tmp_path)
    write(0, {"val/loss": 4.0, "lr": 0.5})
    assert read() == [(0, {"val_loss": 4.0, "lr": 0.5})]
    assert read() == []
    write(10, {"val/loss": 3.0, "lr": 0.25})
    write(20, {"val/loss": float("nan"), "lr": 0.125})
    (ten, (step, metrics)) = read()
    assert ten == (10, {"val_loss": 3.0, "lr": 0.25})
    assert step == 20
    assert np.isnan(metrics["val_loss"])


@pytest.mark.parametrize("source", ["file", "csv", "tensorboard"])
def test_a_torn_record_waits_for_its_end(source: str, tmp_path: Path) -> None:
    write = WRITERS[source](tmp_path)
    write(0, {"val/loss": 4.0, "lr": 0.5})
    write(10, {"val/loss": 3.125, "lr": 0.25})
    (path,) = (path for path in tmp_path.rglob("*") if path.is_file())
    content = path.read_bytes()
    found: Found = []
    read = stream(source, tmp_path)
    for size in range(len(content) + 1):
        with path.open("r+b" if size > 1 else "wb") as file:
            file.seek(max(0, size - 1))
            file.write(content[max(0, size - 1) : size])
        found += read()
    assert {step: metrics["val_loss"] for step, metrics in found} == {0: 4.0, 10: 3.125}


@pytest.mark.parametrize("source", ["file", "csv"])
@pytest.mark.parametrize("how", ["truncated", "replaced"])
def test_a_file_that_starts_over_is_read_from_the_beginning(source: str, how: str, tmp_path: Path) -> None:
    read, write = stream(source, tmp_path), WRITERS[source](tmp_path)
    for step in range(5):
        write(step, {"val/loss": 4.0, "lr": 0.5})
    assert len(read()) == 5
    path = tmp_path / PATHS[source]
    if how == "replaced":
        path.rename(tmp_path / "old")
    else:
        header = path.read_bytes().splitlines(keepends=True)[0] if source == "csv" else b""
        os.truncate(path, len(header))
    write(3, {"val/loss": 2.0, "lr": 0.5})
    assert read() == [(3, {"val_loss": 2.0, "lr": 0.5})]


def test_csv_with_a_new_column_is_read_again(tmp_path: Path) -> None:
    """Lightning rewrites its file when a metric appears for the first time, with one line per kind of metric."""
    read, path = stream("csv", tmp_path), tmp_path / "log.csv"
    path.write_text("step,lr\n1,0.5\n2,0.5\n")
    assert read() == []
    path.write_text("step,lr,val/loss\n1,0.5,\n2,0.25,\n2,,3.5\n")
    assert read() == [(2, {"val_loss": 3.5, "lr": 0.25})]


def test_nested_json_lines_between_other_text(tmp_path: Path) -> None:
    read = stream("file", tmp_path, val_loss="val.loss", step="iter", train_loss="train")
    lines = ["starting", '{"iter": 1, "train": 5.5}', "[1, 2]", '{"iter": 1, "val": {"loss": "4.5"}}', "{torn"]
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    assert read() == [(1, {"val_loss": 4.5, "train_loss": 5.5})]


def test_a_training_loss_that_is_not_finite_is_reported_at_once(tmp_path: Path) -> None:
    read = stream("file", tmp_path, train_loss="train")
    (tmp_path / "log.jsonl").write_text('{"step": 7, "train": NaN}\n')
    ((step, metrics),) = read()
    assert step == 7
    assert np.isnan(metrics["train_loss"])


def test_output_in_pieces_with_progress_bars() -> None:
    spec = MetricsSpec(stdout=(r"step (?P<step>\d+):.*val loss (?P<val_loss>\S+)", r"norm (?P<grad_norm>\S+)"))
    reader, evaluations = Stdout(spec, ""), Evaluations(spec)
    text = b"loading\rstep 0: train loss 9, val loss 4.25\r\n norm 2.5\n\xff step 10: val loss nan\nstep 20: val loss 3"
    for i in range(len(text)):
        reader.feed(text[i : i + 1])
    first, second = evaluations.read(reader.read())
    assert first == (0, {"val_loss": 4.25})
    assert second[0] == 10
    assert second[1]["grad_norm"] == 2.5, "the value must be carried to the next evaluation"
    assert list(evaluations.read(reader.read(ended=True))) == [(20, {"val_loss": 3.0})]


def test_evaluations_without_a_step_are_numbered() -> None:
    records = [Record({"val_loss": 3.0}), Record({"val_loss": 2.0}), Record({"val_loss": True})]
    evaluations = Evaluations(MetricsSpec(file="{folder}/log.jsonl"))
    assert list(evaluations.read(records)) == [(0, {"val_loss": 3.0}), (1, {"val_loss": 2.0})]


@pytest.mark.parametrize("source", ["file", "csv"])
def test_evaluations_without_a_step_are_numbered_from_0_in_a_new_file(source: str, tmp_path: Path) -> None:
    """A file that is rewritten from the start repeats its records, which are the same evaluations."""
    read, path = stream(source, tmp_path), tmp_path / PATHS[source]
    lines = {"csv": ["val/loss", "4", "3", "2"], "file": ["", *(f'{{"val/loss": {loss}}}' for loss in (4, 3, 2))]}
    path.write_text("\n".join(lines[source][:3]) + "\n")
    assert read() == [(0, {"val_loss": 4.0}), (1, {"val_loss": 3.0})]
    (tmp_path / "new").write_text(lines[source][0])
    (tmp_path / "new").replace(path)
    assert read() == [], "the first record is not complete"
    with path.open("a") as file:
        file.write("\n" + "\n".join(lines[source][1:]) + "\n")
    assert read() == [(0, {"val_loss": 4.0}), (1, {"val_loss": 3.0}), (2, {"val_loss": 2.0})]


def test_mlflow_database_of_a_run_that_logs_in_another_process(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    read = stream("mlflow", tmp_path, mlflow="sqlite:///{folder}/mlflow.db", val_loss="loss")
    assert read() == []
    client = MlflowClient(uri)
    experiment = client.create_experiment("mine", artifact_location=str(tmp_path / "artifacts"))
    run = client.create_run(experiment).info.run_id
    client.log_metric(run, "loss", 3.0, step=5)
    assert read() == [(5, {"val_loss": 3.0})]
    log = "import sys, mlflow; mlflow.MlflowClient(sys.argv[1]).log_metric(sys.argv[2], 'loss', 2.0, step=6)"
    subprocess.run([sys.executable, "-c", log, uri, run], check=True, capture_output=True)
    assert read() == [(6, {"val_loss": 2.0})]


def test_reading_does_not_disturb_a_command_that_creates_its_mlflow_database(tmp_path: Path) -> None:
    """MLflow takes seconds to create its tables, and the stream looks for them all the time."""
    read = stream("mlflow", tmp_path, mlflow="sqlite:///{folder}/mlflow.db", val_loss="loss")
    script = """
import sys, mlflow
client = mlflow.MlflowClient(sys.argv[1])
run = client.create_run(client.create_experiment("mine", artifact_location=sys.argv[2])).info.run_id
for step, loss in enumerate([4.0, 3.0, float("nan")]):
    client.log_metric(run, "loss", loss, step=step)
"""
    words = [sys.executable, "-c", script, f"sqlite:///{tmp_path}/mlflow.db", str(tmp_path / "artifacts")]
    found: Found = []
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            found += read()
        assert process.stderr is not None
        assert process.returncode == 0, process.stderr.read()
    found += read()
    assert [step for step, _ in found] == [0, 1, 2]
    assert [metrics["val_loss"] for _, metrics in found] == [4.0, 3.0, pytest.approx(np.nan, nan_ok=True)]


@pytest.mark.parametrize("source", WRITERS)
def test_a_source_describes_what_it_contains(source: str, tmp_path: Path) -> None:
    spec = MetricsSpec(**{source: "{folder}/" + PATHS[source]})
    reader = STREAMS[source](spec, str(tmp_path / PATHS[source]))
    reader.read()
    assert "does not exist" in reader.seen() or "has no event file" in reader.seen()
    WRITERS[source](tmp_path)(0, {"other/loss": 4.0} if source != "csv" else {"lr": 4.0})
    reader.read()
    assert ("'lr'" if source == "csv" else "'other/loss'") in reader.seen()
