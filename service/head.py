"""A Ray head of this machine that outlives whoever started it: the local cluster of ``oec serve``.

``<home>/service/ray.json`` says where it is. A service that comes back finds it there, and several share it.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pydantic import ValidationError

from search_spaces.cell import Frozen
from search_spaces.errors import InvalidInput
from service import cluster
from service.home import Home
from trainers.files import write_atomically

UP_S = 120.0
"""How long Ray's processes may take to start; 10 to 20 seconds on two cores that have nothing else to do."""
DOWN_S = 30.0
LOOK_S = 0.2
LOOPBACK = "127.0.0.1"


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


def find_or_start(home: Home) -> Head:
    """The head of this home.

    Raises:
        InvalidInput: Ray did not start; its last words.
    """
    note = home.service / "ray.json"
    with note.with_suffix(".lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        head = noted(home)
        if head is None or not head.alive:
            head = start(home)
            write_atomically(note, head.model_dump_json(indent=2))
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
    os.kill(head.pid, signal.SIGTERM)  # on which `ray start --block` ends all that it started
    deadline = time.monotonic() + DOWN_S
    while head.alive:
        if time.monotonic() > deadline:
            os.killpg(head.pid, signal.SIGKILL)
            break
        time.sleep(LOOK_S)
    return True


def start(home: Home) -> Head:
    """``ray start --head`` in a session of its own, on loopback, with ports that are free and Ray's token."""
    cluster.configure()
    cluster.private_token()
    folder = Path(tempfile.mkdtemp(prefix="oec-ray-"))
    dashboard = free_port()
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
    command += ["--node-ip-address", LOOPBACK, "--port", str(free_port()), "--temp-dir", str(folder)]
    command += ["--dashboard-host", LOOPBACK, "--dashboard-port", str(dashboard)]
    command += ["--dashboard-agent-listen-port", str(free_port()), "--ray-client-server-port", str(free_port())]
    command += ["--min-worker-port", "0", "--max-worker-port", "0", "--num-cpus", str(cluster.local_cores())]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # where jobs find `oec`
    environment = {**os.environ, "PATH": path, "OEC_HOME": str(home.path)}
    environment.pop("RAY_ADDRESS", None)
    log = folder / "start.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            cwd=folder,
            start_new_session=True,
        )
    head = Head(
        pid=process.pid, began=began(process.pid) or 0, dashboard=f"http://{LOOPBACK}:{dashboard}", folder=folder
    )
    deadline = time.monotonic() + UP_S
    while not answers(dashboard):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            last = (log.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
            remedy = "see that the machine has memory and processor time to spare, or give --cluster"
            raise InvalidInput("--cluster", None, f"no Ray started here ({last})", remedy)
        time.sleep(LOOK_S)
    return head


def answers(port: int) -> bool:
    try:
        cluster.reach(f"{LOOPBACK}:{port}")
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


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind((LOOPBACK, 0))
        return int(listening.getsockname()[1])
