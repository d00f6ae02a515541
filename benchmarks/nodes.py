"""Ray clusters of their own processes on this machine, as an operator starts them; the nodes declare what they like."""

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
"""A node is there by then, or its log is shown."""
MEMORY = 2**38
"""Bytes that every node declares; trials ask for memory, and what they take here is far less."""
OBJECT_STORE = 10**8


class Nodes:
    """A cluster of which every node is a process group of this one; ends with its ``with`` block."""

    def __init__(self) -> None:
        self.port, self.dashboard_port = free_port(), free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        """What a driver needs to join, from its start: Ray reads the token once a process."""
        self._ends = ExitStack()
        self._count = 0

    def __enter__(self) -> Nodes:
        # Not in pytest's folder or one as long: Ray's sockets lie in it, and their paths must not exceed 107 bytes.
        self.folder = Path(
            self._ends.enter_context(tempfile.TemporaryDirectory(prefix="oec-", ignore_cleanup_errors=True))
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    def head(self, *arguments: str, autoscaling: Mapping[str, Any] | None = None, **more: str) -> psutil.Process:
        """The head; with ``autoscaling``, the configuration of a cluster that starts its own nodes."""
        if autoscaling is not None:
            path = self.folder / "autoscaling.json"
            path.write_text(json.dumps(autoscaling))
            arguments = (*arguments, f"--autoscaling-config={path}")
        dashboard = ["--dashboard-port", str(self.dashboard_port), "--temp-dir", str(self.folder)]
        return self._node(1, ["--head", "--port", str(self.port), *dashboard, *arguments], **more)

    def worker(self, *arguments: str, within: Sequence[str] = ()) -> psutil.Process:
        """A node more; with ``within``, started by that command, which takes it as its last arguments."""
        return self._node(self.alive() + 1, ["--address", self.address, *arguments], within)

    def _node(self, nodes: int, arguments: Sequence[str], within: Sequence[str] = (), **more: str) -> psutil.Process:
        """``ray start`` with these arguments, once the cluster has so many nodes.

        Raises:
            RuntimeError: it does not after ``UP_S``.
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
        """Nodes of the cluster, as a driver sees them; none while its head does not answer."""
        look = f"ray.init('{self.address}', log_to_driver=False); print(sum(one['Alive'] for one in ray.nodes()))"
        return int(self.asked(f"import ray; {look}") or 0)

    def asked(self, program: str) -> str:
        """The last line that a program prints which may join the cluster."""
        own = {**os.environ, **self.environment, "RAY_ADDRESS": self.address}  # or the State API looks for any cluster
        done = subprocess.run([sys.executable, "-c", program], env=own, capture_output=True, text=True, check=False)
        said = [line for line in done.stdout.splitlines() if line and "(raylet)" not in line]  # Ray warns there, too
        return said[-1] if said else ""


def kill(process: psutil.Process) -> None:
    """The process and all that it started, at once."""
    with suppress(psutil.NoSuchProcess):
        family = [*process.children(recursive=True), process]
        for one in family:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(family, timeout=10)
