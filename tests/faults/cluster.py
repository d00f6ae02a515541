"""A Ray cluster of its own processes, as an operator starts one."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from benchmarks.nodes import kill
from service.cluster import free_port
from tests.faults.running import NAME, Run

TOKEN = "a-token-of-this-test-alone-0123456789"
AUTH = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
UP_S = 240.0
JOB_S = 400.0
FREE_S = 60.0
"""How long a cluster may take to clear away after a driver."""
LEFT = """
import json, ray
from ray.util.state import list_actors, list_placement_groups
ray.init("{address}", log_to_driver=False)
total, free = ray.cluster_resources(), ray.available_resources()
print(json.dumps({{
    "actors": [f"{{one.class_name}} {{one.state}}" for one in list_actors(limit=1000)
        if one.state != "DEAD" and one.class_name != "_AutoscalingCoordinatorActor"],
    "placement groups": [one.state for one in list_placement_groups(limit=1000) if one.state != "REMOVED"],
    "taken": {{name: total[name] for name in ("CPU", "memory") if total[name] != free.get(name, 0)}},
}}))
"""
"""A program that prints what is taken of a cluster. Ray keeps its coordinator of autoscaling, one for all drivers."""
THERE = """
import ray
from ray._private.state import jobs
ray.init("{address}", log_to_driver=False)
ended = [one["EndTime"] - one["StartTime"] for one in jobs() if "{file}" in one["Entrypoint"] and one["IsDead"]]
print(ended[0] / 1000 if ended else "")
"""
"""One that prints for how many seconds the driver of a study's file was there."""
NOTHING = '{"actors": [], "placement groups": [], "taken": {}}'


class Cluster:
    """``ray start`` on loopback, each node a process group of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port, self.dashboard_port = folder, free_port(), free_port()
        self.address = f"127.0.0.1:{self.port}"

    @contextmanager
    def node(self, name: str, *arguments: str) -> Iterator[psutil.Process]:
        command = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats"]
        command += ["--node-ip-address", "127.0.0.1", "--dashboard-agent-listen-port", str(free_port()), *arguments]
        with (self.folder / f"{name}.log").open("wb") as log:
            process = psutil.Popen(command, env={**os.environ, **AUTH}, stdout=log, stderr=log, cwd=self.folder)
        try:
            yield process
        finally:
            kill(process)

    @contextmanager
    def head(self, cores: int, name: str = "head") -> Iterator[psutil.Process]:
        dashboard = ["--dashboard-port", str(self.dashboard_port), "--temp-dir", str(self.folder / name)]
        with self.node(name, "--head", "--port", str(self.port), *dashboard, "--num-cpus", str(cores)) as process:
            self.until_it_has(1)
            yield process

    @contextmanager
    def worker(self, name: str, cores: int, nodes: int) -> Iterator[psutil.Process]:
        with self.node(name, "--address", self.address, "--num-cpus", str(cores)) as process:
            self.until_it_has(nodes)
            yield process

    def job(self, *arguments: str) -> str:
        """What ``ray job ...`` prints."""
        command = [str(Path(sys.executable).with_name("ray")), "job", *arguments[:1]]
        command += ["--address", f"http://127.0.0.1:{self.dashboard_port}", *arguments[1:]]
        done = subprocess.run(
            command, env={**os.environ, **AUTH}, capture_output=True, text=True, timeout=JOB_S, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def until_it_has(self, nodes: int) -> None:
        look = (
            f"import ray; ray.init('{self.address}', log_to_driver=False); print(sum(n['Alive'] for n in ray.nodes()))"
        )
        deadline = time.monotonic() + UP_S
        while True:
            if self._asked(look) == str(nodes):
                return
            assert time.monotonic() < deadline, f"no {nodes} nodes"

    def is_free(self) -> None:
        """Nothing of an ended driver is left: no actor, no placement group, nothing that they took."""
        deadline = time.monotonic() + FREE_S
        while (left := self._asked(LEFT.format(address=self.address))) != NOTHING:
            assert time.monotonic() < deadline, f"left in the cluster: {left}"

    def seconds_of(self, study: Path) -> float:
        """From the moment at which the driver of this file joined the cluster to that at which it left."""
        deadline = time.monotonic() + FREE_S
        while not (seconds := self._asked(THERE.format(address=self.address, file=study))):
            assert time.monotonic() < deadline, f"no driver of {study} joined and left"
        return float(seconds)

    def _asked(self, program: str) -> str:
        """The last line that a program prints which joins the cluster."""
        command = [sys.executable, "-c", program]
        own = {**os.environ, **AUTH, "RAY_ADDRESS": self.address}  # or the State API looks for any cluster
        done = subprocess.run(command, env=own, capture_output=True, text=True, check=False)
        return done.stdout.strip().rpartition("\n")[2]


@contextmanager
def clusters() -> Iterator[Cluster]:
    """Not in pytest's folder: Ray's sockets lie in it, and their paths must not exceed 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="oec-", ignore_cleanup_errors=True) as folder:
        yield Cluster(Path(folder))


def run_on(cluster: Cluster, study: Path, home: Path, name: str = NAME) -> Run:
    return Run(study, home, name, OEC_RAY_ADDRESS=cluster.address, **AUTH)
