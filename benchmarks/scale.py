"""The scheduler at scale: the real sweep on a real Ray cluster, with simulated cells.

    python -m benchmarks.scale [--cells 10000] [--at-once 64] [--seconds 2]

Two nodes declare a core and an accelerator for each concurrent cell. Sweep, ledger, Optuna, progress and MLflow are
those of ``oec run``. The worker group is ``benchmarks.replay``, which replays the published runs in less time, so that
the mean cell takes ``--seconds``. It prints how fast cells are scheduled at the beginning and at the end, how long a
slot waits between two cells, the resource use of the driver, how far ledger and MLflow are behind, and how long it
takes to start the same study again.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from statistics import quantiles
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.nodes import Nodes
from benchmarks.replay import Replay, published
from search_spaces.plan import Plan
from search_spaces.record import Row
from search_spaces.study import Study
from service.cluster import connection
from service.cluster.placement import fit, joined_nodes
from service.home.layout import Home
from service.home.ledger import Entry, Ledger
from service.home.location import open_home
from service.home.studies import register_study
from service.mlflow.address import tracking_uri
from service.mlflow.sink import MlflowSink
from service.mlflow.store import Store
from service.sweep.progress import Progress

DATA = "published"
"""Replaces the digest of the tokens, since no tokens are read."""
MEAN_SECONDS = sum(float(run["train_seconds"]) for run in published()) / len(published())


def study(cells: int, trials: int) -> Study:
    """Returns the published study with enough seeds for ``cells`` cells, and ``trials`` of Optuna for each method."""
    paper = Study.load("paper")
    fields = paper.model_dump(mode="json", exclude_none=True) | {
        "name": "scale",
        "seeds": max(1, round(cells / len(published()))),
        "refine": {"trials": trials},
        "resources": {"workers": 1, "gpus_per_worker": 1},
    }
    return Study.validate_fields(fields)


class TimedLedger(Ledger):
    """A ledger that records the duration of each write."""

    seconds: list[float]

    def _append(self, events: Any) -> None:
        began = time.perf_counter()
        super()._append(events)
        self.__dict__.setdefault("seconds", []).append(time.perf_counter() - began)


@dataclass(frozen=True)
class Mark:
    """The driver after ``cells`` cells."""

    cells: int
    at: float
    process_seconds: float
    scheduler_seconds: float
    """CPU seconds of the thread that schedules, which also runs the sweep's callbacks."""
    rss: int
    undelivered: int


class Marks:
    """An observer that samples its own process after each tenth of the cells, and after the thousandth."""

    def __init__(self, cells: int, sink: MlflowSink) -> None:
        self._sink, self._ended = sink, 0
        self._at = {round(cells * tenth / 10) for tenth in range(1, 11)} | {1, 1000}
        self.marks: list[Mark] = []

    def on_start(self, entry: Entry) -> None: ...

    def on_row(self, entry: Entry, row: Row) -> None: ...

    def on_end(self, entry: Entry) -> None:
        self._ended += 1
        if self._ended in self._at:
            rss = psutil.Process().memory_info().rss
            used = time.process_time(), time.thread_time()
            self.marks.append(Mark(self._ended, time.time(), *used, rss, self._sink.backlog))
            print(self.marks[-1], file=sys.stderr)  # the only output of a run that is interrupted


@dataclass(frozen=True)
class Simulated:
    """The results of a simulated sweep."""

    marks: Sequence[Mark]
    ended: Sequence[dict[str, Any]]
    """The ledger's lines of ended cells, in order."""
    ledger_bytes: int
    append_seconds: Sequence[float]
    delivered_seconds: float
    """Seconds from the end of the last cell until MLflow had everything."""
    undelivered: int
    """Number of deliveries that were still pending when waiting for them was given up."""


def simulate(spec: Study, home: Home, at_once: int, train: Replay, deliver_s: float) -> Simulated:
    """Runs the sweep of ``service.sweep.run.run_study`` on the cluster that this process has joined."""
    from service.sweep.sweep import sweep

    plan = Plan(spec, DATA)
    register_study(home, spec)
    fits = fit(spec.resources, joined_nodes()).cells
    ledger = TimedLedger(home.ledger(spec.name), spec.name, write=True)
    with ledger:
        ledger.plan(plan.cells)
        sink = MlflowSink(tracking_uri(home), home, spec)
        marks = Marks(plan.cell_count, sink)
        with Progress(plan, ledger, Console(stderr=True)) as progress:
            sweep(plan, train, home, ledger, [progress, sink, marks], max_concurrent=min(at_once, fits))
        over = time.monotonic()
        sink.close(deliver_s)
        delivered = time.monotonic() - over
    lines = [json.loads(line) for line in home.ledger(spec.name).read_text().splitlines()]
    return Simulated(
        marks=marks.marks,
        ended=[line for line in lines if "result" in line],
        ledger_bytes=home.ledger(spec.name).stat().st_size,
        append_seconds=ledger.seconds,
        delivered_seconds=delivered,
        undelivered=max(0, sink.backlog),
    )


