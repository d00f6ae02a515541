"""Why Ray does not start on this machine, and whether another attempt could help."""

from __future__ import annotations

import os
import re
import shutil
import signal
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from search_spaces.errors import InvalidInput
from service.background import BackgroundThread, wait_until

MIN_FREE_BYTES = 64 * 2**20
"""Free space that Ray's temporary folder must have. With less, Ray's processes die while they write their first logs,
and Ray then ends the process that waits for them."""
MAX_SOCKET_BYTES = 107
"""The longest path of a Unix socket on Linux; on macOS it is 103."""
SOCKET = "/session_2026-01-01_00-00-00_123456_{pid}/sockets/plasma_store"
"""The longest path of a socket within a folder of Ray's own, by default ``ray`` in the temporary folder."""
POLL_S = 0.5
"""How often the dashboard's log is read."""
STILL_STARTING_S = 30.0
"""How often a user is told that Ray is still starting."""

LOG_ERROR = re.compile(r"^\[[^\]]* (?P<level>[CE]) \d+ \d+\] \(\w+\) [\w.]+:\d+: +(?P<text>.*)$", re.MULTILINE)
"""A line in a log of Ray's C++ processes: an error (``E``), or the failed check that ended the process (``C``)."""
BOILERPLATE = re.compile(r"An unexpected system state has occurred\..*Check failed: ")
EXCEPTION = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception)\b.*$", re.MULTILINE)
"""The last line of a Python traceback."""

REINSTALL_REMEDY = "reinstall Ray: pip install --force-reinstall 'ray[default,tune,train]'"
MEMORY_REMEDY = "free memory or raise the limit (ulimit -v, or the container's), and run the same command again"
SHM_REMEDY = "free or enlarge /dev/shm (--shm-size for a container), or set RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE=1"


def temporary_folder(own: str = "ray") -> tuple[str, Path]:
    """The environment variable that selects Ray's temporary folder, and that folder.

    Batch systems set ``TMPDIR`` to a folder whose path is often too long for Ray's sockets; then it is ``/tmp``.

    Args:
        own: the name of the folder that Ray will create in it.
    """
    name = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
    folder = Path(os.environ.get(name) or "/tmp")
    is_short = _socket_bytes(folder / own, pid=1_000_000) <= MAX_SOCKET_BYTES
    return name, folder if name == "RAY_TMPDIR" or is_short else Path("/tmp")


def folder_environment(folder: Path) -> dict[str, str]:
    """Environment variables that give Ray's processes this temporary folder. Python's own sockets are in ``TMPDIR``."""
    temporary = os.environ.get("TMPDIR")
    too_long = temporary is not None and _socket_bytes(Path(temporary) / "ray", pid=1_000_000) > MAX_SOCKET_BYTES
    return {"RAY_TMPDIR": str(folder)} | ({"TMPDIR": str(folder)} if too_long else {})


def _socket_bytes(folder: Path, pid: int) -> int:
    return len(os.fsencode(folder)) + len(SOCKET.format(pid=pid))


def check_path(name: str, folder: Path) -> None:
    """Check that the path of Ray's temporary folder leaves room for its sockets.

    Raises:
        InvalidInput: it is too long.
    """
    if (length := _socket_bytes(folder / "ray", pid=1)) > MAX_SOCKET_BYTES:
        problem = f"is too long: the path of a Ray socket in it has {length} bytes, and the limit is {MAX_SOCKET_BYTES}"
        raise InvalidInput(name, str(folder), problem, "set RAY_TMPDIR to a folder with a short path, such as /tmp")


