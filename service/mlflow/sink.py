"""MLflow as a view of the ledger: a parent run a study, a child run a cell.

One thread of the driver is the only writer. What it delivers is read from the home, so that a store that is down
stops nothing: the thread tries again with back-off, and ``sync`` delivers whatever a study still misses. A
delivery can be repeated: a child run is found by its tags, and a metric carries the step and the time at which the
worker measured it, which MLflow keeps once. (A row that a resumed cell measured anew has a new time: if the old one
was delivered live, MLflow has that step twice, with equal values.)
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import queue
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from search_spaces.cell import Cell
from search_spaces.errors import InvalidInput
from search_spaces.scales import SCALES
from search_spaces.study import Study
from service.home.layout import Home
from service.home.ledger import Ledger
from service.mlflow.database import prepare
from trainers.job import Event
from trainers.rows import read
from trainers.storage.files import write_atomically

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput

logger = logging.getLogger(__name__)

EXPERIMENT = "oec"
UI_PORT = 5000
"""Where ``oec ui`` listens unless told otherwise."""
BATCH = 900
"""Metrics a request; MLflow takes 1,000 of metrics, params and tags together."""
CHECK_TIMEOUT_S = 5.0
DEFAULT_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
DIGEST_CHARACTERS = 36
"""What MLflow takes as a data set's digest."""
REASON_CHARACTERS = 5000
"""What MLflow takes as a tag's value; the ledger has the whole traceback."""
LIVE_S = 20.0
"""A running cell's metrics are delivered at most this often before its end."""
BACKOFF_S = (1.0, 2.0, 5.0, 10.0, 30.0)


def shown(uri: str) -> str:
    """An address without user and password, for messages."""
    return re.sub(r"//[^/@]*@", "//", uri)


def ui_address(uri: str) -> str:
    """Where a browser finds the runs: the server, or where ``oec ui`` listens by default."""
    return shown(uri).rstrip("/") if uri.startswith("http") else f"http://127.0.0.1:{UI_PORT}"


def check(uri: str) -> None:
    """Refuse a store that can not be reached or does not let us in, before anything starts.

    A server that is slow or has a fault is not refused: it may be well again when there is something to deliver.

    Raises:
        InvalidInput: an unknown kind of address, no server there, or one that answers 401 or 403.
    """

    def bad(problem: str, remedy: str) -> InvalidInput:
        return InvalidInput("MLFLOW_TRACKING_URI", shown(uri), problem, remedy)

    try:
        parts = urlsplit(uri)
        host, port = parts.hostname, parts.port or DEFAULT_PORTS.get(parts.scheme.partition("+")[0])
    except ValueError as error:
        raise bad(f"is not an address ({error})", "write it as scheme://host:port") from error
    scheme = parts.scheme.partition("+")[0]
    if scheme not in (*DEFAULT_PORTS, "sqlite", "databricks"):
        raise bad("is no MLflow store", "use an http(s) server, or a database such as sqlite:////path/to/mlflow.db")
    if scheme == "sqlite" and not Path(uri.partition(":///")[2]).parent.is_dir():
        raise bad("lies in a folder that does not exist", "make the folder")
    if host and port:
        try:
            socket.create_connection((host, port), timeout=CHECK_TIMEOUT_S).close()
        except OSError as error:
            raise bad(f"is not reachable ({error})", "start the server, or unset the variable") from error
    if scheme in ("http", "https") and (status := _answer(uri)) in (401, 403):
        remedy = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        raise bad(f"does not let us in (HTTP {status})", remedy)


def _answer(uri: str) -> int | None:
    """The status of a harmless request, made with the credentials and settings that MLflow's client will use."""
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    try:
        response = http_request(  # type: ignore[no-untyped-call]
            get_default_host_creds(uri),  # type: ignore[no-untyped-call]
            "/api/2.0/mlflow/experiments/search",
            "POST",
            json={"max_results": 1},
            max_retries=0,
            timeout=CHECK_TIMEOUT_S,
            raise_on_status=False,
        )
    except MlflowException as error:  # too slow, or cut off
        logger.warning("MLflow: %s", shown(str(error)))
        return None
    return int(response.status_code)


