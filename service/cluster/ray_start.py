"""Why Ray does not start on this machine, and whether another try could change that."""

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

ROOM = 64 * 2**20
"""Free bytes that Ray's temporary folder must have: with less, its processes die as they write their first logs, and
Ray then ends the process that waits for them."""
POLL_S, STILL_S, END_S = 0.5, 30.0, 5.0
"""Between two looks at the dashboard's log; between two reports that Ray is still starting; for a process to end."""

FATAL = re.compile(r"^\[[^\]]* (?P<level>[CE]) \d+ \d+\] \(\w+\) [\w.]+:\d+: +(?P<text>.*)$", re.MULTILINE)
"""A line of a log of Ray's C++ processes: an error, or (``C``) the check whose failure ended the process."""
BOILERPLATE = re.compile(r"An unexpected system state has occurred\..*Check failed: ")
EXCEPTION = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception)\b.*$", re.MULTILINE)
"""The last line of a Python traceback."""
DASHBOARD_FAILED = "failed with the following error"
"""What the dashboard logs before it ends, or, when files of its page are missing, before it hangs."""
ERROR_FILES = ("gcs_server.err", "raylet.err", "dashboard.err")
MAX_CHARACTERS = 300

SHORTER = "set RAY_TMPDIR to a folder with a short path, such as /tmp"
REINSTALL = "reinstall Ray: pip install --force-reinstall 'ray[default,tune,train]'"
MEMORY = "free memory, or raise the limit of this process (ulimit -v, the container's), and run the same command again"
SHM = "free or enlarge /dev/shm (--shm-size of a container), or set RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE=1"


def temporary_folder() -> tuple[str, Path]:
    """The environment variable that chooses Ray's temporary folder, and that folder."""
    name = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
    return name, Path(os.environ.get(name) or "/tmp")


