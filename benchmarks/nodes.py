"""Ray clusters of separate processes on this machine, as an operator starts them. Nodes may declare any resources."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil

from service.cluster.connection import free_port

UP_S = 240.0
"""Seconds to wait for a node to start; after that, an error shows its log."""
MEMORY = 2**38
"""Bytes that every node declares. Trials request memory, but actually use far less here."""
OBJECT_STORE = 10**8


class Nodes:
    """A cluster in which every node is a process group on this machine. It ends with its ``with`` block."""

    def __init__(self) -> None:
        self.port, self.dashboard_port = free_port(), free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        """What a driver needs in its environment to join: Ray reads the token once per process."""
        self._ends = ExitStack()
        self._count = 0

    def __enter__(self) -> Nodes:
        # Not in pytest's long folder: it holds Ray's sockets, whose paths must not exceed 107 bytes.
        self.folder = Path(
            self._ends.enter_context(tempfile.TemporaryDirectory(prefix="oec-", ignore_cleanup_errors=True))
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    def head(self, *arguments: str, autoscaling: Mapping[str, Any] | None = None, **more: str) -> psutil.Process:
        """Starts the head; ``autoscaling`` is the configuration of a cluster that starts its own nodes."""
        if autoscaling is not None:
            path = self.folder / "autoscaling.json"
            path.write_text(json.dumps(autoscaling))
            arguments = (*arguments, f"--autoscaling-config={path}")
        dashboard = ["--dashboard-port", str(self.dashboard_port), "--temp-dir", str(self.folder)]
        return self._node(1, ["--head", "--port", str(self.port), *dashboard, *arguments], **more)

    def worker(self, *arguments: str, within: Sequence[str] = ()) -> psutil.Process:
        """Starts another node. ``within`` is a command that runs the rest of its arguments as the node's command."""
        return self._node(self.alive() + 1, ["--address", self.address, *arguments], within)

    def _node(self, nodes: int, arguments: Sequence[str], within: Sequence[str] = (), **more: str) -> psutil.Process:
        """Runs ``ray start`` with these arguments and waits until the cluster has ``nodes`` nodes.

        Raises:
            RuntimeError: it does not have them after ``UP_S``.
        """
        self._count += 1
        log = self.folder / f"node-{self._count}.log"
        command = [*within, str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats"]
        command += ["--node-ip-address", "127.0.0.1", "--dashboard-agent-listen-port", str(free_port())]
        command += ["--memory", str(MEMORY), "--object-store-memory", str(OBJECT_STORE), *arguments]
        with log.open("wb") as out:
            process = psutil.Popen(command, env={**os.environ, **self.environment, **more}, stdout=out, stderr=out)
        self._ends.callback(kill, process)
        deadline = time.monotonic() + UP_S
        while self.alive() < nodes:
            if time.monotonic() > deadline:
                raise RuntimeError(f"no {nodes} nodes after {UP_S} s: {log.read_text()}")
        return process

    def alive(self) -> int:
        """Returns the number of nodes that a driver sees, or 0 while the head does not respond."""
        look = f"ray.init('{self.address}', log_to_driver=False); print(sum(one['Alive'] for one in ray.nodes()))"
        return int(self.asked(f"import ray; {look}") or 0)

    def asked(self, program: str) -> str:
        """Returns the last line that a program prints; the program may join the cluster."""
        own = {**os.environ, **self.environment, "RAY_ADDRESS": self.address}  # else the State API finds any cluster
        done = subprocess.run([sys.executable, "-c", program], env=own, capture_output=True, text=True, check=False)
        said = [line for line in done.stdout.splitlines() if line and "(raylet)" not in line]  # not Ray's warnings
        return said[-1] if said else ""


def kill(process: psutil.Process) -> None:
    """Kills the process and all of its child processes."""
    with suppress(psutil.NoSuchProcess):
        family = [*process.children(recursive=True), process]
        for one in family:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(family, timeout=10)
