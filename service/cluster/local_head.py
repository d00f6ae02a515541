"""The local cluster of ``oec serve``: a Ray head on this machine that keeps running after the service has ended.

``<home>/service/ray.json`` records it, so a restarted service finds it, and several services share it.
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
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import ValidationError

from search_spaces.errors import InvalidInput
from search_spaces.frozen import Frozen
from service.background import wait_until
from service.cluster import ray_start
from service.cluster.connection import LOOPBACK, check_port, configure_ray, ensure_private_token, free_port, local_cores
from service.home.layout import Home
from trainers.storage.files import write_atomically

START_TIMEOUT_S = 180.0
"""How long Ray's processes may take to start. On two idle cores they take 10 to 20 seconds."""
STOP_TIMEOUT_S = 30.0
POLL_S = 0.2
LOG = "start.log"

logger = logging.getLogger(__name__)


class Head(Frozen):
    """The record of the head in the home."""

    pid: int
    start_ticks: int
    """When the process started, in clock ticks since boot. With the pid, it identifies the process."""
    dashboard: str
    folder: Path
    """The folder of Ray's files. It is outside the home, whose path may be too long for Ray's sockets."""

    @property
    def is_alive(self) -> bool:
        return process_start_ticks(self.pid) == self.start_ticks


def find_or_start(home: Home, log: Callable[[str], None] = logger.info) -> Head:
    """Return the head of this home once it answers; start it if none runs.

    Args:
        log: receives a line when a head starts, and while it is starting.

    Raises:
        InvalidInput: Ray did not start; the message has the reason.
    """
    record = home.service / "ray.json"
    with FileLock(record.with_suffix(".lock")):
        head = read_head(home)
        if head is None or not head.is_alive:
            head = start_head(home)
            write_atomically(record, head.model_dump_json(indent=2))  # before it is ready, so that it is never orphaned
            log(f"starting Ray on {local_cores()} cores of this machine; log: {head.folder / LOG}")
        wait_until_ready(head, log)
    return head


def read_head(home: Home) -> Head | None:
    """The head that the home records, which may have died since; None if it never had one."""
    record = home.service / "ray.json"
    try:
        return Head.model_validate_json(record.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        remedy = "delete the file; if its Ray head still runs, end that process yourself"
        raise InvalidInput("ray", str(record), "is damaged", remedy) from error


def stop_head(home: Home) -> bool:
    """End the head of this home and everything that runs on it; return whether there was one."""
    head = read_head(home)
    if head is None or not head.is_alive:
        return False
    terminate(head)
    shutil.rmtree(head.folder, ignore_errors=True)
    return True


def terminate(head: Head) -> None:
    """Send SIGTERM, on which ``ray start --block`` ends all processes that it has started."""
    os.kill(head.pid, signal.SIGTERM)
    if not wait_until(lambda: not head.is_alive, STOP_TIMEOUT_S, POLL_S):
        os.killpg(head.pid, signal.SIGKILL)


def start_head(home: Home) -> Head:
    """Run ``ray start --head`` in a session of its own, on loopback, with free ports and Ray's token."""
    configure_ray()
    name, parent = ray_start.temporary_folder("oec-ray-12345678")
    ray_start.check_path(name, parent)
    ray_start.check_folder(name, parent)
    ensure_private_token()
    folder = Path(tempfile.mkdtemp(prefix="oec-ray-", dir=parent))
    dashboard_port = free_port()
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
    command += ["--node-ip-address", LOOPBACK, "--port", str(free_port()), "--temp-dir", str(folder)]
    command += ["--include-dashboard", "true", "--dashboard-host", LOOPBACK, "--dashboard-port", str(dashboard_port)]
    command += ["--dashboard-agent-listen-port", str(free_port()), "--ray-client-server-port", str(free_port())]
    command += ["--min-worker-port", "0", "--max-worker-port", "0", "--num-cpus", str(local_cores())]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # where jobs find `oec`
    environment = {**os.environ, **ray_start.folder_environment(parent), "PATH": path, "OEC_HOME": str(home.path)}
    environment.pop("RAY_ADDRESS", None)
    with (folder / LOG).open("wb") as log_file:
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log_file, "stderr": log_file}
        process = subprocess.Popen(command, env=environment, cwd=folder, start_new_session=True, **streams)
    dashboard = f"http://{LOOPBACK}:{dashboard_port}"
    start_ticks = process_start_ticks(process.pid) or 0
    return Head(pid=process.pid, start_ticks=start_ticks, dashboard=dashboard, folder=folder)


def wait_until_ready(head: Head, log: Callable[[str], None]) -> None:
    """Wait until the head's dashboard answers.

    Raises:
        InvalidInput: the head exited, its dashboard failed, or it did not answer within ``START_TIMEOUT_S``. In the
            last two cases the head is terminated.
    """
    start = last_notice = time.monotonic()
    logs = head.folder / "session_latest" / "logs"
    while not is_reachable(head.dashboard):
        now = time.monotonic()
        error = ray_start.dashboard_error(logs)
        if error or not head.is_alive or now - start > START_TIMEOUT_S:
            if head.is_alive:
                terminate(head)
            log_file = head.folder / LOG
            output = log_file.read_text(errors="replace").strip() if log_file.is_file() else ""
            cause = error or ray_start.failure_cause(output, [logs]) or output.rpartition("\n")[2] or "no output"
            permanent = ray_start.permanent_error(cause, *ray_start.temporary_folder())
            raise permanent or ray_start.start_error("--cluster", cause, "or give --cluster")
        if now - last_notice >= ray_start.STILL_STARTING_S:
            last_notice = now
            log(f"Ray is still starting after {now - start:.0f} s; logs: {logs}")
        time.sleep(POLL_S)


def is_reachable(dashboard: str) -> bool:
    with suppress(OSError):
        check_port(dashboard.removeprefix("http://"))
        return True
    return False


def process_start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None if it has exited or never existed."""
    stat = ray_start.process_stat(pid)
    return int(stat[19]) if stat else None