def check_folder(name: str, folder: Path) -> None:
    """Make sure that Ray can write to its temporary folder.

    Raises:
        InvalidInput: it cannot be written, or has no room.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free
    except OSError as error:
        reason = "it is a file" if isinstance(error, FileExistsError) else error.strerror
        problem = f"cannot be written ({reason}), and Ray keeps its sockets and logs there"
        raise InvalidInput(name, str(folder), problem, "set RAY_TMPDIR to a folder that can be written") from error
    if free < ROOM:
        problem = f"has {free / 2**20:.0f} MiB free, and Ray needs {ROOM / 2**20:.0f} there for its sockets and logs"
        raise InvalidInput(name, str(folder), problem, "make room, or set RAY_TMPDIR to another folder")


def cause(said: str, logs: Iterable[Path] = ()) -> str | None:
    """Why a process of Ray ended, in its own words; None if nothing tells.

    Args:
        said: the exception's message, or what ``ray start`` printed.
        logs: the folders with the logs of the processes, which are read where ``said`` names no cause.
    """
    texts = [said, *(_tail(folder / name) for folder in logs for name in ERROR_FILES)]
    return next(filter(None, map(_fatal, texts)), None)


def line(words: str) -> str:
    """``words`` as a line for a person; some messages of Ray fill a screen."""
    return textwrap.shorten(words, MAX_CHARACTERS, placeholder=" ...")


def _fatal(text: str) -> str | None:
    """The last error that ended a process, by its log or its traceback."""
    errors = list(FATAL.finditer(text))
    if any(error["level"] == "C" for error in errors):
        # The error just before the failed check often says more: "mmap failed with error: Cannot allocate memory".
        return "; ".join(BOILERPLATE.sub("", error["text"]) for error in errors[-2:])
    exceptions = EXCEPTION.findall(text)
    return exceptions[-1] if exceptions else None


def _tail(path: Path, size: int = 20_000) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - size))
        return file.read().decode(errors="replace")


def permanent(words: str, name: str, folder: Path) -> InvalidInput | None:
    """The error for a cause that another try cannot mend; None where one can.

    Args:
        words: see ``cause``.
        name: the field that chooses Ray's temporary folder.
        folder: Ray's temporary folder.
    """
    if found := re.search(r"AF_UNIX path length cannot exceed (\d+) bytes: (\S+)", words):
        problem = f"is too long: a socket of Ray below it has {len(found[2].encode())} bytes in its path, of {found[1]}"
        return InvalidInput(name, str(folder), problem, SHORTER)
    if found := re.search(r"No module named '([\w.]+)'|ImportError: (.+)|with missing packages", words):
        return InvalidInput("ray", found[1] or found[2] or "dashboard", "cannot be imported by Ray", REINSTALL)
    if re.search(r"/dev/shm|[Pp]lasma.*(does not exist|No space left)", words) and "Cannot allocate" not in words:
        return InvalidInput("ray", line(words), "means that /dev/shm has no room for Ray's object store", SHM)
    if re.search(r"Cannot allocate memory|bad_alloc|MemoryError|amount of memory|object store memory", words):
        return InvalidInput("ray", line(words), "means that there is not enough memory for Ray", MEMORY)
    if found := re.search(r"\[Errno \d+\] (.+?)(?:: '([^']+)')?$", words):
        problem, path = found[1].partition(". ")[0], found[2]
        if path and (Path(path) == folder or Path(path).is_relative_to(folder / "ray")):
            problem = f"cannot be used by Ray ({problem}: {path})"
            return InvalidInput(name, str(folder), problem, "make room or grant access there, or set RAY_TMPDIR")
        if path and re.search(r"No such file|not found|Permission denied", problem):
            return InvalidInput("ray", path, f"cannot be read by Ray ({problem})", REINSTALL)
        if "No space left" in problem:
            return InvalidInput(name, str(folder), f"is full ({problem})", "make room, or set RAY_TMPDIR")
    return None


def dashboard_error(logs: Path) -> str | None:
    """Why the dashboard does not come up, if it has said so.

    It does not always end then, and Ray would wait minutes for its address.
    """
    text = _tail(logs / "dashboard.log")
    return _fatal(text) if DASHBOARD_FAILED in text else None


class StartWatch(BackgroundThread):
    """Runs beside ``ray.init``: says that it is still starting, and ends a dashboard that has failed but hangs, at
    which ``ray.init`` raises. ``end`` ends what a failed start leaves, which ``ray.shutdown`` does not know of."""

    def __init__(self, folder: Path, report: Callable[[str], None]) -> None:
        """
        Args:
            folder: Ray's temporary folder.
            report: gets a line for a person.
        """
        super().__init__("ray-start-watch")
        self._folder, self._report = folder / "ray", report
        self._others, self._before = children(), set(self._sessions())

    def logs(self) -> list[Path]:
        """Folders with the logs of the processes that were started since."""
        return [session / "logs" for session in self._sessions() if session not in self._before]

    def end(self) -> None:
        """End the processes that were started since and wait for their end."""
        for sign in (signal.SIGTERM, signal.SIGKILL):
            for pid in self._started():
                os.kill(pid, sign)
            wait_until(lambda: not self._started(), END_S, 0.1)

    def _sessions(self) -> list[Path]:
        return sorted(self._folder.glob(f"session_*_{os.getpid()}"))

    def _started(self) -> set[int]:
        return children() - self._others

    def _run(self) -> None:
        began = time.monotonic()
        told = 0.0
        while not self._over.wait(POLL_S):
            took = time.monotonic() - began
            if took - told >= STILL_S:
                told = took
                where = "".join(f"; its logs: {logs}" for logs in self.logs())
                self._report(f"Ray is still starting after {took:.0f} s{where}")
            if any(map(dashboard_error, self.logs())):
                for pid in self._started():
                    if "dashboard.py" in Path(f"/proc/{pid}/cmdline").read_text(errors="replace"):
                        os.kill(pid, signal.SIGKILL)


def children() -> set[int]:
    """Running processes that this one has started; empty where the system does not show them in ``/proc``."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
        if int(parent) == os.getpid() and state != "Z":
            found.add(int(stat.parent.name))
    return found
