"""Whole studies through the real command, while processes of its Ray cluster die, freeze, or are asked to end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.faults.invariants import agree, ledger_of, losses, nothing_left_over, starts
from tests.faults.running import NAME, Run
from tests.service.oec import oec
from tests.timing import within

pytestmark = pytest.mark.slow

POISON = Path(__file__).with_name("poison")
"""A folder for ``PYTHONPATH``, see there."""
TRAIN_WORKER, TRIAL = "ray::RayTrainWorker", "ray::ResourceTrainable"


@pytest.fixture
def running(study: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Run]:
    run = Run(study, tmp_path / "home", **getattr(request, "param", {}))
    yield run
    run.close()


@pytest.mark.parametrize(
    "title",
    [
        pytest.param(TRAIN_WORKER, marks=pytest.mark.fault("SIGKILL of a Ray Train worker in mid-step")),
        pytest.param(TRIAL, marks=pytest.mark.fault("SIGKILL of the trial's actor")),
    ],
)
def test_a_killed_process_costs_no_result(running: Run, undisturbed: dict[str, float | None], title: str) -> None:
    """A Ray Train worker in mid-step; the trial's actor, which owns the group."""
    running.trains()
    running.named(title)[0].kill()
    running.ends()
    agree(running.home, NAME, undisturbed)
    assert ledger_of(running.home, NAME).counts()["finished"] == 2