class MlflowSink:
    """An observer of a sweep that delivers in the background."""

    def __init__(self, uri: str, home: Home, study: Study) -> None:
        self._store = Store(uri, home, study)
        self._todo: queue.Queue[tuple[Cell, dict[str, Any]] | None] = queue.Queue()
        self._last: dict[str, float] = {}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._deliver_all, name="mlflow", daemon=True)
        self._thread.start()

    def running(self, cell: Cell) -> None:
        self._last[cell.id] = time.monotonic()

    def row(self, cell: Cell, row: Event) -> None:
        if time.monotonic() - self._last[cell.id] > LIVE_S:
            self._last[cell.id] = time.monotonic()
            self._todo.put((cell, {"state": "running"}))

    def ended(self, cell: Cell, record: dict[str, Any]) -> None:
        self._last.pop(cell.id, None)
        self._todo.put((cell, record))

    @property
    def backlog(self) -> int:
        """Deliveries that wait."""
        return self._todo.qsize()

    def close(self, timeout_s: float) -> None:
        """Go on delivering for at most ``timeout_s``; ``sync`` knows what is left then."""
        self._todo.put(None)
        self._thread.join(timeout_s)
        self._closing.set()
        self._store.remember()

    def _deliver_all(self) -> None:
        self._tried("connect", self._store.connect)  # while the workers start, not while the first cells train
        while (item := self._todo.get()) is not None:
            cell, record = item
            self._tried(f"take cell {cell.id}", partial(self._store.deliver, cell, record))

    def _tried(self, what: str, action: Callable[[], object]) -> None:
        for pause in (*BACKOFF_S, 0.0):
            try:
                action()
                return
            except Exception as error:  # whatever the store's client raises: training goes on
                logger.warning("MLflow did not %s: %s", what, shown(str(error)))
            if self._closing.wait(pause):
                return


