"""Why Ray does not start: folders that it cannot use, and what its processes report before they exit."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from search_spaces.errors import InvalidInput
from service.cluster.ray_start import (
    check_folder,
    child_processes,
    failure_cause,
    folder_environment,
    permanent_error,
    temporary_folder,
)
from tests.faults.storage import fill, mounted, remount
from tests.service.oec import oec


def test_the_temporary_folder_is_the_one_that_ray_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    assert temporary_folder() == ("TMPDIR", Path("/tmp"))
    monkeypatch.setenv("TMPDIR", "/var/tmp")
    assert temporary_folder() == ("TMPDIR", Path("/var/tmp"))
    monkeypatch.setenv("RAY_TMPDIR", "/scratch")
    assert temporary_folder() == ("RAY_TMPDIR", Path("/scratch"))


def test_a_folder_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    check_folder("TMPDIR", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(InvalidInput, match=r"TMPDIR: '.*file' is not writable \(it is a file\).*set RAY_TMPDIR"):
        check_folder("TMPDIR", path)


def test_a_folder_without_room_or_read_only_is_refused(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "128m"):
        check_folder("TMPDIR", tmp_path / "small")
        fill(tmp_path / "small", leaving=2**20)
        with pytest.raises(
            InvalidInput, match=r"TMPDIR: '.*small' has 1 MiB free, and Ray needs 64 MiB there.*; make room"
        ):
            check_folder("TMPDIR", tmp_path / "small")
        remount(tmp_path / "small", "ro")
        with pytest.raises(InvalidInput, match="Read-only file system"):
            check_folder("TMPDIR", tmp_path / "small")


@pytest.mark.parametrize(
    ("length", "own", "expected"),
    [(39, "ray", True), (40, "ray", False), (26, "oec-ray-12345678", True), (27, "oec-ray-12345678", False)],
)
def test_a_long_tmpdir_of_a_batch_system_is_not_used(
    monkeypatch: pytest.MonkeyPatch, length: int, own: str, expected: bool
) -> None:
    """Ray puts the process id, up to seven digits, into the paths of its sockets, which are limited to 107 bytes."""
    folder = "/" + "t" * (length - 1)
    longest = f"{folder}/{own}/session_2026-11-29_05-37-33_123456_4194304/sockets/plasma_store"
    assert (len(longest) <= 107) == expected
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", folder)
    assert temporary_folder(own) == ("TMPDIR", Path(folder if expected else "/tmp"))
    if own == "ray":  # Python's own sockets, such as those of multiprocessing, are in TMPDIR even if RAY_TMPDIR is set
        changed = {} if expected else {"TMPDIR": "/short"}
        assert folder_environment(Path("/short")) == {"RAY_TMPDIR": "/short"} | changed


def test_a_path_that_is_too_long_ends_the_command_before_the_first_attempt(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 90)
    long.mkdir()
    done = oec("run", "smoke", home=tmp_path / "home", RAY_TMPDIR=str(long))
    assert done.returncode == 2, done.stdout + done.stderr
    assert "starting Ray on " not in done.stdout
    (message,) = done.stderr.splitlines()
    assert message.startswith(f"oec: RAY_TMPDIR: '{long}' is too long: the path of a Ray socket in it has ")
    assert message.endswith("set RAY_TMPDIR to a folder with a short path, such as /tmp")


GCS = """Failed to start GCS.  Last 1 lines of error files:
[2026-11-28 23:11:48,423 C 16944 16944] (gcs_server) grpc_server.cc:134:  An unexpected system state has occurred. \
You have likely discovered a bug in Ray. Please report this issue at https://github.com/ray-project/ray/issues and \
we'll work with you to fix it. Check failed: server_ Failed to start the grpc server. The specified port is 23456.

