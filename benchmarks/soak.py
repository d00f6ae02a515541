"""Studies of short cells under random faults: is anything lost?

    python -m benchmarks.soak [--minutes 15] [--cells 60] [--seed 1]

A first study runs undisturbed for a third of the time, in one driver and one pair of warm workers. The soak prints the
slope of their memory over cells; from 400 cells on, a growth of 1 MB per 100 cells ends it with exit code 1. Its first
cells are then trained again in one study after another, at least one, each in its own home. Every few seconds a fault
is injected: SIGKILL to a Train worker, the trial's actor, the driver or MLflow's server, SIGSTOP to a worker, SIGTERM
or SIGINT to the driver. After each study the ``benchmarks.invariants`` must hold, and every loss must equal that of the
undisturbed study, bit for bit; the first violation ends the soak with exit code 1.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import yaml
from rich.console import Console
from rich.table import Table

from benchmarks.invariants import agree, ledger_of, losses, processes
from benchmarks.mlflow_server import Server
from benchmarks.study_run import TRAIN_WORKER, TRIAL, Run
from search_spaces.study import Study
from service.home.ledger import Ledger

NAME = "soak"
ENVIRONMENT = {"RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "10", "PYTHONFAULTHANDLER": "1"}
RESUMABLE = (os.EX_TEMPFAIL, -signal.SIGKILL)
FAULT_EVERY_S = (4.0, 16.0)
WEIGHTS = {"SIGKILL of a Train worker": 4, "SIGSTOP of a Train worker": 2, "SIGKILL of a trial's actor": 2}
"""Relative frequency of faults; the others have weight 1. These processes do not exist while a driver starts."""
WARM_UP_CELLS = 50
"""Memory is measured after these cells, when caches are full."""
MAX_GROWTH_MB, MIN_CELLS = 1.0, 400
"""Maximum growth per 100 cells, and the number of cells needed to measure it."""


def study(folder: Path, cells: int, steps: int = 60) -> Path:
    """Writes a study of short cells with two DDP workers. A cell may fail a thousand times before it is crashed."""
    smoke = Study.load("smoke")
    content = yaml.safe_load(smoke.to_yaml()) | {"name": NAME, "methods": ["baseline"], "lrs": [1e-3], "refine": 0}
    content |= {"seeds": cells, "intervals": {"evaluate": 30, "checkpoint": 10}}
    content["training"] |= {"steps": steps}
    content["resources"] = {"workers": 2, "max_failures": 1000}
    path = folder / f"study-{cells}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def memory_of(run: Run) -> dict[tuple[str, int], float]:
    """Returns the MB of the driver and of each warm worker. Shared pages count in each process."""
    found = {("driver", run.driver.pid): psutil.Process(run.driver.pid).memory_info().rss / 1e6}
    return found | {("worker", process.pid): process.memory_info().rss / 1e6 for process in run.named(TRAIN_WORKER)}


def undisturbed(folder: Path, uri: str, minutes: float, cells: int, console: Console) -> dict[str, float | None]:
    """Trains cells for ``minutes``, but at least ``cells``, and prints the slope of memory. Returns the losses."""
    run = Run(study(folder, 10_000), folder / "undisturbed", NAME, MLFLOW_TRACKING_URI=uri, **ENVIRONMENT)
    seen: dict[tuple[str, int], list[tuple[int, float]]] = {}
    done, until = 0, time.monotonic() + 60 * minutes
    try:
        while time.monotonic() < until or done < cells:
            assert run.driver.poll() is None, run.log.read_text()[-4000:]
            time.sleep(2)
            if not ledger_path(run.home).exists():
                continue
            done = Ledger(ledger_path(run.home), NAME).counts()["finished"]
            for process, megabytes in memory_of(run).items():
                seen.setdefault(process, []).append((done, megabytes))
        run.driver.send_signal(signal.SIGTERM)
        run.ends(os.EX_TEMPFAIL)
    finally:
        run.close()
    found = {cell: loss for cell, loss in losses(run.home, NAME).items() if loss is not None}
    console.print(f"undisturbed: {len(found)} cells in {minutes:.1f} min")
    grew = False
    table = Table("", "first MB", "last MB", "MB per 100 cells", title="Memory")
    for (what, pid), samples in seen.items():
        settled = np.array([sample for sample in samples if sample[0] >= WARM_UP_CELLS])
        if len(settled) > 10:
            slope = np.polyfit(settled[:, 0], settled[:, 1], 1)[0] * 100
            grew = grew or (slope >= MAX_GROWTH_MB and settled[-1, 0] >= MIN_CELLS)
            table.add_row(f"{what} {pid}", f"{settled[0, 1]:.0f}", f"{settled[-1, 1]:.0f}", f"{slope:+.2f}")
    console.print(table)
    assert not grew, f"a process grows by {MAX_GROWTH_MB} MB per 100 cells or more"
    return found


def ledger_path(home: Path) -> Path:
    return home / "studies" / NAME / "ledger.jsonl"


def one_of(run: Run, title: str | tuple[str, ...], act: Callable[[psutil.Process], None], draw: random.Random) -> bool:
    """Applies ``act`` to a random process with this title. Returns whether there was one."""
    found = run.named(title)
    if found:
        act(draw.choice(found))
    return bool(found)


def disturbed(
    folder: Path,
    server: Server,
    cells: int,
    expected: dict[str, float | None],
    draw: random.Random,
    injected: Counter[str],
) -> int:
    """Runs one study to its end under faults. Returns how many of its cells finished."""
    run = Run(study(folder, cells), folder / "home", NAME, MLFLOW_TRACKING_URI=server.uri, **ENVIRONMENT)
    faults: dict[str, Callable[[], bool]] = {
        "SIGKILL of a Train worker": lambda: one_of(run, TRAIN_WORKER, psutil.Process.kill, draw),
        "SIGSTOP of a Train worker": lambda: one_of(run, TRAIN_WORKER, psutil.Process.suspend, draw),
        "SIGKILL of a trial's actor": lambda: one_of(run, TRIAL, psutil.Process.kill, draw),
        "SIGKILL of the driver": lambda: to_driver(run, signal.SIGKILL),
        "SIGTERM to the driver": lambda: to_driver(run, signal.SIGTERM),
        "SIGINT to the driver": lambda: to_driver(run, signal.SIGINT),
        "MLflow's server killed, back after 5 s": lambda: restart(server),
    }
    try:
        while True:
            pause = time.monotonic() + draw.uniform(*FAULT_EVERY_S)
            while run.driver.poll() is None and time.monotonic() < pause:
                time.sleep(0.1)
            code = run.driver.poll()
            if code is None:
                what = draw.choices(list(faults), [WEIGHTS.get(name, 1) for name in faults])[0]
                injected[what] += faults[what]()
                continue
            if code == 0:
                break
            if code not in RESUMABLE:
                reasons = [
                    entry.result.reason for entry in ledger_of(run.home, NAME).ended() if entry.state == "crashed"
                ]
                raise AssertionError("\n".join([f"exit code {code}:", *reasons, run.log.read_text()[-4000:]]))
            again = Run(run.study, run.home, NAME, MLFLOW_TRACKING_URI=server.uri, **ENVIRONMENT)
            run.driver = again.driver
    finally:
        run.close()
    subprocess.run(
        [str(Path(sys.executable).with_name("oec")), "sync", NAME, "--home", str(run.home)],
        env={**os.environ, "MLFLOW_TRACKING_URI": server.uri},
        check=True,
        capture_output=True,
    )
    agree(run.home, NAME, uri=server.uri)
    found = losses(run.home, NAME)
    assert len(found) == cells
    for cell, loss in found.items():
        assert loss == expected[cell], f"cell {cell} ended at {loss}, undisturbed at {expected[cell]}"
    return ledger_of(run.home, NAME).counts()["finished"]


def to_driver(run: Run, number: signal.Signals) -> bool:
    if " to train; " not in run.log.read_text():  # it is still importing: there is nothing to lose yet
        return False
    run.driver.send_signal(number)
    run.driver.wait(60)
    return True


def restart(server: Server) -> bool:
    server.kill()
    time.sleep(5)
    server.start()
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--cells", type=int, default=60, help="of each disturbed study")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    # A script's background processes ignore Ctrl-C; the drivers, which inherit that, must not.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    console, draw, injected, cells, rounds = Console(), random.Random(args.seed), Counter[str](), 0, 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="oec-soak-", ignore_cleanup_errors=True) as folder:
        (Path(folder) / "first").mkdir()
        server = Server(Path(folder) / "first")
        server.start()
        try:
            expected = undisturbed(Path(folder) / "first", server.uri, args.minutes / 3, args.cells, console)
        finally:
            server.kill()
        while not rounds or time.monotonic() - began < 60 * args.minutes:
            place = Path(folder) / str(rounds)
            place.mkdir()
            server = Server(place)
            server.start()
            try:
                cells += disturbed(place, server, args.cells, expected, draw, injected)
            finally:
                server.kill()
            assert not processes(place / "home"), "a process is still running"
            rounds += 1
            console.print(f"study {rounds}: held, {sum(injected.values())} faults so far")
    table = Table("fault", "injected", "survived", title=f"{rounds} studies, {cells} cells, invariants held after each")
    for what, times in sorted(injected.items()):
        table.add_row(what, str(times), str(times))
    console.print(table)


if __name__ == "__main__":
    main()
