"""Studies whose home is in a bucket: a machine or a node is lost with everything on its disk."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.invariants import losses, mlflow_agrees, nothing_runs_in_optuna, one_end_a_cell, processes
from benchmarks.nodes import kill
from benchmarks.study_run import DEADLINE_S, NAME, STEPS, until
from service.home.location import open_home
from tests.faults.cluster import Cluster
from tests.faults.conftest import Losses, cells, without_ray
from tests.service.oec import oec, start
from tests.stores import Store, store
from trainers.storage.bucket import Bucket

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with store("s3", tmp_path_factory.mktemp("store")) as made:
        yield made


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a study with one cell and one worker."""
    return cells(tmp_path_factory.mktemp("narrow"), STEPS, workers=1, lrs=[1e-3])


def saves(url: str, driver: subprocess.Popen[bytes], log: Path) -> None:
    until(lambda: max(steps(url), default=0) > 150, "checkpoint beyond step 150", driver, log)


def steps(url: str) -> list[int]:
    """Returns the steps of all checkpoints in the bucket."""
    names = [name for name in Bucket(url).names() if name.endswith(".json") and "/checkpoints/step-" in name]
    return [int(name.removesuffix(".json").rpartition("step-")[2]) for name in names]


def agrees(url: str, scratch: Path, undisturbed: Losses, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks the home as the last driver left it, and that a machine that has never seen the bucket gets the same
    ledger."""
    monkeypatch.setenv("OEC_SCRATCH", str(scratch))
    last = open_home(url).path
    one_end_a_cell(last, NAME)
    nothing_runs_in_optuna(last, NAME)
    mlflow_agrees(last, NAME)
    assert losses(last, NAME) == undisturbed, "a fault changed a loss"
    assert steps(url) == [], "checkpoints of ended cells are left in the bucket"
    assert not list((last / "work").rglob("*.*")), "a worker left files in the folder from which it uploads"
    monkeypatch.setenv("OEC_SCRATCH", str(scratch.with_name("fresh")))
    fresh = open_home(url)
    assert fresh.ledger(NAME).read_bytes() == (last / "studies" / NAME / "ledger.jsonl").read_bytes()


@pytest.mark.long
@pytest.mark.fault("the driver's machine lost with its disk, the home in a bucket")
def test_another_machine_resumes(s3: Store, narrow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, log, lost = s3.home(), tmp_path / "log", tmp_path / "lost"
    driver = start("run", narrow, home=url, log=log, OEC_SCRATCH=str(lost), **s3.environment)
    try:
        saves(url, driver, log)
    finally:
        driver.kill()
        driver.wait()
        for process in processes(url):
            process.kill()
    saved = max(steps(url))
    shutil.rmtree(lost)
    on = {"OEC_SCRATCH": str(tmp_path / "scratch"), **s3.environment}
    done = oec("run", narrow, home=url, **on)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"home {url}" in done.stdout
    agrees(url, tmp_path / "scratch", without_ray(narrow, tmp_path / "undisturbed"), monkeypatch)
    page = Bucket(url).read(f"studies/{NAME}/report/report.html")
    assert page is not None
    assert b"<html" in page
    elsewhere = {"OEC_SCRATCH": str(tmp_path / "third"), **s3.environment}
    status = oec("status", NAME, home=url, **elsewhere)
    assert "disturbed │ 0 │ 0 │ 1" in " ".join(status.stdout.split()), status.stdout + status.stderr
    report = oec("report", f"{url}:{NAME}", "--out", tmp_path / "report", home=tmp_path / "another", **elsewhere)
    assert report.returncode == 0, report.stdout + report.stderr
    assert (tmp_path / "report" / "report.html").is_file()
    assert saved > 150
    again = oec("run", narrow, home=url, **elsewhere)
    assert "0 to train" in again.stdout, again.stdout + again.stderr


@pytest.mark.long
@pytest.mark.fault("a second writer, and `oec stop`, through a bucket")
def test_another_machine_sees_a_running_study_and_can_stop_it(s3: Store, tmp_path: Path) -> None:
    url, log, study = s3.home(), tmp_path / "log", cells(tmp_path, steps=3000)
    elsewhere = {"OEC_SCRATCH": str(tmp_path / "two"), **s3.environment}
    driver = start("run", study, home=url, log=log, OEC_SCRATCH=str(tmp_path / "one"), **s3.environment)
    try:
        saves(url, driver, log)
        watched = oec("watch", NAME, "--once", home=url, **elsewhere)
        assert "of 3000" in watched.stdout, watched.stdout + watched.stderr
        second = oec("run", study, home=url, **elsewhere)
        assert second.returncode == 2, second.stdout + second.stderr
        assert f"is being run by another process (pid {driver.pid} on " in second.stderr
        stopped = oec("stop", NAME, home=url, **elsewhere)
        assert stopped.stdout == f"{NAME} has stopped\n", stopped.stdout + stopped.stderr
        assert driver.wait(timeout=DEADLINE_S) == os.EX_TEMPFAIL, log.read_text()
    finally:
        driver.kill()
        driver.wait()
    assert max(steps(url)) > 150
    assert "not running" in oec("watch", NAME, "--once", home=url, **elsewhere).stdout


@pytest.mark.long
@pytest.mark.fault("node lost with its disk, the home in a bucket")
def test_the_cells_of_a_dead_node_move_to_another_that_shares_no_disk(
    s3: Store,
    long_study: Path,
    long_undisturbed: Losses,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each worker node has its own scratch folder, which no other process can see."""
    url, log, scratch = s3.home(), tmp_path / "log", tmp_path / "scratch"
    scratch.mkdir()
    own = f'mount -t tmpfs tmpfs {scratch} && exec "$@"'
    within = ("unshare", "--mount", "--propagation", "private", "sh", "-c", own, "sh")
    monkeypatch.setenv("OEC_SCRATCH", str(scratch))
    with Cluster() as cluster:
        cluster.head("--num-cpus", "0")
        first = cluster.worker("--num-cpus", "2", within=within)
        on = {"OEC_SCRATCH": str(scratch), "OEC_RAY_ADDRESS": cluster.address, **cluster.environment, **s3.environment}
        driver = start("run", long_study, home=url, log=log, **on)
        try:
            saves(url, driver, log)
            assert not list(scratch.rglob("step-*")), "the driver sees the node's scratch folder"
            cluster.worker("--num-cpus", "2", within=within)
            kill(first)
            assert driver.wait(timeout=DEADLINE_S) == 0, log.read_text()
        finally:
            driver.kill()
            driver.wait()
        cluster.is_free()
    agrees(url, scratch, long_undisturbed, monkeypatch)
