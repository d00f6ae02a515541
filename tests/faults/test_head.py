"""A Ray cluster of its own processes, as an operator starts one: its head dies, its nodes die, a study goes on."""

from __future__ import annotations

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

from tests.docker.stack import free_port
from tests.faults.invariants import agree, ledger_of
from tests.faults.running import NAME, Run
from tests.service.oec import oec

pytestmark = pytest.mark.slow

TOKEN = "a-token-of-this-test-alone-0123456789"
AUTH = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
UP_S = 90.0
NOTICED_S = 120.0
"""Ray looks for its head for a minute before it gives up."""


class Cluster:
    """``ray start`` on loopback, each node a process group of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
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
        dashboard = ["--dashboard-port", str(free_port()), "--temp-dir", str(self.folder / name)]
        with self.node(name, "--head", "--port", str(self.port), *dashboard, "--num-cpus", str(cores)) as process:
            self.until_it_has(1)
            yield process

    @contextmanager
    def worker(self, name: str, cores: int, nodes: int) -> Iterator[psutil.Process]:
        with self.node(name, "--address", self.address, "--num-cpus", str(cores)) as process:
            self.until_it_has(nodes)
            yield process

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


def run_on(cluster: Cluster, study: Path, home: Path) -> Run:
    return Run(study, home, OEC_RAY_ADDRESS=cluster.address, **AUTH)


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


def test_the_cells_of_a_dead_node_move_to_the_other(
    cluster: Cluster,
    study: Path,
    undisturbed: dict[str, float | None],
    tmp_path: Path,
) -> None:
    """The head has no core, so that all that trains is on one worker node and then on the other."""
    home = tmp_path / "home"
    with ExitStack() as nodes:
        nodes.enter_context(cluster.head(0))
        first = nodes.enter_context(cluster.worker("first", 2, 2))
        run = run_on(cluster, study, home)
        try:
            run.trains()
            nodes.enter_context(cluster.worker("second", 2, 3))
            kill(first)
            run.ends()
        finally:
            run.close()
    agree(home, NAME, undisturbed)


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