.Please check /tmp/ray/session/logs/gcs_server.out for details. Last connection error: None"""
RAYLET = """[2026-11-28 23:12:32,188 E 17341 17351] (raylet) dlmalloc.cc:215: mmap failed with error: \
Cannot allocate memory
[2026-11-28 23:12:32,234 C 17341 17351] (raylet) plasma_allocator.cc:79:  An unexpected system state has occurred. \
You have likely discovered a bug in Ray. Check failed: allocation.has_value() PlasmaAllocator initialization failed.
*** StackTrace Information ***
/ray/core/src/ray/raylet/raylet(+0xff770a) [0x56437bd6770a] ray::operator<<()
"""
DASHBOARD = """
The last 20 lines of /tmp/ray/session/logs/dashboard.log (it contains the error message from the dashboard):
  File "/ray/dashboard/http_server_head.py", line 71, in setup_static_dir
    raise dashboard_utils.FrontendNotFoundError(
ray.dashboard.utils.FrontendNotFoundError: [Errno 2] Dashboard build directory not found. If installing from source, \
please follow the additional steps: '/ray/dashboard/client/build'"""
TIMED_OUT = "The current node timed out during startup. This could happen because some of the raylet failed to startup."
NOISE = "[2026-11-28 23:12:32,188 E 17341 17351] (raylet) reporter.cc:9: cannot reach the agent yet\n"


@pytest.mark.parametrize(
    ("said", "logged", "expected", "refused"),
    [
        (GCS, "", "server_ Failed to start the grpc server. The specified port is 23456.", None),
        (TIMED_OUT, "", None, None),
        (TIMED_OUT, NOISE, None, None),
        (
            TIMED_OUT,
            RAYLET,
            "mmap failed with error: Cannot allocate memory; "
            "allocation.has_value() PlasmaAllocator initialization failed.",
            "means that there is not enough memory for Ray",
        ),
        (
            DASHBOARD,
            "",
            "ray.dashboard.utils.FrontendNotFoundError: [Errno 2] Dashboard build directory not found. If installing "
            "from source, please follow the additional steps: '/ray/dashboard/client/build'",
            "ray: '/ray/dashboard/client/build' cannot be read by Ray (Dashboard build directory not found); reinstall",
        ),
    ],
)
def test_the_cause_in_one_line(
    tmp_path: Path, said: str, logged: str, expected: str | None, refused: str | None
) -> None:
    """``said`` and ``logged`` are real output of Ray, shortened."""
    (tmp_path / "raylet.err").write_text(logged)
    found = failure_cause(said, [tmp_path])
    assert found == expected
    error = permanent_error(found or said, "TMPDIR", Path("/tmp"))
    assert (refused in str(error)) if refused else error is None, error


@pytest.mark.parametrize(
    ("words", "field", "problem"),
    [
        ("[Errno 28] No space left on device: '/tmp/ray/session_1/logs'", "TMPDIR", "No space left on device"),
        ("[Errno 13] Permission denied: '/tmp/ray'", "TMPDIR", "Permission denied: /tmp/ray"),
        ("[Errno 13] Permission denied: '/opt/ray/core/src/ray/gcs/gcs_server'", "ray", "Permission denied"),
        ("[Errno 2] No such file or directory: '/tmp/venv/ray/raylet'", "ray", "No such file or directory"),
        ("[Errno 12] Cannot allocate memory", "ray", "not enough memory"),
        ("ModuleNotFoundError: No module named 'aiohttp'", "ray", "'aiohttp' cannot be imported"),
        ("The configured object store size (13.0 GB) exceeds /dev/shm size (0.1 GB).", "ray", "/dev/shm has no room"),
        ("[Errno 98] Address already in use", None, None),
        ("The current node timed out during startup.", None, None),
    ],
)
def test_errors_that_a_retry_cannot_fix(words: str, field: str | None, problem: str | None) -> None:
    error = permanent_error(words, "TMPDIR", Path("/tmp"))
    assert (error and error.field) == field
    assert problem is None or problem in str(error)


def test_child_processes_are_those_that_are_running() -> None:
    before = child_processes()
    with subprocess.Popen(["sleep", "60"]) as started:
        assert child_processes() - before == {started.pid}
        started.kill()
    assert started.pid not in child_processes()
