"""The runs of one study in an MLflow store: a parent run for the study, a child run for each cell.

All content is read from the home. A delivery can be repeated: a child run is found by its tags, and MLflow stores a
metric only once per value, step and time, which are those of the worker. (If a resumed cell repeats a row that had been
delivered, its time differs, and MLflow has that step twice, with equal values.)
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from dashboards.views import color_scheme
from search_spaces.cell import AnyCell, Cell
from search_spaces.factors import format_factor, short_name
from search_spaces.record import COLUMNS, Row, columns_shown
from search_spaces.study import Study
from service.home import copies
from service.home.layout import Home
from service.home.ledger import Entry
from service.mlflow.address import sqlite_file, sqlite_uri, ui_address
from service.mlflow.saved_view import TAG_PREFIX, TRAINING, updated_view, view_key, view_path
from trainers.rows import read
from trainers.storage.files import write_atomically

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput

EXPERIMENT = "oec"
BATCH_SIZE = 900
"""Metrics per request; MLflow accepts 1,000 metrics, params and tags together."""
MAX_TAG_CHARACTERS = 5000
"""Older servers refuse more; MLflow 3 accepts 8,000."""
NOTE, NOTE_HASH = "mlflow.note.content", "oec.card"
"""The description of a run, and the hash of the one that we wrote last, so that nobody's own text is overwritten."""


