"""``oec run`` of a small study in the background, and its processes."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from benchmarks.command import start
from benchmarks.invariants import ledger_of, processes

NAME, STEPS = "disturbed", 500
TRAIN_WORKER = "ray::RayTrainWorker"
TRIAL = ("ray::ResourceTrainable", "ray::TrialOfCells")
"""Titles of a trial's actor during a call from Tune and between two calls."""
DEADLINE_S = 600


def newest_step(home: Path, name: str, cell: str = "*") -> int:
    """Returns the step of the newest checkpoint of a cell, or of any cell."""
    found = home.glob(f"studies/{name}/cells/{cell}/checkpoints/step-*.json")
    return max((int(path.stem.removeprefix("step-")) for path in found), default=0)


def until(
    condition: Callable[[], bool], what: str, driver: subprocess.Popen[bytes], log: Path, pause_s: float = 0.1
) -> None:
    """Waits for a condition. If the driver ends first or it takes too long, it fails with the driver's log."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert driver.poll() is None, f"the driver ended before {what}:\n{log.read_text()}"
        assert time.monotonic() < deadline, f"no {what} in {DEADLINE_S} s:\n{log.read_text()}"
        time.sleep(pause_s)


class Run:
    """``oec run`` in the background."""

    def __init__(self, study: Path, home: Path, name: str = NAME, **environment: str) -> None:
        self.study, self.home, self.name, self.log = study, home, name, home.parent / f"{name}.log"
        home.mkdir(exist_ok=True)
        self.driver = start("run", study, home=home, log=self.log, **environment)

    def until(self, condition: Callable[[], bool], what: str) -> None:
        until(condition, what, self.driver, self.log)

    def step(self) -> int:
        return newest_step(self.home, self.name)

    def trains(self, beyond: int = 150) -> None:
        self.until(lambda: self.step() > beyond, f"a checkpoint beyond step {beyond}")

    def trains_the_second(self, beyond: int = 150) -> None:
        self.trains()
        self.until(lambda: self.state(0) == "finished" and self.step() > beyond, f"step {beyond} of the second cell")

    def named(self, title: str | tuple[str, ...]) -> list[psutil.Process]:
        """Returns the processes of this run that have this title, which Ray sets, oldest first."""
        found = []
        for process in processes(self.home):
            try:
                if process.cmdline()[:1] and process.cmdline()[0].startswith(title):
                    found.append((process.create_time(), process.pid, process))
            except psutil.NoSuchProcess:
                continue
        return [process for _, _, process in sorted(found)]

    def workers(self) -> set[int]:
        return {process.pid for process in self.named(TRAIN_WORKER)}

    def ends(self, code: int = 0) -> str:
        self.driver.wait(timeout=DEADLINE_S)
        said = self.log.read_text()
        assert self.driver.returncode == code, said
        return said

    def state(self, index: int) -> str:
        return list(ledger_of(self.home, self.name).entries.values())[index].state

    def close(self) -> None:
        for process in processes(self.home):
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
