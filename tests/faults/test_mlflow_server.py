"""A real MLflow server that dies in mid-study: training does not wait, and everything arrives later, identical."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.invariants import agree, ledger_of
from tests.faults.mlflow_server import Server
from tests.faults.running import NAME, Run
from tests.service.oec import oec

pytestmark = pytest.mark.slow

DOWN_S = 60.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "server"
    folder.mkdir()
    server = Server(folder)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def running(study: Path, tmp_path: Path, server: Server) -> Iterator[Run]:
    run = Run(study, tmp_path / "home", MLFLOW_TRACKING_URI=server.uri)
    yield run
    run.close()


@pytest.mark.fault("MLflow down for 60 s")
def test_a_minute_without_mlflow_costs_neither_time_nor_numbers(
    running: Run, server: Server, undisturbed: dict[str, float | None]
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
    agree(running.home, NAME, undisturbed, server.uri)


@pytest.mark.fault("MLflow down for the whole study")
def test_what_a_study_could_not_deliver_sync_does(
    running: Run, server: Server, undisturbed: dict[str, float | None]
) -> None:
    running.until(lambda: "cells at once" in running.log.read_text(), "a connection to Ray")
    server.kill()
    said = running.ends()
    assert "not in MLflow yet" in said
    assert f"run `oec sync {NAME}` when it is well again" in said
    refused = oec("sync", NAME, home=running.home, MLFLOW_TRACKING_URI=server.uri)
    assert refused.returncode == 2
    assert "is not reachable" in refused.stderr
    server.start()
    for _ in range(2):
        synced = oec("sync", NAME, home=running.home, MLFLOW_TRACKING_URI=server.uri)
        assert synced.stdout == "2 cells are in MLflow\n", synced.stderr
    agree(running.home, NAME, undisturbed, server.uri)