class Store:
    """The runs of one study in one MLflow store. Connects at the first use: MLflow's import takes seconds."""

    def __init__(self, uri: str, home: Home, study: Study) -> None:
        self._uri, self._home, self._study = uri, home, study
        self._client: MlflowClient | None = None
        self._experiment = ""
        self._parent = ""
        self._note, self._note_hash = "", ""
        self._parent_has_data = False
        self._color_of = color_scheme(study.curve_keys)[1]
        self._children: dict[str, str] = {}
        self._states: dict[str, str] = {}
        """The state of each cell in the store, which is written after everything else."""
        self._complete_runs: set[str] = set()
        """Runs that have their params. A process can be killed between creating a run and logging them."""
        self._rows: dict[str, int] = {}

    def deliver(self, entry: Entry) -> None:
        """Log a cell to its child run: parameters, new rows, and the result if it has ended."""
        from mlflow.entities import Metric, RunTag

        client = self.connect()
        cell, state, result = entry.cell, entry.state, entry.result
        if self._states.get(entry.id) == state and state not in ("running", "crashed"):
            return
        trained_in = entry.reused_from or self._study.name
        copies.download_metrics(self._home, [(entry.id, trained_in)])
        rows = read(self._home.metrics(entry.id, trained_in))
        run_id = self._child(client, entry, rows)
        metrics = [
            Metric(key, float(value), int(row.time * 1000), row.step)
            for row in rows[self._rows.get(run_id, 0) :]
            for key, value in row.metrics.items()
        ]
        ended = state != "running"
        if ended:
            metrics += [Metric(key, value, *last_time_and_step(rows)) for key, value in result_metrics(entry).items()]
        last = max(0, len(metrics) - BATCH_SIZE)  # the last batch is sent together with params and tags
        for start in range(0, last, BATCH_SIZE):
            client.log_batch(run_id, metrics=metrics[start : min(start + BATCH_SIZE, last)])
        complete = run_id in self._complete_runs
        if isinstance(cell, Cell):
            if not complete:
                client.log_inputs(run_id, datasets=datasets(self._study, cell))
            if not self._parent_has_data:
                client.log_inputs(self._parent, datasets=datasets(self._study, cell))
                self._parent_has_data = True
        if ended:
            status = "FAILED" if state == "crashed" else "FINISHED"
            client.set_terminated(run_id, status, last_time_and_step(rows)[0] or None)
        reason = result.reason[:MAX_TAG_CHARACTERS]  # the ledger has the whole traceback
        tags = {"oec.reason": reason, "oec.origin": entry.origin, "oec.state": state}
        tags |= {f"oec.factor.{name}": format_factor(value) for name, value in cell.factors.items()}
        if result.torch:
            tags["oec.torch"] = result.torch
        client.log_batch(
            run_id,
            metrics=metrics[last:],
            params=[] if complete else list(params(cell)),
            tags=[RunTag(name, value) for name, value in tags.items()],
        )
        self._complete_runs.add(run_id)
        self._rows[run_id] = len(rows)
        self._states[entry.id] = state

    def save_run_ids(self) -> None:
        """Write the ids of the runs into the home; the report links to them."""
        if self._children:
            content = json.dumps({"experiment": self._experiment, "runs": dict(self._children)})
            write_atomically(runs_file(self._home, self._study.name), content)

    def log_artifacts(self, folder: Path) -> None:
        """Log the files of a folder to the parent run, and end that run."""
        client = self.connect()
        client.log_artifacts(self._parent, str(folder))
        client.set_terminated(self._parent)

    def save_view(self) -> None:
        """Write the study's saved view, unless somebody has overwritten it."""
        client = self.connect()
        key = TAG_PREFIX + view_key(self._study)
        current = client.get_experiment(self._experiment).tags.get(key)
        if (view := updated_view(current, self._study, self._parent, int(time.time() * 1000))) is not None:
            client.set_experiment_tag(self._experiment, key, view)

    @property
    def links(self) -> dict[str, str]:
        """Addresses in the UI, relative to that of its page, by what is there."""
        self.connect()
        report = f"#/experiments/{self._experiment}/runs/{self._parent}/artifacts/report.html?{TRAINING}"
        return {"Compare the runs": view_path(self._experiment, self._study), "Report": report}

    def describe(self, text: str) -> None:
        """Make a text the description of the parent run, unless somebody has written another one there."""
        from mlflow.entities import RunTag

        client = self.connect()
        ours = self._note in ("", self._study.description) or self._note_hash == _digest(self._note)
        if not ours or self._note == text:
            return
        tags = {NOTE: text, NOTE_HASH: _digest(text)}  # in one request, because each is worthless without the other
        client.log_batch(self._parent, tags=[RunTag(key, value) for key, value in tags.items()])
        self._note, self._note_hash = text, _digest(text)

    def connect(self) -> MlflowClient:
        """Connect at the first call: find or create the experiment and the parent run, and find existing child runs."""
        if self._client:
            return self._client
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # we retry, too; the default, 7, takes minutes
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")  # per try; the default is 120
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # it would print two lines per cell
        from mlflow import MlflowClient
        from mlflow.entities import Param, ViewType

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # hides the log of creating a database

        create_database(self._uri)
        client = MlflowClient(self._uri)
        if found := client.get_experiment_by_name(EXPERIMENT):
            self._experiment = found.experiment_id
        else:
            place = (self._home.path / "mlflow").as_uri() if sqlite_file(self._uri) else None
            tags = {"mlflow.experimentKind": "custom_model_development"}  # the UI opens on training runs
            self._experiment = client.create_experiment(EXPERIMENT, artifact_location=place, tags=tags)
        token = None
        mine = f"tags.`oec.study` = '{self._study.name}' and tags.`oec.hash` = '{self._study.hash}'"
        while True:
            page = client.search_runs([self._experiment], mine, ViewType.ACTIVE_ONLY, page_token=token)
            for run in page:
                if run.data.params:
                    self._complete_runs.add(run.info.run_id)
                if cell_id := run.data.tags.get("oec.cell"):
                    self._children[cell_id] = run.info.run_id
                    self._states[cell_id] = run.data.tags.get("oec.state", "")
                else:
                    self._parent = run.info.run_id
                    self._note, self._note_hash = (run.data.tags.get(key, "") for key in (NOTE, NOTE_HASH))
                    self._parent_has_data = bool(run.inputs and run.inputs.dataset_inputs)
            if not (token := page.token):
                break
        if not self._parent:
            self._parent = self._create(client, self._study.name, {NOTE: self._study.description})
            self._note = self._study.description
        if self._parent not in self._complete_runs:
            client.log_text(self._parent, self._study.to_yaml(), "study.yaml")
            flat = [Param(name, json.dumps(getattr(self._study, name))) for name in ("scales", "lrs", "seeds")]
            client.log_batch(self._parent, params=flat)
        self._client = client
        return client

    def _child(self, client: MlflowClient, entry: Entry, rows: Sequence[Row]) -> str:
        """The run of a cell. A new run starts at the time of its first row, so that MLflow shows the cell's
        duration."""
        if entry.id not in self._children:
            tags = {"oec.cell": entry.id, "mlflow.parentRunId": self._parent}
            tags["mlflow.runColor"] = self._color_of(entry.cell.curve)  # as in the report; users can change it
            start = int(rows[0].time * 1000) if rows else None
            self._children[entry.id] = self._create(client, entry.cell.label, tags, start)
        return self._children[entry.id]

    def _create(self, client: MlflowClient, name: str, tags: dict[str, str], start: int | None = None) -> str:
        origin = {"mlflow.source.type": "LOCAL", "mlflow.source.name": f"oec run {self._study.name}"}
        tags = {"oec.study": self._study.name, "oec.hash": self._study.hash, **origin, **tags}
        run = client.create_run(self._experiment, start_time=start, tags=tags, run_name=name)
        return str(run.info.run_id)


