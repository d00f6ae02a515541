"""Studies whose home is a bucket: a machine, or a node, that is gone with everything on its disk."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from benchmarks.nodes import kill
from service.home import Home
from tests.faults.cluster import Cluster
from tests.faults.invariants import losses, mlflow_agrees, nothing_runs_in_optuna, one_end_a_cell, processes
from tests.faults.running import DEADLINE_S, NAME, STEPS, changed, until
from tests.service.oec import oec, start
from tests.stores import Store, store
from trainers.buckets import Bucket

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with store("s3", tmp_path_factory.mktemp("store")) as made:
        yield made


def saves(url: str, driver: subprocess.Popen[bytes], log: Path, others: Sequence[str] = ()) -> list[str]:
    """Wait for a checkpoint beyond step 75, and others than these; all that there are."""

    def saved() -> bool:
        nonlocal there
        there = checkpoints(url)
        return there != others and max(map(step, there), default=0) > 75

    there: list[str] = []
    until(saved, "checkpoint beyond step 75", driver, log, pause_s=0.1)
    return there


def checkpoints(url: str) -> list[str]:
    """The newest of each cell that is being trained."""
    return [name for name in Bucket(url).names() if name.endswith(".json") and "/checkpoints/step-" in name]


def step(checkpoint: str) -> int:
    return int(checkpoint.removesuffix(".json").rpartition("step-")[2])


def agrees(url: str, scratch: Path, undisturbed: dict[str, float | None], monkeypatch: pytest.MonkeyPatch) -> None:
    """The bucket, as a machine brings it that has seen none of it, and the views of the driver that ended."""
    monkeypatch.setenv("OEC_SCRATCH", str(scratch))
    last = Home.open(url).path
    one_end_a_cell(last, NAME)
    nothing_runs_in_optuna(last, NAME)
    mlflow_agrees(last, NAME)
    assert losses(last, NAME).items() >= undisturbed.items(), "a disturbed run has another loss than an undisturbed one"
    assert checkpoints(url) == [], "checkpoints of ended cells"
    assert not list((last / "work").rglob("*.*")), "what a worker wrote on its way to the bucket"
    monkeypatch.setenv("OEC_SCRATCH", str(scratch.with_name("fresh")))
    fresh = Home.open(url)
    assert fresh.ledger(NAME).read_bytes() == (last / "studies" / NAME / "ledger.jsonl").read_bytes()


@pytest.mark.fault("the driver's machine lost with its disk, the home in a bucket")
@pytest.mark.fault("a second writer, and `oec stop`, through a bucket")
def test_other_machines_see_who_runs_end_it_and_go_on(
    s3: Store, study: Path, undisturbed: dict[str, float | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first machine is lost; the second goes on, until it is told to stop by the third, which trains the rest."""
    study = changed(study, tmp_path, lrs=[1e-3, 2e-3, 3e-3])
    url, scratch = s3.home(), {name: tmp_path / name for name in ("lost", "second", "third")}
    on = {name: {"OEC_SCRATCH": str(folder), **s3.environment} for name, folder in scratch.items()}
    log = tmp_path / "log"
    driver = start("run", study, home=url, log=log, **on["lost"])
    try:
        saves(url, driver, log)
        watched = oec("watch", NAME, "--once", home=url, **on["third"])
        assert f"of {STEPS}" in watched.stdout, watched.stdout + watched.stderr
        refused = oec("run", study, home=url, **on["third"])
        assert refused.returncode == 2, refused.stdout + refused.stderr
        assert f"is being run by another process (pid {driver.pid} on " in refused.stderr
        saved = saves(url, driver, log)
    finally:
        driver.kill()
        driver.wait()
        for process in processes(url):
            process.kill()
    shutil.rmtree(scratch["lost"])
    driver = start("run", study, home=url, log=log, **on["second"])
    try:
        saves(url, driver, log, others=saved)
        stopped = oec("stop", NAME, home=url, **on["third"])
        assert stopped.stdout == f"{NAME} has ended\n", stopped.stdout + stopped.stderr
        assert driver.wait(timeout=DEADLINE_S) == os.EX_TEMPFAIL, log.read_text()
    finally:
        driver.kill()
        driver.wait()
    assert "not being run" in oec("watch", NAME, "--once", home=url, **on["third"]).stdout
    done = oec("run", study, home=url, **on["third"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"home {url}" in done.stdout
    agrees(url, scratch["third"], undisturbed, monkeypatch)
    page = Bucket(url).read(f"studies/{NAME}/report/report.html")
    assert page is not None
    assert b"<html" in page
    status = oec("status", NAME, home=url, **on["second"])
    assert "disturbed │ 0 │ 0 │ 3" in " ".join(status.stdout.split()), status.stdout + status.stderr
    report = oec("report", f"{url}:{NAME}", "--out", tmp_path / "report", home=tmp_path / "another", **on["second"])
    assert report.returncode == 0, report.stdout + report.stderr
    assert (tmp_path / "report" / "report.html").is_file()


@pytest.mark.long
@pytest.mark.fault("node lost with its disk, the home in a bucket")
def test_the_cells_of_a_dead_node_move_to_another_that_shares_no_disk(
    s3: Store,
    long_study: Path,
    long_undisturbed: dict[str, float | None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each worker node has a scratch of its own, which no other process sees."""
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
            assert not list(scratch.rglob("step-*")), "the driver sees what a node writes"
            cluster.worker("--num-cpus", "2", within=within)
            kill(first)
            assert driver.wait(timeout=DEADLINE_S) == 0, log.read_text()
        finally:
            driver.kill()
            driver.wait()
        cluster.is_free()
    agrees(url, scratch, long_undisturbed, monkeypatch)
