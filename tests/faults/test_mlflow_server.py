"""A real MLflow server that dies during a study: training does not wait, and every result is delivered later."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.invariants import agree, ledger_of
from benchmarks.mlflow_server import Server
from benchmarks.study_run import NAME, Run
from tests.service.oec import oec

pytestmark = [pytest.mark.slow, pytest.mark.long]

DOWN_S = 60.0
SECRETS = ("a-password-of-this-test", "a-token-of-this-test-alone-0123456789")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "server"
    folder.mkdir()
    server = Server(folder)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Yields a folder for everything that Ray logs. Its path is short because Ray's sockets are in it."""
    with tempfile.TemporaryDirectory(prefix="oec-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture
def secret(server: Server, ray_folder: Path) -> dict[str, str]:
    """Returns the command's secret settings, which must not appear in any output."""
    uri = server.uri.replace("//", f"//somebody:{SECRETS[0]}@")
    return {"MLFLOW_TRACKING_URI": uri, "RAY_AUTH_TOKEN": SECRETS[1], "RAY_TMPDIR": str(ray_folder)}


@pytest.fixture
def running(long_study: Path, tmp_path: Path, secret: dict[str, str]) -> Iterator[Run]:
    run = Run(long_study, tmp_path / "home", **secret)
    yield run
    run.close()


@pytest.mark.fault("MLflow down for 60 s")
def test_a_minute_without_mlflow_delays_nothing_and_loses_nothing(
    running: Run, server: Server, long_undisturbed: dict[str, float | None]
) -> None:
    running.trains()
    server.kill()
    down = time.monotonic()
    running.until(
        lambda: ledger_of(running.home, NAME).counts()["finished"] == 2, "the end of training, with MLflow still down"
    )
    time.sleep(max(0.0, down + DOWN_S - time.monotonic()))  # the length of the outage is the fault
    server.start()
    said = running.ends()
    assert "not in MLflow yet" not in said
    agree(running.home, NAME, long_undisturbed, server.uri)


@pytest.mark.fault("MLflow down for the whole study")
def test_sync_delivers_what_the_study_could_not_and_no_secret_is_shown(
    running: Run, server: Server, secret: dict[str, str], ray_folder: Path, long_undisturbed: dict[str, float | None]
) -> None:
    """The server's address contains a password, and many messages contain the address. Neither the password nor Ray's
    token may appear in the output or in a file of the home, of MLflow's store and artifacts, or of Ray's logs."""
    running.until(lambda: "warm between cells" in running.log.read_text(), "a connection to Ray")
    server.kill()
    said = running.ends()
    assert "not in MLflow yet" in said
    assert f"run `oec sync {NAME}` once it works again" in said
    refused = oec("sync", NAME, home=running.home, **secret)
    assert refused.returncode == 2
    assert "is not reachable" in refused.stderr
    server.start()
    for _ in range(2):
        synced = oec("sync", NAME, home=running.home, **secret)
        assert synced.stdout.startswith("2 cells are in MLflow: "), synced.stderr
    agree(running.home, NAME, long_undisturbed, server.uri)
    files = [path for root in (running.home.parent, ray_folder) for path in root.rglob("*") if path.is_file()]
    assert {"report.html", "ledger.jsonl", "server.db", "raylet.out"} <= {path.name for path in files}
    shown = {str(path): path.read_bytes() for path in files} | {"said": f"{said}{refused}{synced}".encode()}
    found = [(where, secret) for where, what in shown.items() for secret in SECRETS if secret.encode() in what]
    assert not found