class Store:
    """The runs of one study in one MLflow store. Connects at the first use: MLflow's import takes seconds."""

    def __init__(self, uri: str, home: Home, study: Study) -> None:
        self._uri, self._home, self._study = uri, home, study
        self._client: MlflowClient | None = None
        self._experiment = ""
        self._parent = ""
        self._children: dict[str, str] = {}
        self._states: dict[str, str] = {}
        """What the store says of each cell; written after everything else of it."""
        self._described: set[str] = set()
        """Runs that have their params; a kill can come between a run and them."""
        self._rows: dict[str, int] = {}

    def deliver(self, cell: Cell, record: Mapping[str, Any], reused_from: str | None = None) -> None:
        """Make the child run of ``cell`` hold its parameters, its rows and, at its end, its result.

        Args:
            reused_from: the study that trained it, if not this one.
        """
        from mlflow.entities import Metric, RunTag

        client = self.connect()
        state = str(record["state"])
        if self._states.get(cell.id) == state and state not in ("running", "crashed"):
            return
        trained_in = reused_from or self._study.name
        self._home.bring([(cell.id, trained_in)])
        rows = read(self._home.metrics(cell.id, trained_in))
        run_id = self._child(client, cell, rows)
        metrics = [
            Metric(key, float(value), int(row["time"] * 1000), int(row["step"]))
            for row in rows[self._rows.get(run_id, 0) :]
            for key, value in row.items()
            if key not in ("step", "time")
        ]
        ended = state != "running"
        if ended:
            metrics += [
                Metric(key, value, *at_end(rows)) for key, value in result_metrics({**record, "lr": cell.lr}).items()
            ]
        later = max(0, len(metrics) - BATCH)  # what goes into the last request, with everything else
        for start in range(0, later, BATCH):
            client.log_batch(run_id, metrics=metrics[start : min(start + BATCH, later)])
        described = run_id in self._described
        if not described:
            client.log_inputs(run_id, datasets=[dataset(self._study, cell)])
        if ended:
            client.set_terminated(run_id, "FAILED" if state == "crashed" else "FINISHED", at_end(rows)[0] or None)
        reason = str(record.get("reason") or "")[:REASON_CHARACTERS]
        tags = {"oec.reason": reason, "oec.origin": record.get("origin", "grid"), "oec.state": state}
        if record.get("torch"):
            tags["oec.torch"] = record["torch"]
        client.log_batch(
            run_id,
            metrics=metrics[later:],
            params=[] if described else list(params(cell)),
            tags=[RunTag(name, str(value)) for name, value in tags.items()],
        )
        self._described.add(run_id)
        self._rows[run_id] = len(rows)
        self._states[cell.id] = state

    def remember(self) -> None:
        """Leave the ids of the runs in the home, for the links of the report."""
        if self._children:
            content = json.dumps({"experiment": self._experiment, "runs": dict(self._children)})
            write_atomically(self._home.mlflow_runs(self._study.name), content)

    def artifacts(self, folder: Path) -> None:
        """Put a folder's files onto the parent run and end it."""
        client = self.connect()
        client.log_artifacts(self._parent, str(folder))
        client.set_terminated(self._parent)

    def connect(self) -> MlflowClient:
        """The client, with experiment, parent run and known children found or made."""
        if self._client:
            return self._client
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # we try again ourselves; 7 take minutes
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")  # of 120, and that for each try
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # two lines a cell
        from mlflow import MlflowClient
        from mlflow.entities import Param, ViewType

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # without its account of making a database

        prepare(self._uri)
        client = MlflowClient(self._uri)
        found = client.get_experiment_by_name(EXPERIMENT)
        embedded = self._uri.startswith("sqlite:")
        self._experiment = (
            found.experiment_id
            if found
            else client.create_experiment(
                EXPERIMENT,
                artifact_location=(self._home.path / "mlflow").as_uri() if embedded else None,
                tags={"mlflow.experimentKind": "custom_model_development"},  # the UI opens on training runs
            )
        )
        token = None
        mine = f"tags.`oec.study` = '{self._study.name}' and tags.`oec.hash` = '{self._study.hash}'"
        while True:
            page = client.search_runs([self._experiment], mine, ViewType.ACTIVE_ONLY, page_token=token)
            for run in page:
                if run.data.params:
                    self._described.add(run.info.run_id)
                if cell_id := run.data.tags.get("oec.cell"):
                    self._children[cell_id] = run.info.run_id
                    self._states[cell_id] = run.data.tags.get("oec.state", "")
                else:
                    self._parent = run.info.run_id
            token = page.token
            if not token:
                break
        if not self._parent:
            self._parent = self._create(client, self._study.name, {"mlflow.note.content": self._study.description})
        if self._parent not in self._described:
            client.log_text(self._parent, self._study.to_yaml(), "study.yaml")
            flat = {"scales": self._study.scales, "lrs": self._study.lrs, "seeds": self._study.seeds}
            client.log_batch(self._parent, params=[Param(name, json.dumps(value)) for name, value in flat.items()])
        self._client = client
        return client

    def _child(self, client: MlflowClient, cell: Cell, rows: Sequence[Mapping[str, float]]) -> str:
        """The run of a cell; a new one begins at the first of its rows, so that MLflow's duration is the cell's."""
        if cell.id not in self._children:
            tags = {"oec.cell": cell.id, "mlflow.parentRunId": self._parent}
            began = int(rows[0]["time"] * 1000) if rows else None
            self._children[cell.id] = self._create(client, cell.label, tags, began)
        return self._children[cell.id]

    def _create(self, client: MlflowClient, name: str, tags: dict[str, str], began: int | None = None) -> str:
        tags = {"oec.study": self._study.name, "oec.hash": self._study.hash, **tags}
        run = client.create_run(self._experiment, start_time=began, tags=tags, run_name=name)
        return str(run.info.run_id)


