"""A Ray cluster of separate processes: its head or a node dies, and the study continues."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from benchmarks.invariants import agree, ledger_of, nothing_left_over, starts
from benchmarks.nodes import kill
from benchmarks.study_run import NAME, newest_step
from service.home.layout import Home
from service.home.studies import is_running
from tests.faults.cluster import JOB_S, Cluster, run_on
from tests.service.oec import OEC, environment, oec
from tests.timing import within
from trainers.rows import read

pytestmark = [pytest.mark.slow, pytest.mark.long]

NOTICED_S = 120.0
"""A driver looks for a dead head for one minute before it gives up."""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def standing() -> Iterator[Cluster]:
    """Yields a cluster with four CPUs, shared by several tests. Each test must leave it idle."""
    with Cluster() as cluster:
        cluster.head("--num-cpus", "4")
        yield cluster


@pytest.mark.fault("SIGKILL of the Ray head")
def test_a_dead_head_ends_the_driver_and_the_same_command_resumes(
    cluster: Cluster,
    long_study: Path,
    long_undisturbed: dict[str, float | None],
    tmp_path: Path,
) -> None:
    home = tmp_path / "home"
    head = cluster.head("--num-cpus", "2")
    run = run_on(cluster, long_study, home)
    try:
        run.trains_the_second()
        kill(head)
        run.driver.wait(NOTICED_S)
        assert run.driver.returncode == 75, run.log.read_text()
        assert "run the same command to resume" in run.log.read_text()
    finally:
        run.close()
    assert len(ledger_of(home, NAME).missing()) == 1
    cluster.head("--num-cpus", "2")
    done = oec("run", long_study, home=home, OEC_RAY_ADDRESS=cluster.address, **cluster.environment)
    assert done.returncode == 0, done.stdout + done.stderr
    cluster.is_free()
    assert starts(home, NAME) == [1, 2], "the finished cell was trained again"
    agree(home, NAME, long_undisturbed)


@pytest.mark.fault("SIGKILL of a worker node of two")
def test_the_cells_of_a_dead_node_move_to_the_other(
    cluster: Cluster,
    long_study: Path,
    long_undisturbed: dict[str, float | None],
    tmp_path: Path,
) -> None:
    """The head has no CPUs, so all training is on one worker node and then on the other. Only the steps after the
    newest checkpoint are trained again, which are fewer than one checkpoint interval."""
    content = yaml.safe_load(long_study.read_text())
    interval = content["intervals"]["evaluate"] = content["intervals"]["checkpoint"]  # so rows date the checkpoints
    looked_at = tmp_path / "looked-at.yaml"
    looked_at.write_text(yaml.safe_dump(content))
    home = tmp_path / "home"
    cluster.head("--num-cpus", "0")
    first = cluster.worker("--num-cpus", "2")
    run = run_on(cluster, looked_at, home)
    try:
        run.trains()
        cluster.worker("--num-cpus", "2")
        kill(first)
        killed_at, saved = time.time(), newest_step(home, NAME)
        [metrics] = {path.parents[1] / "metrics.jsonl" for path in home.rglob("checkpoints/step-*.json")}
        assert read(metrics)[-1].step - saved <= interval
        run.ends()
    finally:
        run.close()
    cluster.is_free()
    agree(home, NAME, long_undisturbed)
    again = [row.step for row in read(metrics) if row.time > killed_at]
    assert again[0] == saved + interval, "steps before the newest checkpoint were trained again"


@pytest.mark.fault("more workers than the cluster has")
def test_too_many_workers_for_the_cluster_are_refused_at_once(
    standing: Cluster, long_study: Path, tmp_path: Path
) -> None:
    """Measures the time from Ray's own records of when the driver connected and disconnected."""
    wide = tmp_path / "wide.yaml"
    wide.write_text(
        long_study.read_text().replace("workers: 2", "workers: 5").replace("batch_size: 4", "batch_size: 5")
    )
    refused = oec("run", wide, home=tmp_path / "home", OEC_RAY_ADDRESS=standing.address, **standing.environment)
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert "5 workers x 1 CPU = 5 CPU, of 4" in refused.stderr
    assert standing.seconds_of(wide) < within(5)
    standing.is_free()
    nothing_left_over(tmp_path / "home")


@pytest.mark.fault("ray job stop")
def test_a_stopped_job_has_saved_its_state_and_the_same_job_resumes(
    standing: Cluster, long_study: Path, long_undisturbed: dict[str, float | None], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    own = {name: value for name, value in environment(home).items() if name not in ("PATH", "HOME")}
    settings = ["--runtime-env-json", json.dumps({"env_vars": own}), "--", str(OEC), "run", str(long_study)]
    standing.job("submit", "--no-wait", "--submission-id", "first", *settings)
    deadline = time.monotonic() + JOB_S
    while newest_step(home, NAME) < 150:
        assert time.monotonic() < deadline, standing.job("logs", "first")
        time.sleep(0.05)
    asked = time.monotonic()
    standing.job("stop", "first")
    while is_running(Home(home), NAME):
        assert time.monotonic() - asked < within(10), "the driver takes too long to save its state"
        time.sleep(0.05)
    assert "re-run the same command to resume" in standing.job("logs", "first")
    step = newest_step(home, NAME)
    assert step >= 150, "the checkpoint is gone"
    printed = standing.job("submit", "--submission-id", "second", *settings)
    assert "succeeded" in printed
    standing.is_free()
    agree(home, NAME, long_undisturbed)


@pytest.mark.fault("two studies on one home, database and cluster at once")
@pytest.mark.parametrize("concurrency", [1, 2])
def test_concurrent_studies_do_not_interfere_and_a_second_writer_is_refused(
    standing: Cluster, long_study: Path, long_undisturbed: dict[str, float | None], tmp_path: Path, concurrency: int
) -> None:
    """The cluster has four CPUs and each cell has two workers. With a concurrency of 1, both studies train at the same
    time; with 2, one waits for the other's resources."""
    content = yaml.safe_load(long_study.read_text())
    content["resources"]["concurrency"] = concurrency
    files = {name: tmp_path / f"{name}.yaml" for name in (NAME, "other")}
    for name, file in files.items():
        file.write_text(yaml.safe_dump(content | {"name": name}))
    home = tmp_path / "home"
    runs = [run_on(standing, file, home, name) for name, file in files.items()]
    try:
        runs[0].trains(beyond=50)
        runs[0].driver.send_signal(signal.SIGSTOP)  # otherwise it might end before the second command starts
        again = oec("run", files[NAME], home=home, OEC_RAY_ADDRESS=standing.address, **standing.environment)
        runs[0].driver.send_signal(signal.SIGCONT)
        assert again.returncode == 2, again.stdout + again.stderr
        assert f"is being run by another process (pid {runs[0].driver.pid} on " in again.stderr
        for run in runs:
            run.ends()
    finally:
        for run in runs:
            run.close()
    standing.is_free()
    for name in files:
        agree(home, name, long_undisturbed)
