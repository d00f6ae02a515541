"""A Ray cluster of its own processes, as an operator starts one: its head dies, its nodes die, a study goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest
import yaml

from service.home import Home
from service.stopping import being_run
from tests.docker.stack import free_port
from tests.faults.invariants import agree, ledger_of
from tests.faults.running import NAME, Run, newest_step
from tests.service.oec import OEC, environment, oec
from trainers.rows import read

pytestmark = pytest.mark.slow

TOKEN = "a-token-of-this-test-alone-0123456789"
AUTH = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
UP_S = 90.0
JOB_S = 200.0
NOTICED_S = 120.0
"""Ray looks for its head for a minute before it gives up."""


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
            found = subprocess.run(
                [sys.executable, "-c", look], env={**os.environ, **AUTH}, capture_output=True, text=True, check=False
            )
            if found.stdout.strip() == str(nodes):
                return
            assert time.monotonic() < deadline, f"no {nodes} nodes: {found.stdout}{found.stderr}"


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Not in pytest's folder: Ray's sockets lie in it, and their paths must not exceed 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="oec-", ignore_cleanup_errors=True) as folder:
        yield Cluster(Path(folder))


def kill(process: psutil.Process) -> None:
    """The process and all that it started, at once."""
    try:
        family = [*process.children(recursive=True), process]
    except psutil.NoSuchProcess:
        return
    for one in family:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family, timeout=10)


def run_on(cluster: Cluster, study: Path, home: Path, name: str = NAME) -> Run:
    return Run(study, home, name, OEC_RAY_ADDRESS=cluster.address, **AUTH)


@pytest.mark.fault("SIGKILL of the Ray head")
def test_a_dead_head_ends_the_driver_and_the_same_command_goes_on(
    cluster: Cluster,
    study: Path,
    undisturbed: dict[str, float | None],
    tmp_path: Path,
) -> None:
    home = tmp_path / "home"
    with cluster.head(2) as head:
        run = run_on(cluster, study, home)
        try:
            run.trains()
            kill(head)
            run.driver.wait(NOTICED_S)
            assert run.driver.returncode == 75, run.log.read_text()
            assert "the same command goes on" in run.log.read_text()
        finally:
            run.close()
    assert len(ledger_of(home, NAME).missing()) == 2
    with cluster.head(2, "again"):
        done = oec("run", study, home=home, OEC_RAY_ADDRESS=cluster.address, **AUTH)
        assert done.returncode == 0, done.stdout + done.stderr
    agree(home, NAME, undisturbed)


@pytest.mark.fault("SIGKILL of a worker node of two")
def test_the_cells_of_a_dead_node_move_to_the_other(
    cluster: Cluster,
    study: Path,
    undisturbed: dict[str, float | None],
    tmp_path: Path,
) -> None:
    """The head has no core, so that all that trains is on one worker node and then on the other. What is trained again
    is what lay behind the newest checkpoint, and that is less than the interval between two."""
    content = yaml.safe_load(study.read_text())
    interval = content["intervals"]["evaluate"] = content["intervals"]["checkpoint"]  # a row says when each was reached
    looked_at = tmp_path / "looked-at.yaml"
    looked_at.write_text(yaml.safe_dump(content))
    home = tmp_path / "home"
    with ExitStack() as nodes:
        nodes.enter_context(cluster.head(0))
        first = nodes.enter_context(cluster.worker("first", 2, 2))
        run = run_on(cluster, looked_at, home)
        try:
            run.trains()
            nodes.enter_context(cluster.worker("second", 2, 3))
            kill(first)
            killed_at, saved = time.time(), newest_step(home, NAME)
            [metrics] = {path.parents[1] / "metrics.jsonl" for path in home.rglob("checkpoints/step-*.json")}
            assert read(metrics)[-1]["step"] - saved <= interval
            run.ends()
        finally:
            run.close()
    agree(home, NAME, undisturbed)
    again = [row["step"] for row in read(metrics) if row["time"] > killed_at]
    assert again[0] == saved + interval, "steps before the newest checkpoint were trained again"


@pytest.mark.fault("more workers than the cluster has")
def test_more_workers_than_the_cluster_has_is_said_at_once(
    cluster: Cluster,
    study: Path,
    tmp_path: Path,
) -> None:
    wide = tmp_path / "wide.yaml"
    wide.write_text(study.read_text().replace("workers: 2", "workers: 3").replace("batch_size: 4", "batch_size: 6"))
    with cluster.head(2):
        refused = oec("run", wide, home=tmp_path / "home", OEC_RAY_ADDRESS=cluster.address, **AUTH)
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert "3 workers x 1 CPU = 3 CPU, of 2" in refused.stderr


@pytest.mark.fault("ray job stop")
def test_a_stopped_job_has_saved_its_state_and_the_same_job_goes_on(
    cluster: Cluster, study: Path, undisturbed: dict[str, float | None], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    own = {name: value for name, value in environment(home).items() if name not in ("PATH", "HOME")}
    settings = ["--runtime-env-json", json.dumps({"env_vars": own}), "--", str(OEC), "run", str(study)]
    with cluster.head(2):
        cluster.job("submit", "--no-wait", "--submission-id", "first", *settings)
        deadline = time.monotonic() + JOB_S
        while newest_step(home, NAME) < 150:
            assert time.monotonic() < deadline, cluster.job("logs", "first")
            time.sleep(0.05)
        asked = time.monotonic()
        cluster.job("stop", "first")
        while being_run(Home(home), NAME):
            assert time.monotonic() - asked < 20, "10 s to save its state, and the time of a busy machine"
            time.sleep(0.05)
        assert "the same command goes on" in cluster.job("logs", "first")
        step = newest_step(home, NAME)
        assert step >= 150, "its checkpoint is gone"
        printed = cluster.job("submit", "--submission-id", "second", *settings)
        assert "succeeded" in printed
    agree(home, NAME, undisturbed)


@pytest.mark.fault("two studies on one home, database and cluster at once")
@pytest.mark.parametrize("concurrency", [1, 2])
def test_two_studies_at_once_keep_apart_and_a_second_writer_is_refused(
    cluster: Cluster, study: Path, undisturbed: dict[str, float | None], tmp_path: Path, concurrency: int
) -> None:
    """Four cores: with a cell of two workers each at once both train, with two one waits for what the other frees."""
    content = yaml.safe_load(study.read_text())
    content["resources"]["concurrency"] = concurrency
    files = {name: tmp_path / f"{name}.yaml" for name in (NAME, "other")}
    for name, file in files.items():
        file.write_text(yaml.safe_dump(content | {"name": name}))
    home = tmp_path / "home"
    with cluster.head(4):
        runs = [run_on(cluster, file, home, name) for name, file in files.items()]
        try:
            runs[0].trains(beyond=50)
            again = oec("run", files[NAME], home=home, OEC_RAY_ADDRESS=cluster.address, **AUTH)
            assert again.returncode == 2, again.stdout + again.stderr
            assert f"is being run by another process (pid {runs[0].driver.pid} on " in again.stderr
            for run in runs:
                run.ends()
        finally:
            for run in runs:
                run.close()
    for name in files:
        agree(home, name, undisturbed)
