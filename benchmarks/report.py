"""Seconds and memory to make the page of a home with many cells, and to show it in a browser.

    python -m benchmarks.report [--cells 1000 10000 100000]

Every cell has ended and has a metrics file of 100 rows with all metrics of a two-layer run, 0.1 MB; there are 40
distinct files, to which the cells have hard links. The targets for 10,000 cells: 5 s and 1 GiB from ledger to page, and
a page of 15 MB that opens within 3 s. Each size is measured in its own process. Imports, which take seconds, are listed
separately, and so is CPU time, which other work on the machine hardly affects. If Playwright and Chromium are
installed, the page is opened and the benchmark measures the time to its first and its last chart, and the longest time
without a response.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from search_spaces.plan import Plan
from search_spaces.record import CellResult, EndState
from search_spaces.study import Study
from service.home.layout import Home
from service.home.ledger import Ledger
from service.home.location import open_home
from service.home.studies import read_ledger, register_study
from trainers.diagnostics import keys

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROWS = 100
FILES = 40
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync")
OBSERVER = """
window.longest = 0;
new PerformanceObserver((list) => {
  for (const task of list.getEntries()) window.longest = Math.max(window.longest, task.duration);
}).observe({ type: "longtask", buffered: true });
"""
LRS = 10
METHODS = [
    "baseline",
    {"method": "z-loss", "gamma": [1e-4, 1e-2, 1.0]},
    {"method": "mu-loss", "gamma": [1e-4, 1e-2, 1.0]},
]
SCALES = ["16M", "29M", "57M"]
MEASURED = (
    "output_mu_norm",
    "logits_mean",
    "logits_std",
    "logits_absmax",
    "log_z_squared",
    "attention_logit_max",
    "output_b_ratio",
)


def filled(folder: Path, cells: int) -> Home:
    """Creates a home with one study of about ``cells`` cells: U-shaped curves, some cells diverged."""
    home, seeds = open_home(folder), max(1, round(cells / (7 * len(SCALES) * LRS)))
    lrs = np.geomspace(1e-4, 1.0, LRS).round(8).tolist()
    study = Study.validate_fields(
        {"name": "many", "scales": SCALES, "methods": METHODS, "lrs": lrs, "seeds": seeds, "training": {"min_lr": 0.0}}
    )
    register_study(home, study)
    rng, planned = np.random.default_rng(0), Plan(study, "data").cells
    kinds = [_metrics(folder / f"metrics-{i}.jsonl", rng) for i in range(FILES)]
    with Ledger(home.ledger("many"), "many", write=True) as ledger:
        ledger.plan(planned)
        ends = []
        for cell in planned:
            loss = 3.0 + 0.2 * (math.log10(cell.lr) + 2) ** 2 + rng.normal(0, 0.02)
            diverged = cell.lr > 0.3 and rng.random() < 0.5
            state: EndState = "diverged" if diverged else "finished"
            result = CellResult(
                state=state,
                val_loss=None if diverged else loss,
                l_init=10.8,
                train_seconds=60.0,
                steps=ROWS,
                metrics={key: math.exp(rng.normal()) * cell.lr for key in MEASURED},
            )
            ends.append({"event": state, "cell": cell.id, "result": result})
            path = home.metrics(cell.id, "many")
            path.parent.mkdir(parents=True)
            os.link(kinds[len(ends) % FILES], path)
        ledger._append(ends)  # synced once instead of 10,000 times
    return home


def _metrics(path: Path, rng: np.random.Generator) -> Path:
    """Returns a file of ``ROWS`` rows with every key, with falling losses and noise."""
    names = keys(2)
    noise = np.exp(rng.normal(size=(ROWS, len(names))))
    rows = [
        {"step": i, **dict(zip(names, noise[i].tolist(), strict=True)), "val_loss": 3 + 7 / (1 + i)}
        for i in range(ROWS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def opened(path: Path) -> dict[str, float]:
    """Runs ``shown`` in a separate Chromium; returns nothing without Playwright or Chromium."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return {}
    if CHROMIUM is None:
        return {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        found = shown(browser, path)
        browser.close()
    return found


def shown(browser: Browser, path: Path) -> dict[str, float]:
    """Returns the seconds until a browser shows the first and the last chart of a page, and its longest task."""
    page = browser.new_page()
    page.add_init_script(OBSERVER)
    began = time.perf_counter()
    page.goto(path.as_uri(), wait_until="commit")
    page.wait_for_selector("[data-panel] :is(svg, canvas)")
    first = time.perf_counter() - began
    page.wait_for_selector("main[aria-busy=false]", timeout=300_000)
    found = {"first": first, "last": time.perf_counter() - began, "longest": page.evaluate("longest") / 1000}
    page.close()
    return found


def _processor_seconds() -> float:
    """Returns the CPU time of this process and of its finished child processes."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def measure(folder: Path) -> dict[str, float]:
    """Measures this process, from the ledger to a written page."""
    began = time.perf_counter()
    from service.report.report import report
    from service.report.sources import load

    imported, before = time.perf_counter(), _processor_seconds()
    page = report(load("many", Home(folder)), folder / "out", Console(quiet=True), ("html",))
    found = {"imports": imported - began, "seconds": time.perf_counter() - imported}
    found["processor"] = _processor_seconds() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # GiB
    return found | {"GiB": peak, "MB": page.stat().st_size / 1e6} | opened(page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--home", type=Path, help="only measure this one")
    args = parser.parse_args()
    if args.home:
        print(json.dumps(measure(args.home)))
        return
    names = {
        "imports": "imports, s",
        "seconds": "ledger to page, s",
        "processor": "processors, s",
        "GiB": "peak, GiB",
        "MB": "page, MB",
        "first": "first chart, s",
        "last": "last, s",
        "longest": "longest task, s",
    }
    table = Table("cells", *names.values())
    for cells in args.cells:
        with tempfile.TemporaryDirectory(prefix="oec-") as folder:
            home = filled(Path(folder), cells)
            known = len(read_ledger(home, "many").entries)
            again = [sys.executable, "-m", "benchmarks.report", "--home", str(home.path)]
            found = json.loads(subprocess.check_output(again).splitlines()[-1])
        table.add_row(f"{known}", *(f"{found[name]:.2f}" if name in found else "–" for name in names))
    Console().print(table)


if __name__ == "__main__":
    main()