def resubmitted(home: Home, spec: Study) -> Iterator[tuple[str, float]]:
    """Times what the same command does for a complete study, and what it would do if one cell were left."""
    from service.sweep.refinement import Refinement
    from service.sweep.search import CellSearch, open_storage

    began = time.perf_counter()

    def passed() -> float:
        nonlocal began
        before, began = began, time.perf_counter()
        return began - before

    plan = Plan(spec, DATA)
    with Ledger(home.ledger(spec.name), spec.name, write=True) as ledger:
        ledger.plan(plan.cells)
        missing = len(ledger.missing()) + sum(Refinement(plan, ledger).cells_left.values())
        yield f"read the ledger, {missing} cells missing", passed()
        CellSearch(plan, ledger, open_storage(home.study(spec.name) / "optuna.journal"), ledger.missing())
        yield "open Optuna's journal", passed()
        store = Store(tracking_uri(home), home, spec)
        store.connect()
        yield "know what MLflow has, its import included", passed()
        for entry in ledger.ended():
            store.deliver(entry)
        yield "see that MLflow lacks nothing", passed()
        yield "memory at the end, MiB", psutil.Process().memory_info().rss / 2**20


def show(found: Simulated, at_once: int, home: Home) -> Iterator[Table | str]:
    """Prints the results."""
    marks, ends = found.marks, [datetime.fromisoformat(line["at"]).timestamp() for line in found.ended]
    table = Table("cells", "cells/s", "driver CPU s per 1,000", "of them scheduling", "RSS MiB", "MLflow behind")
    for before, mark in pairwise(marks):
        cells = mark.cells - before.cells
        table.add_row(
            f"{mark.cells:,}",
            f"{cells / (mark.at - before.at):.1f}",
            f"{1000 * (mark.process_seconds - before.process_seconds) / cells:.1f}",
            f"{1000 * (mark.scheduler_seconds - before.scheduler_seconds) / cells:.1f}",
            f"{mark.rss / 2**20:.0f}",
            f"{mark.undelivered:,}",
        )
    yield table
    results = [line["result"] for line in found.ended]
    waited = [result["waited_seconds"] for result in results if "waited_seconds" in result]
    slots = len({result["slot"] for result in results})
    cells, took = len(ends), ends[-1] - ends[0]
    yield f"{cells:,} cells in {took:.0f} s on {slots} slots of {at_once}: {cells / took:.1f} cells/s"
    yield f"a slot between two cells: {spread(waited)}"
    lag = [end - result["ended_at"] for end, result in zip(ends, results, strict=True)]
    yield f"from a cell's end to its line in the ledger: {spread(lag)}"
    yield f"a write to the ledger, synced: {spread(found.append_seconds[2:])}"
    yield f"the ledger: {found.ledger_bytes / 2**20:.1f} MiB, {found.ledger_bytes / cells:,.0f} bytes a cell"
    yield f"MLflow has everything {found.delivered_seconds:.1f} s after the last cell; undelivered {found.undelivered}"
    for what, path in (
        ("Optuna's journal", home.study("scale") / "optuna.journal"),
        ("mlflow.db", home.path / "mlflow.db"),
    ):
        yield f"{what}: {path.stat().st_size / 2**20:.1f} MiB, {path.stat().st_size / cells:,.0f} bytes a cell"
    ray_files = sum(len(files) for _, _, files in os.walk(home.ray))
    files = sum(len(files) for _, _, files in os.walk(home.path))
    yield f"files in the home: {files:,}, of them Ray's {ray_files:,}"


def spread(seconds: Sequence[float]) -> str:
    cuts = quantiles(seconds, n=100)
    return f"p50 {1e3 * cuts[49]:.1f} ms, p95 {1e3 * cuts[94]:.1f} ms, most {1e3 * max(seconds):.0f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--at-once", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a cell of the mean")
    parser.add_argument("--evaluations", type=int, default=3, help="of a cell; each a row of its metrics")
    parser.add_argument("--trials", type=int, default=5, help="of Optuna, for each scale and method")
    parser.add_argument("--deliver", type=float, default=900.0, help="seconds that the end waits for MLflow")
    parser.add_argument("--home", help="kept; a temporary folder by default")
    parser.add_argument("--join", help=argparse.SUPPRESS)
    parser.add_argument("--resubmit", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(signum))  # this ends the nodes
    spec = study(arguments.cells, arguments.trials)
    if arguments.join:
        connection.connect(arguments.join)
        train = Replay(speedup=MEAN_SECONDS / arguments.seconds, evaluations=arguments.evaluations)
        home = open_home(arguments.home)
        found = simulate(spec, home, arguments.at_once, train, arguments.deliver)
        for line in show(found, arguments.at_once, home):
            Console().print(line, soft_wrap=True, highlight=False)
    elif arguments.resubmit:
        for what, figure in resubmitted(open_home(arguments.home), spec):
            print(f"{what}: {figure:.2f}")
    else:
        with tempfile.TemporaryDirectory() as folder:
            measure(arguments.at_once, arguments.home or folder)


def measure(at_once: int, home: str) -> None:
    """Runs the sweep, then the same study again, each in its own process with this process's options."""
    half = ["--num-cpus", str(-(-at_once // 2)), "--num-gpus", str(-(-at_once // 2))]
    again = [sys.executable, "-m", "benchmarks.scale", *sys.argv[1:], "--home", home]
    with Nodes() as nodes:
        nodes.head(*half)
        nodes.worker(*half)
        subprocess.run([*again, "--join", nodes.address], env={**os.environ, **nodes.environment}, check=True)
    subprocess.run([*again, "--resubmit"], check=True)


if __name__ == "__main__":
    main()
