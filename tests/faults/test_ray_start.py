"""Startup failures of Ray with real causes: what the user is told, what is fatal, and what is retried."""

from __future__ import annotations

import importlib.util
import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.invariants import nothing_left_over
from tests.service.oec import environment, oec
from tests.timing import within

pytestmark = pytest.mark.slow

TAKEN = """
from service.cluster import connection, ray_start

given, connection.free_port = [{port}], lambda take=connection.free_port: given.pop() if given else take()
connection.connect(None, print)
commands = [open(f"/proc/{{pid}}/cmdline").read() for pid in ray_start.child_processes()]
print("coordinators:", sum("gcs_server" in command.split("\\0")[0] for command in commands))
"""
"""A program that starts Ray; the first attempt uses a port that was taken after it was found free."""


def without_the_dashboards_page(folder: Path) -> Path:
    """Returns a folder for PYTHONPATH with symlinks to the installed Ray, except for the dashboard's web page."""
    spec = importlib.util.find_spec("ray")
    assert spec
    assert spec.origin
    installed, copy = Path(spec.origin).parent, folder / "ray"
    (copy / "dashboard").mkdir(parents=True)
    for path in (*installed.iterdir(), *(installed / "dashboard").iterdir()):
        if path.name not in ("dashboard", "client"):
            (copy / path.relative_to(installed)).symlink_to(path)
    return folder


@pytest.mark.fault("files of Ray's dashboard missing")
def test_a_missing_file_of_the_dashboard_is_reported_at_the_first_attempt(tmp_path: Path) -> None:
    """Without these files Ray's dashboard process hangs, and Ray itself would wait three minutes for it."""
    home, began = tmp_path / "home", time.monotonic()
    done = oec("run", "smoke", home=home, PYTHONPATH=f"{without_the_dashboards_page(tmp_path)}:{Path.cwd()}")
    assert done.returncode == 2, done.stdout + done.stderr
    (message,) = done.stderr.splitlines()
    missing = tmp_path / "ray" / "dashboard" / "client" / "build"
    assert message.startswith(f"oec: ray: '{missing}' cannot be read by Ray (Dashboard build directory not found); ")
    assert done.stdout.count("starting Ray on ") == 1
    assert time.monotonic() - began < within(60)
    nothing_left_over(home)


@pytest.mark.fault("no memory for Ray's object store")
def test_too_little_memory_is_reported_at_the_first_attempt(tmp_path: Path) -> None:
    little = json.dumps({"object_store_memory": 1})
    done = oec("run", "smoke", home=tmp_path / "home", RAY_OVERRIDE_RESOURCES=little)
    assert done.returncode == 2, done.stdout + done.stderr
    (message,) = done.stderr.splitlines()
    assert "object store memory usage at 1 bytes" in message
    assert "means that there is not enough memory for Ray; free memory" in message
    assert done.stdout.count("starting Ray on ") == 1


@pytest.mark.fault("the port of Ray's head taken")
def test_a_taken_port_is_reported_and_retried(tmp_path: Path) -> None:
    """The processes of the first attempt have ended before the second one starts."""
    with socket.create_server(("", 0)) as taken:
        program = TAKEN.format(port=taken.getsockname()[1])
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if not line.startswith("Ray is still starting after ")]
    first, failed, second, left = lines
    assert first.startswith("starting Ray on ")
    assert failed.startswith("Ray did not start: server_ Failed to start the grpc server. The specified port is ")
    assert second == f"{first}, attempt 2 of 5"
    assert left == "coordinators: 1"
