"""Studies of a command through the real ``oec run``, while its processes and those around it die or misbehave."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from benchmarks.invariants import agree, ledger_of, nothing_left_over, starts
from benchmarks.study_run import NAME, TRAIN_WORKER, TRIAL, Run
from service.home.layout import Home
from tests.faults.cluster import Cluster, run_on
from tests.service.oec import oec
from trainers.command import supervisor
from trainers.rows import read

pytestmark = [pytest.mark.slow, pytest.mark.long]

DDP = """
import argparse, json, os, pathlib, time
import torch
import torch.distributed as dist

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float)
parser.add_argument("--out", type=pathlib.Path)
parser.add_argument("--resume", action="store_true")
options = parser.parse_args()
assert os.environ["MINE_API_KEY"], "the driver's environment does not reach the command"
dist.init_process_group("gloo")
state, x, start = options.out / "state.json", torch.tensor([2.0], dtype=torch.float64), 0
if options.resume:
    value, start = json.loads(state.read_text())
    x[:] = value
for step in range(start, 201):
    loss = x * x
    dist.all_reduce(loss)
    if dist.get_rank() == 0 and step % 5 == 0:
        with (options.out / "log.jsonl").open("a") as log:
            print(json.dumps({"step": step, "val_loss": float(loss) / 2}), file=log, flush=True)
        (options.out / "state.tmp").write_text(json.dumps([float(x), step]))
        (options.out / "state.tmp").replace(state)
    x -= 2 * options.lr * x
    time.sleep(0.1)
"""
"""A DDP script with two ranks and a checkpoint every 5 steps; it takes 20 s."""


ALONE = (
    DDP.replace("import torch\nimport torch.distributed as dist\n", "")
    .replace('dist.init_process_group("gloo")\n', "")
    .replace("torch.tensor([2.0], dtype=torch.float64)", "2.0")
    .replace("    x[:] = value", "    x = value")
    .replace("    dist.all_reduce(loss)\n", "")
    .replace("dist.get_rank() == 0 and ", "")
    .replace("float(loss) / 2", "loss")
)
"""The same script without ranks, so it starts faster."""
SECRET = "hunter2-is-not-kept"


def final_loss(lr: float) -> float:
    """Returns the loss that ``DDP`` computes if nothing disturbs it."""
    x = 2.0
    for _ in range(200):
        x -= 2 * lr * x
    return x * x


def study(folder: Path, script: str, **fields: Any) -> Path:
    (folder / "train.py").write_text(script)
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({"name": NAME, **fields}))
    return path


@pytest.fixture
def started() -> Iterator[list[Run]]:
    """Yields a list of runs, which are closed after the test."""
    runs: list[Run] = []
    yield runs
    for run in runs:
        run.close()


def commands(home: Path, *words: str) -> list[psutil.Process]:
    """Returns the processes of this home's commands whose command lines contain these words, oldest first."""
    found = []
    for process in psutil.process_iter():
        try:
            words_of = process.cmdline()
            ours = process.environ().get("OEC_CELL_FOLDER", "").startswith(str(home))
            if ours and all(word in words_of for word in words) and supervisor.__file__ not in words_of:
                found.append((process.create_time(), process.pid, process))
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return [process for _, _, process in sorted(found)]


def ranks(home: Path) -> dict[int, psutil.Process]:
    """Returns the processes of a command by rank."""
    found = {}
    for process in commands(home, "--lr"):
        with suppress(psutil.NoSuchProcess):
            if rank := process.environ().get("RANK"):
                found[int(rank)] = process
    return found


def last_step(home: Path, index: int) -> int:
    cell = list(ledger_of(home, NAME).entries)[index]
    rows = read(Home(home).metrics(cell, NAME))
    return rows[-1].step if rows else -1


def kill(process: psutil.Process) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait(30)


