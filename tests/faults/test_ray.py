"""Studies through the real command, while processes of its Ray cluster die, freeze, or are asked to stop."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from benchmarks.invariants import agree, ledger_of, losses, nothing_left_over, starts
from benchmarks.study_run import NAME, STEPS, TRAIN_WORKER, TRIAL, Run, newest_step
from service.home.layout import Home
from tests.faults.conftest import Losses
from tests.service.oec import oec
from tests.timing import within
from trainers.rows import read

pytestmark = pytest.mark.slow

POISON = Path(__file__).with_name("poison")
"""A folder for ``PYTHONPATH``; see its ``sitecustomize.py``."""


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Returns a function that starts ``oec run`` in the test's home. Runs are killed only after the test, so that the
    test can check for leftover processes first."""
    with ExitStack() as held:

        def begun(study: Path, **environment: str) -> Run:
            run = Run(study, tmp_path / "home", **environment)
            held.callback(run.close)
            return run

        yield begun


def changed(study: Path, folder: Path, **changes: object) -> Path:
    """Writes a copy of the study with these fields replaced, and returns its path."""
    path = folder / "changed.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(study.read_text()) | changes))
    return path


@pytest.mark.fault("SIGKILL of a Ray Train worker in the middle of a step")
@pytest.mark.fault("SIGKILL of the trial's actor")
@pytest.mark.fault("a loss that is not finite on one rank only", times=2)
@pytest.mark.fault("oec stop of a cell")
@pytest.mark.fault("SIGINT to the driver")
@pytest.mark.fault("a stop request left behind by a driver")
def test_no_fault_of_a_group_or_its_driver_costs_a_result(
    begin: Callable[..., Run], study: Path, undisturbed: Losses, tmp_path: Path
) -> None:
    """In the first cell, two processes die: the trial's actor, which owns the worker group, and a Ray Train worker in
    the middle of a step. Afterwards the group stays warm, both after a loss that is not finite on one rank, which ends
    the cell on both ranks, and after ``oec stop``. In the last cell the driver is interrupted. The same command resumes
    that cell and ignores a stop request that was left for an earlier driver. Other tests cover SIGTERM, with which a
    cluster stops a job (``tests/service/cluster/test_jobs.py``), and a killed driver
    (``tests/faults/test_buckets.py``)."""
    lrs, flag = [1e-3, 1.2e-3, 1.4e-3, 1.6e-3, 2e-3], tmp_path / "poison"
    path = changed(study, tmp_path, lrs=lrs, resources={"workers": 2, "max_failures": 3})
    poison = {"PYTHONPATH": f"{POISON}:{os.environ.get('PYTHONPATH', '')}", "POISON": str(flag)}
    run = begin(path, **poison)
    run.trains()
    killed, before = time.time(), run.workers()
    run.named(TRIAL)[0].kill()
    run.trains(beyond=run.step() + 50)
    again = run.workers()
    assert len(again) == 2
    assert before.isdisjoint(again)
    run.named(TRAIN_WORKER)[0].kill()
    run.until(lambda: run.state(0) == "finished", "the end of the first cell")
    run.until(lambda: run.state(1) == "running" and run.step() > 0, "a step of the second cell")
    workers = run.workers()
    assert again.isdisjoint(workers), "the worker was killed too late"

    for index, value in enumerate(("nan", "inf"), start=1):
        flag.write_text(value)
        run.until(lambda index=index: run.state(index) == "diverged", "the end of the cell as diverged")
        assert not flag.exists(), "rank 1 did not read the poison, so it is not the cause"
        run.until(lambda index=index: run.state(index + 1) == "running" and run.step() > 0, "a step of the next cell")
        assert run.workers() == workers
    first, poisoned, also, stopped, last = ledger_of(run.home, NAME).entries
    asked = time.monotonic()
    stop = oec("stop", NAME, "--cell", stopped, home=run.home)
    took = time.monotonic() - asked
    assert stop.stdout == f"cell {stopped} has stopped\n", stop.stderr
    assert run.state(3) == "pruned"
    run.until(lambda: run.state(4) == "running", "the next cell")
    assert time.monotonic() - asked < within(5) + took
    twice = oec("stop", NAME, "--cell", stopped, home=run.home)
    assert twice.returncode == 2
    assert "is pruned; give a running cell" in twice.stderr
    run.until(lambda: newest_step(run.home, NAME, last) > 100, "a checkpoint of the last cell behind its second row")
    assert run.workers() == workers

    interrupted = time.time()
    run.driver.send_signal(signal.SIGINT)
    assert "re-run the same command to resume" in run.ends(75)
    assert time.time() - interrupted < within(10), "the driver takes too long to save its state"
    assert [cell.id for cell in ledger_of(run.home, NAME).missing()] == [last]
    nothing_runs = oec("stop", NAME, home=run.home)
    assert nothing_runs.returncode == 2
    assert "is not running" in nothing_runs.stderr
    request = run.home / "studies" / NAME / "stop" / "study"
    request.parent.mkdir(exist_ok=True)
    request.touch()
    done = oec("run", path, home=run.home)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 cells, 1 to train" in done.stdout
    assert "Trial" not in done.stdout, "Ray Tune prints to the user's log"
    assert not request.exists()

    agree(run.home, NAME)
    assert starts(run.home, NAME) == [2, 1, 1, 1, 2], (
        "only the death of a trial's actor or of the driver starts a new trial"
    )
    for cell, ended in ((first, killed), (last, interrupted)):
        rows = read(Home(run.home).metrics(cell, NAME))
        assert rows[1].time < ended, "the cell started over instead of resuming from its checkpoint"
        assert [row.step for row in rows] == list(range(0, STEPS + 1, 100))
    results = {cell: entry.result for cell, entry in ledger_of(run.home, NAME).entries.items()}
    assert " at step " in results[poisoned].reason
    assert " at step " in results[also].reason
    assert results[stopped].reason == "oec stop"
    assert {cell: results[cell].val_loss for cell in (first, last)} == undisturbed