def create_database(uri: str) -> None:
    """Create the file of a ``sqlite:///`` address if it does not exist, under another name first; others wait.

    MLflow creates it in dozens of migrations and commits each one. A process that is killed in between, or a second one
    that starts before the first is through, leaves a file that no MLflow client can open again.

    Raises:
        OSError: the file cannot be written.
    """
    path = sqlite_file(uri)
    if path is None or path.exists():
        return
    from mlflow import MlflowClient  # takes seconds

    new = path.with_name(f".{path.name}-new")
    with FileLock(path.with_name(f".{path.name}.lock")):
        if path.exists():
            return
        # A killed process's file, and SQLite's journal of it.
        for leftover in path.parent.glob(f"{glob.escape(new.name)}*"):
            leftover.unlink()
        MlflowClient(sqlite_uri(new)).search_experiments(max_results=1)
        new.replace(path)


def params(cell: AnyCell) -> Iterator[Any]:
    """A cell as MLflow params; those that users compare by come first."""
    from mlflow.entities import Param

    content = cell.model_dump(mode="json")
    if factors := content.pop("factors", None):
        yield Param("factors", json.dumps(factors))
        if not isinstance(cell, Cell):  # a field of the OEC model has its own param below
            yield from (Param(name, str(value)) for name, value in factors.items())
    for name, value in content.items():
        if isinstance(value, dict):
            yield from (Param(f"{name}.{key}", str(inner)) for key, inner in value.items())
        elif value is not None:
            yield Param(name, str(value))
    if isinstance(cell, Cell):
        yield Param("parameters", str(cell.parameters))


def datasets(study: Study, cell: Cell) -> list[DatasetInput]:
    """The tokens of a cell as MLflow's data sets, which the UI shows by name and by digest (at most 36 characters).

    Training and validation tokens have one digest and therefore need two names. The UI shows the profile, but not the
    source.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    spec = study.data.model_dump(mode="json", exclude_none=True)
    source, digest, text = spec["source"], cell.data[:36], json.dumps(spec)
    return [
        DatasetInput(
            Dataset(
                name=name, digest=digest, source_type=source, source=text, profile=text
            ),  # the UI shows the profile
            [InputTag("mlflow.data.context", context)],
        )
        for name, context in ((source, "training"), (f"{source} validation", "validation"))
    ]


def result_metrics(entry: Entry) -> dict[str, float]:
    """A cell's result as metrics.

    Final losses have separate keys, because after a divergence they differ from the last value of the metric
    ``val_loss``. ``curve_loss`` (the loss in the report) and ``log10_lr`` (or that of the study's ``lr_factor``) are
    for MLflow's charts, which can neither clip an axis nor show a parameter on a log scale.
    """
    record = entry.result.record()
    found = {
        COLUMNS[name].mlflow_key or name: float(record[name])
        for name in columns_shown("mlflow")
        if COLUMNS[name].kind != "text" and name in record
    }
    loss = entry.outcome.loss
    if loss is not None:
        found |= {"curve_loss": loss, f"log10_{short_name(entry.cell.lr_factor)}": math.log10(entry.cell.x)}
    return found


def last_time_and_step(rows: Sequence[Row]) -> tuple[int, int]:
    """``(time in ms, step)`` of the last row; zeros without rows, so that a repeated delivery writes the same."""
    return (int(rows[-1].time * 1000), rows[-1].step) if rows else (0, 0)


def view_address(uri: str, home: Home, study: Study) -> str:
    """Where a browser finds a delivered study, or MLflow if nothing has been delivered."""
    path = runs_file(home, study.name)
    if not path.is_file():
        return ui_address(uri)
    delivered = json.loads(path.read_text(encoding="utf-8"))
    return f"{ui_address(uri)}/{view_path(delivered['experiment'], study)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def runs_file(home: Home, study: str) -> Path:
    """The file with the MLflow run of each cell of a study, as of the last delivery."""
    return home.study(study) / "mlflow.json"
