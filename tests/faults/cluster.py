"""A Ray cluster of separate processes, started the way an operator would start it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.nodes import Nodes
from benchmarks.study_run import NAME, Run

JOB_S = 400.0
FREE_S = 60.0
"""Seconds within which a cluster must release what an ended driver used."""
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
"""A program that prints what is still in use. Ray keeps one autoscaling coordinator for all drivers; it is excluded."""
THERE = """
import ray
from ray._private.state import jobs
ray.init("{address}", log_to_driver=False)
ended = [one["EndTime"] - one["StartTime"] for one in jobs() if "{file}" in one["Entrypoint"] and one["IsDead"]]
print(ended[0] / 1000 if ended else "")
"""
"""A program that prints how many seconds the driver of a study file was connected."""
NOTHING = '{"actors": [], "placement groups": [], "taken": {}}'


class Cluster(Nodes):
    """A cluster started with ``ray start`` on loopback; each node is its own process group."""

    def job(self, *arguments: str) -> str:
        """Returns the output of ``ray job ...``."""
        command = [str(Path(sys.executable).with_name("ray")), "job", *arguments[:1]]
        command += ["--address", f"http://127.0.0.1:{self.dashboard_port}", *arguments[1:]]
        done = subprocess.run(
            command, env={**os.environ, **self.environment}, capture_output=True, text=True, timeout=JOB_S, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def is_free(self) -> None:
        """Waits until nothing is left of an ended driver: no actor, no placement group, and no resources in use."""
        deadline = time.monotonic() + FREE_S
        while (left := self.asked(LEFT.format(address=self.address))) != NOTHING:
            assert time.monotonic() < deadline, f"left in the cluster: {left}"

    def seconds_of(self, study: Path) -> float:
        """Returns how many seconds the driver of this study file was connected to the cluster."""
        deadline = time.monotonic() + FREE_S
        while not (seconds := self.asked(THERE.format(address=self.address, file=study))):
            assert time.monotonic() < deadline, f"no driver of {study} joined and left"
        return float(seconds)


def run_on(cluster: Cluster, study: Path, home: Path, name: str = NAME) -> Run:
    return Run(study, home, name, OEC_RAY_ADDRESS=cluster.address, **cluster.environment)