class Victims:
    """A study of ``train.py`` that runs in the background, so that its processes can be killed while a cell trains."""

    def __init__(self, path: Path, home: Path, started: list[Run]) -> None:
        self.home, self.run = home, Run(path, home, MINE_API_KEY=SECRET)
        started.append(self.run)
        self.run.until(lambda: (home / "studies" / NAME / "ledger.jsonl").is_file(), "a ledger")

    def trains(self, index: int) -> None:
        self.run.until(
            lambda: (
                len(ledger_of(self.home, NAME).entries) > index
                and self.run.state(index) == "running"
                and last_step(self.home, index) > 10
            ),
            f"rows of cell {index}",
        )

    def resumes_after(self, victim: Callable[[], psutil.Process], index: int) -> None:
        """Kills a process while the cell trains, and waits until a command started with ``--resume`` makes progress.
        Until their group has ended, the surviving processes may continue to train, even to the end."""
        self.trains(index)
        before = {process.pid for process in commands(self.home, "--lr")}
        kill(victim())
        self.run.until(
            lambda: bool({process.pid for process in commands(self.home, "--lr", "--resume")} - before),
            f"a new command of cell {index}",
        )
        step = last_step(self.home, index)
        self.run.until(
            lambda: last_step(self.home, index) > step or self.run.state(index) == "finished",
            f"another row of cell {index}",
        )


