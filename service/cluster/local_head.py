"""A Ray head of this machine that outlives whoever started it: the local cluster of ``oec serve``.

``<home>/service/ray.json`` says where it is. A service that comes back finds it there, and several share it.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock
from pydantic import ValidationError

from search_spaces.cell import Frozen
from search_spaces.errors import InvalidInput
from service.background import wait_until
from service.cluster import connection as cluster
from service.cluster import ray_start
from service.cluster.connection import LOOPBACK, free_port
from service.home.layout import Home
from trainers.storage.files import write_atomically

UP_S = 180.0
"""How long Ray's processes may take to start; 10 to 20 seconds on two cores that have nothing else to do."""
DOWN_S = 30.0
LOOK_S = 0.2
LOG = "start.log"

logger = logging.getLogger(__name__)


class Head(Frozen):
    """The head as it is noted in the home."""

    pid: int
    began: int
    """Clock ticks from the start of the machine to that of the process: with the pid, which process it is."""
    dashboard: str
    folder: Path
    """Of Ray's files. Not in the home, whose path may be too long for Ray's sockets."""

    @property
    def alive(self) -> bool:
        return began(self.pid) == self.began


def find_or_start(home: Home, report: Callable[[str], None] = logger.info) -> Head:
    """The head of this home, once it answers.

    Args:
        report: gets a line when one is started, and while it is starting.

    Raises:
        InvalidInput: Ray did not start; its last words.
    """
    note = home.service / "ray.json"
    with FileLock(note.with_suffix(".lock")):
        head = noted(home)
        if head is None or not head.alive:
            head = start(home)
            write_atomically(note, head.model_dump_json(indent=2))  # before it is up: nobody may lose it
            report(f"starting Ray on {cluster.local_cores()} cores of this machine; its log: {head.folder / LOG}")
        wait_for(head, report)
    return head


def noted(home: Home) -> Head | None:
    """What the home says of its head, which may have died since; None if it never had one."""
    try:
        return Head.model_validate_json((home.service / "ray.json").read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        remedy = "remove the file; a Ray that still runs is then nobody's and has to be ended by hand"
        raise InvalidInput("ray", str(home.service / "ray.json"), "is damaged", remedy) from error


def stop(home: Home) -> bool:
    """End the head of this home and what runs on it; whether there was one."""
    head = noted(home)
    if head is None or not head.alive:
        return False
    end(head)
    shutil.rmtree(head.folder, ignore_errors=True)
    return True


def end(head: Head) -> None:
    """By SIGTERM, on which ``ray start --block`` ends all that it started."""
    os.kill(head.pid, signal.SIGTERM)
    if not wait_until(lambda: not head.alive, DOWN_S, LOOK_S):
        os.killpg(head.pid, signal.SIGKILL)


def start(home: Home) -> Head:
    """``ray start --head`` in a session of its own, on loopback, with ports that are free and Ray's token.

    Raises:
        InvalidInput: Ray cannot keep its files, see ``ray_start.check_folder``.
    """
    cluster.configure()
    name, place = ray_start.temporary_folder()
    ray_start.check_folder(name, place)
    cluster.private_token()
    folder = Path(tempfile.mkdtemp(prefix="oec-ray-", dir=place))
    dashboard = free_port()
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
    command += ["--node-ip-address", LOOPBACK, "--port", str(free_port()), "--temp-dir", str(folder)]
    command += ["--include-dashboard", "true", "--dashboard-host", LOOPBACK, "--dashboard-port", str(dashboard)]
    command += ["--dashboard-agent-listen-port", str(free_port()), "--ray-client-server-port", str(free_port())]
    command += ["--min-worker-port", "0", "--max-worker-port", "0", "--num-cpus", str(cluster.local_cores())]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # where jobs find `oec`
    environment = {**os.environ, "PATH": path, "OEC_HOME": str(home.path)}
    environment.pop("RAY_ADDRESS", None)
    with (folder / LOG).open("wb") as out:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            cwd=folder,
            start_new_session=True,
        )
    at = f"http://{LOOPBACK}:{dashboard}"
    return Head(pid=process.pid, began=began(process.pid) or 0, dashboard=at, folder=folder)


def wait_for(head: Head, report: Callable[[str], None]) -> None:
    """Until it answers.

    Raises:
        InvalidInput: it has ended, or its dashboard failed, or it does not answer within ``UP_S``; it is then ended.
    """
    started = told = time.monotonic()
    logs = head.folder / "session_latest" / "logs"
    while not answers(head.dashboard):
        now = time.monotonic()
        failed = ray_start.dashboard_error(logs)
        if failed or not head.alive or now - started > UP_S:
            if head.alive:
                end(head)
            log = head.folder / LOG
            said = log.read_text(errors="replace").strip() if log.is_file() else ""
            words = failed or ray_start.cause(said, [logs]) or said.rpartition("\n")[2] or "it said nothing"
            name, place = ray_start.temporary_folder()
            if refusal := ray_start.permanent(words, name, place):
                raise refusal
            remedy = "see that the machine has memory and processor time to spare, or give --cluster"
            raise InvalidInput("--cluster", None, f"no Ray started here ({ray_start.line(words)})", remedy)
        if now - told >= ray_start.STILL_S:
            told = now
            report(f"Ray is still starting after {now - started:.0f} s; its logs: {logs}")
        time.sleep(LOOK_S)


def answers(dashboard: str) -> bool:
    try:
        cluster.reach(dashboard.removeprefix("http://"))
    except OSError:
        return False
    return True


def began(pid: int) -> int | None:
    """When a process began, in clock ticks since the machine did; None if there is none, or it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else int(fields[19])
