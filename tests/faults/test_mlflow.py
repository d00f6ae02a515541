"""An MLflow server that refuses requests, fails, or does not answer: training never waits for it."""

from __future__ import annotations

import json
import logging
import multiprocessing
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from mlflow import MlflowClient

from search_spaces.errors import InvalidInput
from search_spaces.plan import Plan
from search_spaces.record import CellResult, Row
from search_spaces.study import Study
from service.home.ledger import Ledger
from service.home.location import open_home
from service.mlflow import address
from service.mlflow import sink as mlflow_sink
from service.mlflow.address import check_store
from service.mlflow.sink import MlflowSink, sync
from service.mlflow.store import create_database
from tests.service.oec import oec

STUDY = Study.load("smoke")
CELL = Plan(STUDY, "data").cells[0]
RESULT = CellResult(state="finished", val_loss=2.5, l_init=5.5)
DEADLINE_S = 120.0


@dataclass
class Server:
    """Answers every request with ``status``. With None, it does not answer until it is closed."""

    status: int | None
    uri: str = ""
    requests: list[str] = field(default_factory=list)
    authorization: list[str | None] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)

    def seen(self, number: int) -> None:
        """Waits until ``number`` requests have arrived."""
        deadline = time.monotonic() + DEADLINE_S
        while len(self.requests) < number:
            assert time.monotonic() < deadline, f"only {len(self.requests)} requests arrived"
            time.sleep(0.01)


@pytest.fixture
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Runs a real server on loopback; the parameter is the status of its responses."""
    told = Server(request.param)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            told.requests.append(self.path)
            told.authorization.append(self.headers.get("Authorization"))
            if told.status is None:
                told.closing.wait(DEADLINE_S)
                return
            body = json.dumps({"error_code": "X", "message": "an answer of the test's server"}).encode()
            self.send_response(told.status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    told.uri = f"http://127.0.0.1:{http.server_port}"
    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)  # so that variables that the sink sets are removed after the test
    yield told
    told.closing.set()
    http.shutdown()
    http.server_close()
    thread.join()


@pytest.mark.fault("MLflow answers 401 or 403")
@pytest.mark.parametrize("server", [401, 403], indirect=True)
def test_a_server_that_denies_access_is_refused_before_anything_starts(server: Server, tmp_path: Path) -> None:
    done = oec("run", "smoke", home=tmp_path / "home", MLFLOW_TRACKING_URI=server.uri)
    assert done.returncode == 2, done.stdout + done.stderr
    (message,) = done.stderr.splitlines()
    for part in ("MLFLOW_TRACKING_URI", server.uri, f"HTTP {server.status}", "MLFLOW_TRACKING_TOKEN"):
        assert part in message
    assert len(server.requests) == 1
    assert not (tmp_path / "home" / "ray").exists(), "Ray was started"
    assert not (tmp_path / "home" / "studies" / "smoke").exists()


@pytest.mark.parametrize("server", [200], indirect=True)
def test_the_check_sends_the_users_token(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "of-the-test")
    check_store(server.uri)
    assert server.authorization == ["Bearer of-the-test"]


@pytest.mark.fault("MLflow answers 500, or not at all")
@pytest.mark.parametrize("server", [500, None], indirect=True, ids=["fails", "does not answer"])
def test_a_failing_server_does_not_delay_the_start(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "CHECK_TIMEOUT_S", 0.2)
    check_store(server.uri)
    server.seen(1)
    assert len(server.requests) == 1, "the check must be sent only once"


@pytest.mark.fault("MLflow answers 500 or 403, or not at all")
@pytest.mark.parametrize("server", [500, 403, None], indirect=True, ids=["fails", "refuses", "does not answer"])
def test_a_failing_server_delays_nothing_and_gets_a_bounded_number_of_requests(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The sweep's calls return although a request hangs or fails. The thread then gives up, and ``sync`` reports it."""
    monkeypatch.setattr(mlflow_sink, "BACKOFF_S", (0.0, 0.01))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    home, uri = open_home(tmp_path), server.uri.replace("//", "//me:secret@")
    with Ledger(home.ledger("smoke"), "smoke", write=True) as ledger, caplog.at_level(logging.WARNING):
        ledger.plan([CELL])
        entry = ledger.entries[CELL.id]
        ledger.end(CELL.id, RESULT)
        sink = MlflowSink(uri, home, STUDY)
        server.seen(1)
        for _ in range(100):  # none of these waits: the thread is in its first request, or between two
            sink.on_start(entry)
            sink.on_row(entry, Row(1, 0.0, {}))
        sink.on_end(entry)
        sink.close(DEADLINE_S)
        assert not sink._thread.is_alive(), "the thread did not give up"
        attempts = len(server.requests)
        assert attempts == 2 * 3, "expected three attempts each to connect and to deliver"
        assert f"did not accept cell {CELL.id}" in caplog.text
        with pytest.raises(InvalidInput, match="does not accept study smoke") as refused:
            sync(uri, home, STUDY, ledger, tmp_path / "report")
        assert "secret" not in caplog.text + str(refused.value)
        assert len(server.requests) == attempts + 1
        assert not (home.study("smoke") / "delivered").exists()


@pytest.mark.fault("SIGKILL while MLflow's database is being created")
def test_a_database_is_created_completely_or_not_at_all(tmp_path: Path) -> None:
    uri, new = f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / ".mlflow.db-new"
    maker = multiprocessing.get_context("spawn").Process(target=create_database, args=(uri,))
    maker.start()
    while not new.exists() or new.stat().st_size < 200_000:  # its final size is about 600,000 bytes
        assert maker.is_alive(), "the database was complete before the process could be killed"
        maker.join(0.001)
    maker.kill()
    maker.join()
    assert not (tmp_path / "mlflow.db").exists()
    create_database(uri)
    assert [one.name for one in MlflowClient(uri).search_experiments()] == ["Default"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mlflow.db.lock", "mlflow.db"]