@pytest.mark.long
@pytest.mark.fault("SIGSTOP of a rank")
def test_a_frozen_rank_is_replaced_and_its_cell_resumes(
    begin: Callable[..., Run], study: Path, undisturbed: Losses
) -> None:
    run = begin(study, RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S="10")
    run.trains()
    before, step = run.workers(), run.step()
    frozen = run.named(TRAIN_WORKER)[-1]
    frozen.suspend()
    froze = time.monotonic()
    run.until(lambda: frozen not in run.named(TRAIN_WORKER), "the end of the frozen process")
    assert time.monotonic() - froze < within(90), "Ray notices after 10 s and takes about 40 s more to end the process"
    run.trains(beyond=step + 50)
    assert run.state(0) == "running"
    assert before.isdisjoint(run.workers())
    run.ends()
    agree(run.home, NAME)
    assert starts(run.home, NAME) == [1, 1], "the trial was restarted"
    assert losses(run.home, NAME) == undisturbed


@pytest.mark.fault("SIGTERM to the driver while Ray starts", times=3)
def test_a_driver_that_is_terminated_while_ray_starts_says_how_to_resume(
    begin: Callable[..., Run], study: Path, tmp_path: Path
) -> None:
    """The driver gets SIGTERM at three moments between its first output and its first cell."""
    home = tmp_path / "home"
    assert oec("data", "prepare", study, home=home).returncode == 0
    for moment in range(3):
        run = begin(study)
        run.until(lambda run=run: " to train; " in run.log.read_text(), "its first words")
        time.sleep(1.4 * moment)  # the delay is the fault
        run.driver.send_signal(signal.SIGTERM)
        assert "re-run the same command to resume" in run.ends(75)
    nothing_left_over(home)


@pytest.mark.long
@pytest.mark.fault("a pruner ends a running cell")
def test_the_pruner_ends_a_trial_and_the_group_stays_warm(
    begin: Callable[..., Run], study: Path, tmp_path: Path
) -> None:
    """Five learning rates train well and one hardly trains; proposals between them are compared with the five."""
    training = yaml.safe_load(study.read_text())["training"] | {"steps": 200, "warmup_steps": 20, "min_lr": 0.0}
    path = changed(
        study,
        tmp_path,
        training=training,
        lrs=[1e-6, 1e-3, 2e-3, 3e-3, 4e-3, 5e-3],
        refine={"trials": 6, "pruner": "median"},
        resources={"workers": 1, "concurrency": 1},
        intervals={"evaluate": 10, "checkpoint": 200},
    )
    run = begin(path)
    run.until(lambda: ledger_of(run.home, NAME).counts()["finished"] > 0, "a finished cell")
    workers = run.workers()
    run.until(lambda: ledger_of(run.home, NAME).counts()["pruned"] > 0, "a pruned cell")
    ended = time.monotonic()
    known = ledger_of(run.home, NAME).seq
    run.until(lambda: ledger_of(run.home, NAME).seq > known, "the next cell")
    assert time.monotonic() - ended < within(5)
    assert run.workers() == workers
    run.ends()
    entries = list(ledger_of(run.home, NAME).entries.values())
    pruned = [entry for entry in entries if entry.state == "pruned"]
    assert {entry.origin for entry in pruned} == {"refine"}, "a grid cell was pruned"
    assert all(entry.result.reason.startswith("the median pruner: val_loss ") for entry in pruned)
    assert len(entries) == 12
    agree(run.home, NAME)