def resumed_to_the_end(home: Path, lrs: Sequence[float]) -> None:
    """Checks every cell against an undisturbed run, and that the value of the secret variable was stored nowhere."""
    agree(home, NAME)
    told = [path for path in home.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert not told, "the value of an environment variable was stored"
    for (cell, entry), lr in zip(ledger_of(home, NAME).entries.items(), lrs, strict=True):
        assert entry.state == "finished", entry.result.reason
        assert entry.result.val_loss == pytest.approx(final_loss(lr), rel=1e-9)
        assert entry.result.l_init == 4.0
        assert [row.step for row in read(Home(home).metrics(cell, NAME))] == list(range(0, 201, 5))
        assert "--resume" in oec("logs", NAME, "--cell", cell, home=home).stdout


TRAINER = {
    "metrics": {"file": "{folder}/log.jsonl"},
    "resume": "--resume",
    "resume_from": "state.json",
    "grace_s": 2,
}


@pytest.mark.fault("SIGKILL of the command")
@pytest.mark.fault("SIGKILL of rank 1 of the command")
def test_torchrun_resumes_after_any_of_its_processes_is_killed(tmp_path: Path, started: list[Run]) -> None:
    torchrun = f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node {{workers}}"
    trainer = {"command": f"{torchrun} train.py --lr {{lr}} --out {{folder}}", **TRAINER}
    resources = {"workers": 2, "concurrency": 1, "max_failures": 3}
    victims = Victims(
        study(tmp_path, DDP, trainer=trainer, lrs=[0.002], resources=resources), tmp_path / "home", started
    )
    victims.resumes_after(lambda: commands(victims.home, "torch.distributed.run")[0], 0)
    victims.run.until(lambda: len(ranks(victims.home)) == 2, "both ranks")
    victims.resumes_after(lambda: ranks(victims.home)[1], 0)
    victims.run.ends()
    resumed_to_the_end(victims.home, [0.002])
    assert starts(victims.home, NAME) == [1]


@pytest.mark.fault("SIGKILL of the trial's actor")
@pytest.mark.fault("SIGKILL of the command's Ray Train worker")
@pytest.mark.fault("SIGKILL of the driver")
def test_a_command_resumes_whatever_is_killed_around_it(tmp_path: Path, started: list[Run]) -> None:
    """In the first cell the trial's actor is killed; in the second, the worker and then the driver."""
    trainer = {"command": f"{sys.executable} -S train.py --lr {{lr}} --out {{folder}}", **TRAINER}
    resources = {"concurrency": 1, "max_failures": 3}
    path = study(tmp_path, ALONE, trainer=trainer, lrs=[0.002, 0.003], resources=resources)
    victims = Victims(path, tmp_path / "home", started)
    home, run = victims.home, victims.run
    victims.resumes_after(lambda: run.named(TRIAL)[0], 0)
    victims.resumes_after(lambda: run.named(TRAIN_WORKER)[0], 1)
    kill(psutil.Process(run.driver.pid))
    run.driver.wait()
    nothing_left_over(home)
    done = oec("run", path, home=home, MINE_API_KEY=SECRET)
    assert done.returncode == 0, done.stdout + done.stderr
    resumed_to_the_end(home, [0.002, 0.003])
    assert starts(home, NAME) == [2, 2]


BEHAVIORS = {
    "good": ("finished", ""),
    "slow": ("finished", ""),
    "fills its output": ("finished", ""),
    "leaves a daemon": ("finished", ""),
    "NaN": ("diverged", "val_loss is nan at step 3"),
    "NaN and ignores SIGTERM": ("diverged", "val_loss is nan at step 3"),
    "above the first loss": ("diverged", "final validation loss 9.0000 is above l_init 4.0000"),
    "no metric": ("crashed", "the command exited with code 0 and reported no val_loss: looked for"),
    "exits with 3": ("crashed", "the command exited with 3; its last lines:\nit cannot go on"),
    "hangs": ("crashed", "no output and no metric for 15 s (trainer.silence_s), so it was ended"),
}
"""What each variant of ``MISBEHAVES`` does, with its cell's state and the beginning of the reason."""
MISBEHAVES = """
import json, os, signal, sys, time

how, folder = sys.argv[1:3]


def report(step, loss):
    print(json.dumps({"step": step, "val_loss": loss}), flush=True)


def daemon():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(10_000)
        os._exit(0)
    os.wait()


if "SIGTERM" in how:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if how == "leaves a daemon":
    daemon()
if how == "hangs":
    daemon()
    time.sleep(10_000)
if how == "no metric":
    sys.exit()
if how == "exits with 3":
    print("it cannot go on")
    sys.exit(3)
for step in range(600 if how == "slow" else 20):
    if how == "fills its output":
        print("x" * 2_000_000)
    report(step, float("nan") if "NaN" in how and step == 3 else 9.0 if "above" in how and step else 4.0 - step / 1000)
    time.sleep(0.1)
while "NaN" in how:
    time.sleep(1)
"""


@pytest.mark.fault("SIGKILL of a node under 10 commands")
@pytest.mark.fault("commands that misbehave, in parallel", times=len(BEHAVIORS))
def test_ten_misbehaving_commands_in_parallel(tmp_path: Path, started: list[Run]) -> None:
    """All run at the same time on one node. Its raylet is killed once half of them have ended; another node replaces
    it."""
    path = study(
        tmp_path,
        MISBEHAVES,
        trainer={
            "command": f"{sys.executable} -S train.py {{how}} {{folder}} {{lr}}",
            "metrics": {"stdout": r'"step": (?P<step>\d+), "val_loss": (?P<val_loss>\S+)}'},
            "silence_s": 15,
            "grace_s": 1,
        },
        factors={"how": list(BEHAVIORS)},
        lrs=[0.1],
        resources={"max_failures": 2},
    )
    home = tmp_path / "home"
    with Cluster() as cluster:
        cluster.head("--num-cpus", "0")
        node = cluster.worker("--num-cpus", str(len(BEHAVIORS)))
        run = run_on(cluster, path, home)
        started.append(run)
        run.until(lambda: len(ledger_of(home, NAME).ended()) >= 5, "five ends")
        assert "slow" not in [entry.cell.factors["how"] for entry in ledger_of(home, NAME).ended()]
        raylet = next(child for child in node.children(recursive=True) if "raylet" in child.name())
        kill(raylet)
        run.until(lambda: cluster.alive() == 1, "notice of the node's end")
        cluster.worker("--num-cpus", str(len(BEHAVIORS)))
        run.ends(1)
        cluster.is_free()
        nothing_left(home)
    found = {entry.cell.factors["how"]: entry for entry in ledger_of(home, NAME).entries.values()}
    for how, (state, reason) in BEHAVIORS.items():
        assert (found[how].state, found[how].result.reason[: len(reason)]) == (state, reason), how
    folders = {how: Home(home).cell(entry.id, NAME) for how, entry in found.items()}
    assert sum(path.stat().st_size for path in folders["fills its output"].rglob("*")) < 6e6
    agree(home, NAME)


def nothing_left(home: Path) -> None:
    deadline = time.monotonic() + 60
    while left := commands(home):
        assert time.monotonic() < deadline, f"processes of the commands are still running: {left}"
        time.sleep(0.5)