def params(cell: Cell) -> Iterator[Any]:
    """A cell as MLflow params; those that a comparison sorts by first."""
    from mlflow.entities import Param

    content = cell.model_dump(mode="json")
    for name, value in content.items():
        if isinstance(value, dict):
            yield from (Param(f"{name}.{key}", str(inner)) for key, inner in value.items())
        elif value is not None:
            yield Param(name, str(value))
    yield Param("parameters", str(SCALES[cell.scale].parameters(cell.V, tied=cell.model.tied)))


def dataset(study: Study, cell: Cell) -> DatasetInput:
    """A cell's tokens: what the UI shows in the column of data sets, by name and digest."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    spec = study.data.model_dump(mode="json", exclude_none=True)
    name = spec["source"]
    return DatasetInput(
        Dataset(name=name, digest=cell.data[:DIGEST_CHARACTERS], source_type=name, source=json.dumps(spec)),
        [InputTag("mlflow.data.context", "training")],
    )


def result_metrics(record: Mapping[str, Any]) -> dict[str, float]:
    """A cell's result as metrics. The final validation loss has a key of its own: after a divergence the last
    value of the curve ``val_loss`` is another.

    ``curve_loss`` and ``log10_lr`` are what MLflow's own charts need, whose axes know neither a ceiling nor, for
    parameters, logarithms: the loss as the report draws it, ``l_init`` for a diverged cell, and the learning rate.
    """
    names = {"val_loss": "final_val_loss", "train_loss": "final_train_loss"}
    factors = ("gamma", "lr", "seed")
    found = {
        names.get(key, key): float(value)
        for key, value in record.items()
        if isinstance(value, int | float) and key not in factors
    }
    loss, l_init = record.get("val_loss"), record.get("l_init")
    if record.get("state") in ("finished", "diverged") and l_init is not None:
        diverged = record["state"] == "diverged" or loss is None
        found |= {"curve_loss": l_init if diverged else min(loss, l_init), "log10_lr": math.log10(record["lr"])}
    return found


def at_end(rows: list[dict[str, float]]) -> tuple[int, int]:
    """``(milliseconds, step)`` of the last row; 0 without one, so that a repeated delivery writes the same."""
    return (int(rows[-1]["time"] * 1000), int(rows[-1]["step"])) if rows else (0, 0)


def sync(uri: str, home: Home, study: Study, ledger: Ledger, report: Path, *, ask: bool = False) -> int:
    """Deliver what the store lacks of a study's ended cells, and its report; returns how many cells it holds then.

    A file beside the ledger remembers what was delivered where, so that nothing is asked of the store when nothing
    is new.

    Args:
        ask: the store itself all the same: it may have been emptied, or restored from a backup.

    Raises:
        InvalidInput: the store does not take it.
    """
    marker = home.study(study.name) / "delivered"
    state = f"{hashlib.sha256(uri.encode()).hexdigest()} {ledger.seq}"
    ended = ledger.ended()
    gone = uri.startswith("sqlite:") and not Path(uri.partition(":///")[2]).is_file()
    if not (ask or gone) and marker.is_file() and marker.read_text() == state:
        return len(ended)
    try:
        store = Store(uri, home, study)
        for entry in ended:
            store.deliver(entry.cell, entry.record(study.name), entry.reused_from)
        store.remember()
        if report.is_dir():
            store.artifacts(report)
    except Exception as error:  # whatever the store's client raises
        remedy = f"run `oec sync {study.name}` when it is well again"
        problem = f"does not take study {study.name} ({type(error).__name__}: {shown(str(error)).splitlines()[0]})"
        raise InvalidInput("MLFLOW_TRACKING_URI", shown(uri), problem, remedy) from error
    write_atomically(marker, state)
    return len(ended)