@pytest.mark.fault("SIGSTOP of a rank")
@pytest.mark.parametrize("running", [{"RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "5"}], indirect=True)
def test_a_frozen_rank_is_noticed_and_its_group_replaced(running: Run, undisturbed: dict[str, float | None]) -> None:
    running.trains()
    before = {process.pid for process in running.named(TRAIN_WORKER)}
    frozen = running.named(TRAIN_WORKER)[-1]
    frozen.suspend()
    froze, step = time.monotonic(), running.step()
    running.until(lambda: frozen not in running.named(TRAIN_WORKER), "the end of the frozen process")
    assert time.monotonic() - froze < within(90), "it is noticed after 5 s, and Ray takes some 40 to end it"
    running.until(lambda: running.step() > step + 100 or running.state(0) == "finished", "progress after the freeze")
    assert before.isdisjoint(process.pid for process in running.named(TRAIN_WORKER))
    running.ends()
    agree(running.home, NAME, undisturbed)


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(number, marks=pytest.mark.fault(f"{number.name} to the driver"))
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
    ],
)
def test_a_driver_that_ends_is_resumed_by_the_same_command(
    running: Run, study: Path, undisturbed: dict[str, float | None], number: signal.Signals
) -> None:
    """In its second cell: the first is not trained again."""
    running.trains_the_second()
    asked = time.monotonic()
    running.driver.send_signal(number)
    running.ends(75 if number != signal.SIGKILL else -number)
    assert time.monotonic() - asked < within(10), "it takes too long to save its state"
    done = oec("run", study, home=running.home)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 to train" in done.stdout
    assert starts(running.home, NAME) == [1, 2], "the finished cell was trained again"
    agree(running.home, NAME, undisturbed)


@pytest.mark.fault("SIGTERM to the driver while Ray starts", times=6)
def test_a_driver_that_is_ended_while_ray_starts_says_so(study: Path, tmp_path: Path) -> None:
    """At six moments of the seconds between its first words and its first cell."""
    home = tmp_path / "home"
    assert oec("data", "prepare", study, home=home).returncode == 0
    for moment in range(6):
        run = Run(study, home)
        try:
            run.until(lambda run=run: " to train; " in run.log.read_text(), "its first words")
            time.sleep(0.7 * moment)  # the moment is the fault
            run.driver.send_signal(signal.SIGTERM)
            assert "the same command goes on" in run.ends(75)
        finally:
            run.close()
    nothing_left_over(home)


@pytest.mark.fault("SIGKILL of a Ray Train worker, as often as max_failures", times=2)
def test_a_cell_that_fails_too_often_is_crashed_and_tried_again_on_demand(
    running: Run, study: Path, undisturbed: dict[str, float | None]
) -> None:
    """Twice by default. The study goes on with the other cell."""
    running.trains()
    running.named(TRAIN_WORKER)[0].kill()
    step = running.step()
    running.trains(beyond=step + 100)
    running.named(TRAIN_WORKER)[0].kill()
    said = running.ends(1)
    assert "--retry-crashed" in said
    first, second = ledger_of(running.home, NAME).entries.values()
    assert (first.state, second.state) == ("crashed", "finished")
    assert "its worker group died, failure 2 of this cell" in first.result["reason"]
    agree(running.home, NAME)
    before = ledger_of(running.home, NAME).seq
    done = oec("run", study, "--retry-crashed", home=running.home)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 to train" in done.stdout
    assert ledger_of(running.home, NAME).seq == before + 2, "running and finished, of one cell"
    agree(running.home, NAME, undisturbed)


@pytest.mark.fault("a loss that is not finite on one rank only")
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_one_rank_s_loss_ends_the_cell_on_both_and_the_group_stays_warm(
    study: Path, undisturbed: dict[str, float | None], tmp_path: Path, value: str
) -> None:
    flag = tmp_path / "poison"
    run = Run(study, tmp_path / "home", PYTHONPATH=f"{POISON}:{os.environ.get('PYTHONPATH', '')}", POISON=str(flag))
    try:
        run.trains()
        workers = {process.pid for process in run.named(TRAIN_WORKER)}
        flag.write_text(value)
        run.until(lambda: run.state(0) == "diverged", "the end of the cell as diverged")
        assert not flag.exists(), "it was not rank 1 that brought it about"
        run.until(lambda: run.state(1) == "running" and run.step() > 0, "a step of the next cell")
        assert {process.pid for process in run.named(TRAIN_WORKER)} == workers
        run.ends()
    finally:
        run.close()
    agree(run.home, NAME)
    first, second = ledger_of(run.home, NAME).entries.values()
    assert " at step " in first.result["reason"]
    assert second.result["val_loss"] == undisturbed[second.cell.id]


@pytest.mark.fault("oec stop of a cell")
def test_stop_ends_a_cell_and_the_group_stays_warm(running: Run, undisturbed: dict[str, float | None]) -> None:
    running.trains()
    workers = {process.pid for process in running.named(TRAIN_WORKER)}
    first, second = ledger_of(running.home, NAME).entries
    asked = time.monotonic()
    stopped = oec("stop", NAME, "--cell", first, home=running.home)
    took = time.monotonic() - asked
    assert stopped.stdout == f"cell {first} has ended\n", stopped.stderr
    assert running.state(0) == "pruned"
    running.until(lambda: running.state(1) == "running", "the next cell")
    assert time.monotonic() - asked < within(5) + took
    again = oec("stop", NAME, "--cell", first, home=running.home)
    assert again.returncode == 2
    assert "is pruned; name a cell that is running" in again.stderr
    running.trains()
    assert {process.pid for process in running.named(TRAIN_WORKER)} == workers
    running.ends()
    agree(running.home, NAME)
    assert losses(running.home, NAME)[second] == undisturbed[second]
    assert ledger_of(running.home, NAME).entries[first].result["reason"] == "oec stop"


@pytest.mark.fault("a pruner ends a cell in mid-run")
def test_the_pruner_ends_a_trial_and_the_group_stays_warm(study: Path, tmp_path: Path) -> None:
    """Five learning rates train and one hardly does; Optuna's proposals between them are held against the five."""
    content = yaml.safe_load(study.read_text())
    content["training"] |= {"steps": 400, "warmup_steps": 40, "min_lr": 0.0}
    content |= {"lrs": [1e-6, 1e-3, 2e-3, 3e-3, 4e-3, 5e-3], "refine": {"trials": 6, "pruner": "median"}}
    content |= {"intervals": {"evaluate": 20, "checkpoint": 400}}
    path = tmp_path / "pruned.yaml"
    path.write_text(yaml.safe_dump(content))
    run = Run(path, tmp_path / "home")
    workers: set[int] = set()
    try:
        run.until(lambda: ledger_of(run.home, NAME).counts()["finished"] > 0, "a finished cell")
        workers = {process.pid for process in run.named(TRAIN_WORKER)}
        run.until(lambda: ledger_of(run.home, NAME).counts()["pruned"] > 0, "a pruned cell")
        ended = time.monotonic()
        known = ledger_of(run.home, NAME).seq
        run.until(lambda: ledger_of(run.home, NAME).seq > known, "the next cell")
        assert time.monotonic() - ended < within(5)
        assert {process.pid for process in run.named(TRAIN_WORKER)} == workers
        run.ends()
    finally:
        run.close()
    entries = list(ledger_of(run.home, NAME).entries.values())
    pruned = [entry for entry in entries if entry.state == "pruned"]
    assert {entry.origin for entry in pruned} == {"refine"}, "a cell of the grid was pruned"
    assert all(entry.result["reason"].startswith("the median pruner: val_loss ") for entry in pruned)
    assert len(entries) == 12
    agree(run.home, NAME)


@pytest.mark.fault("oec stop of a study")
def test_stop_ends_a_study_which_the_same_command_resumes(
    running: Run, study: Path, undisturbed: dict[str, float | None]
) -> None:
    running.trains()
    stopped = oec("stop", NAME, home=running.home)
    assert stopped.stdout == f"{NAME} has ended\n", stopped.stderr
    assert "the same command goes on" in running.ends(75)
    assert running.step() > 150, "its checkpoint is kept"
    nothing_runs = oec("stop", NAME, home=running.home)
    assert nothing_runs.returncode == 2
    assert "is not being run" in nothing_runs.stderr
    done = oec("run", study, home=running.home)
    assert done.returncode == 0, done.stdout + done.stderr
    agree(running.home, NAME, undisturbed)


@pytest.mark.fault("a stop request left behind by a killed driver")
def test_what_a_kill_left_in_a_study_s_folder_is_not_taken_for_a_request(study: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "studies" / NAME / "stop").mkdir(parents=True)
    (home / "studies" / NAME / "stop" / "study").touch()
    done = oec("run", study, home=home)
    assert done.returncode == 0, done.stdout + done.stderr
    agree(home, NAME)
    assert not (home / "studies" / NAME / "stop" / "study").exists()