def check_folder(name: str, folder: Path) -> None:
    """Check that Ray can write to its temporary folder.

    Raises:
        InvalidInput: the folder is not writable, or its disk is almost full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free
    except OSError as error:
        reason = "it is a file" if isinstance(error, FileExistsError) else error.strerror
        problem = f"is not writable ({reason}), and Ray keeps its sockets and logs there"
        raise InvalidInput(name, str(folder), problem, "set RAY_TMPDIR to a writable folder") from error
    if free < MIN_FREE_BYTES:
        needed = f"{MIN_FREE_BYTES / 2**20:.0f} MiB"
        problem = f"has {free / 2**20:.0f} MiB free, and Ray needs {needed} there for its sockets and logs"
        raise InvalidInput(name, str(folder), problem, "make room, or set RAY_TMPDIR to another folder")


def failure_cause(output: str, log_folders: Iterable[Path] = ()) -> str | None:
    """The error that ended a process of Ray, in Ray's own words; None if it is unknown.

    Args:
        output: the message of the exception, or what ``ray start`` printed.
        log_folders: the folders with the logs of the processes, which are read if ``output`` has no error.
    """
    files = ("gcs_server.err", "raylet.err", "dashboard.err")
    texts = [output, *(_tail(folder / name) for folder in log_folders for name in files)]
    return next(filter(None, map(_last_error, texts)), None)


def one_line(message: str) -> str:
    """Shorten a message to one line; some messages of Ray fill a screen."""
    return textwrap.shorten(message, 300, placeholder=" ...")


def _last_error(text: str) -> str | None:
    """The last error that ended a process, from its log or its traceback."""
    errors = list(LOG_ERROR.finditer(text))
    if any(error["level"] == "C" for error in errors):
        # The error just before the failed check is often clearer: "mmap failed with error: Cannot allocate memory".
        return "; ".join(BOILERPLATE.sub("", error["text"]) for error in errors[-2:])
    exceptions = EXCEPTION.findall(text)
    return exceptions[-1] if exceptions else None


def _tail(path: Path, size: int = 20_000) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - size))
        return file.read().decode(errors="replace")


def permanent_error(cause: str, name: str, folder: Path) -> InvalidInput | None:
    """The error to raise for a cause that another attempt cannot fix; None if another attempt may help.

    Args:
        cause: see ``failure_cause``.
        name: the environment variable that selects Ray's temporary folder.
        folder: Ray's temporary folder.
    """
    if match := re.search(r"AF_UNIX path length cannot exceed (\d+) bytes: (\S+)", cause):
        length, limit = len(match[2].encode()), match[1]
        problem = f"is too long: the path of a Ray socket in it has {length} bytes, and the limit is {limit}"
        return InvalidInput(name, str(folder), problem, "set RAY_TMPDIR to a folder with a short path, such as /tmp")
    if match := re.search(r"No module named '([\w.]+)'|ImportError: (.+)|with missing packages", cause):
        return InvalidInput("ray", match[1] or match[2] or "dashboard", "cannot be imported by Ray", REINSTALL_REMEDY)
    if re.search(r"/dev/shm|[Pp]lasma.*(does not exist|No space left)", cause) and "Cannot allocate" not in cause:
        problem = "means that /dev/shm has no room for Ray's object store"
        return InvalidInput("ray", one_line(cause), problem, SHM_REMEDY)
    if re.search(r"Cannot allocate memory|bad_alloc|MemoryError|amount of memory|object store memory", cause):
        return InvalidInput("ray", one_line(cause), "means that there is not enough memory for Ray", MEMORY_REMEDY)
    if match := re.search(r"\[Errno \d+\] (.+?)(?:: '([^']+)')?$", cause):
        problem, path = match[1].partition(". ")[0], match[2]
        if path and (Path(path) == folder or Path(path).is_relative_to(folder / "ray")):
            problem = f"cannot be used by Ray ({problem}: {path})"
            return InvalidInput(name, str(folder), problem, "make room or grant access there, or set RAY_TMPDIR")
        if path and re.search(r"No such file|not found|Permission denied", problem):
            return InvalidInput("ray", path, f"cannot be read by Ray ({problem})", REINSTALL_REMEDY)
        if "No space left" in problem:
            return InvalidInput(name, str(folder), f"is full ({problem})", "make room, or set RAY_TMPDIR")
    return None


def start_error(field: str, cause: str, remedy: str) -> InvalidInput:
    """The error to raise when no further attempt to start Ray is made."""
    problem = f"could not start a local Ray cluster ({one_line(cause)})"
    return InvalidInput(field, None, problem, f"check that the machine has free memory and CPU time, {remedy}")


def dashboard_error(logs: Path) -> str | None:
    """The error with which the dashboard failed to start; None if it has logged none.

    If files of its web page are missing, it hangs after that error, and Ray would wait minutes for its address.
    """
    text = _tail(logs / "dashboard.log")
    return _last_error(text) if "failed with the following error" in text else None


class StartWatch(BackgroundThread):
    """Runs during ``ray.init``: reports that Ray is still starting, and kills a dashboard that has failed and hangs, so
    that ``ray.init`` raises. ``terminate`` ends the processes of a failed start that ``ray.shutdown`` does not know.

    ``folder`` is Ray's temporary folder, and ``log`` receives one line for the user at a time.
    """

    def __init__(self, folder: Path, log: Callable[[str], None]) -> None:
        super().__init__("ray-start-watch")
        self._folder, self._log = folder / "ray", log
        self._earlier_processes, self._earlier_sessions = child_processes(), set(self._sessions())

    def log_folders(self) -> list[Path]:
        """The folders with the logs of the processes that this start has created."""
        return [session / "logs" for session in self._sessions() if session not in self._earlier_sessions]

    def terminate(self) -> None:
        """End the processes that this start has created, and wait until they have exited."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in self._processes():
                os.kill(pid, number)
            wait_until(lambda: not self._processes(), 5.0, 0.1)

    def _sessions(self) -> list[Path]:
        return sorted(self._folder.glob(f"session_*_{os.getpid()}"))

    def _processes(self) -> set[int]:
        return child_processes() - self._earlier_processes

    def _run(self) -> None:
        start = time.monotonic()
        last_notice_s = 0.0
        while not self._over.wait(POLL_S):
            elapsed_s = time.monotonic() - start
            if elapsed_s - last_notice_s >= STILL_STARTING_S:
                last_notice_s = elapsed_s
                logs = "".join(f"; logs: {folder}" for folder in self.log_folders())
                self._log(f"Ray is still starting after {elapsed_s:.0f} s{logs}")
            if any(map(dashboard_error, self.log_folders())):
                for pid in self._processes():
                    if "dashboard.py" in Path(f"/proc/{pid}/cmdline").read_text(errors="replace"):
                        os.kill(pid, signal.SIGKILL)


def child_processes() -> set[int]:
    """The running child processes of this one; empty on a system without ``/proc``."""
    pids = (int(folder.name) for folder in Path("/proc").glob("[0-9]*"))
    return {pid for pid in pids if (stat := process_stat(pid)) and int(stat[1]) == os.getpid()}


def process_stat(pid: int) -> list[str] | None:
    """The fields of ``/proc/PID/stat`` that follow the name; None if the process has exited or never existed."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else fields
