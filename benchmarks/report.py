"""Seconds and memory from a home of many cells to its page.

    python -m benchmarks.report [--cells 1000 10000 100000]

Every cell has ended and has a metrics file of 100 rows. The goal for 10,000 cells: at most 5 s and 1 GiB from ledger to
page, which is at most 15 MB. Each size is measured in a process of its own; imports, some seconds, are told apart.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from search_spaces.plan import Plan
from search_spaces.study import Study
from service.home import Home
from service.ledger import Ledger

ROWS = 100
LRS = 10
METHODS = [
    "baseline",
    {"method": "z-loss", "gamma": [1e-4, 1e-2, 1.0]},
    {"method": "mu-loss", "gamma": [1e-4, 1e-2, 1.0]},
]
SCALES = ["16M", "29M", "57M"]


def filled(folder: Path, cells: int) -> Home:
    """A home with one study of about so many cells: U-shaped curves, some diverged."""
    home, seeds = Home.open(folder), max(1, round(cells / (7 * len(SCALES) * LRS)))
    lrs = np.geomspace(1e-4, 1.0, LRS).round(8).tolist()
    study = Study.validate_fields(
        {"name": "many", "scales": SCALES, "methods": METHODS, "lrs": lrs, "seeds": seeds, "training": {"min_lr": 0.0}}
    )
    home.claim(study)
    rng, planned = np.random.default_rng(0), Plan(study, "data").cells
    times = range(ROWS)
    with Ledger(home.ledger("many"), "many", write=True) as ledger:
        ledger.plan(planned)
        ends = []
        for cell in planned:
            loss = 3.0 + 0.2 * (math.log10(cell.lr) + 2) ** 2 + rng.normal(0, 0.02)
            diverged = cell.lr > 0.3 and rng.random() < 0.5
            result = {"val_loss": None if diverged else loss, "l_init": 10.8, "train_seconds": 60.0, "steps": ROWS}
            result |= {"output_mu_norm": 1.0, "logits_mean": 0.1, "logits_std": 1.0, "logits_absmax": 9.0}
            ends.append({"event": "diverged" if diverged else "finished", "cell": cell.id, "result": result})
            path = home.metrics(cell.id, "many")
            path.parent.mkdir(parents=True)
            path.write_text("".join(json.dumps({"step": i, "time": 1e9 + i, "val_loss": loss}) + "\n" for i in times))
        ledger._append(ends)  # synced once, not 10,000 times
    return home


def measure(folder: Path) -> dict[str, float]:
    """Of this process: from the ledger to a written page."""
    began = time.perf_counter()
    from service.reporting import load, report

    imported = time.perf_counter()
    page = report(load("many", Home(folder)), folder / "out", Console(quiet=True), ("html",))
    found = {"imports": imported - began, "seconds": time.perf_counter() - imported}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # GiB
    return found | {"GiB": peak, "MB": page.stat().st_size / 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--home", type=Path, help="only measure this one")
    args = parser.parse_args()
    if args.home:
        print(json.dumps(measure(args.home)))
        return
    table = Table("cells", "imports, s", "ledger to page, s", "peak, GiB", "page, MB")
    for cells in args.cells:
        with tempfile.TemporaryDirectory(prefix="oec-") as folder:
            home = filled(Path(folder), cells)
            known = len(Ledger(home.ledger("many"), "many").entries)
            again = [sys.executable, "-m", "benchmarks.report", "--home", str(home.path)]
            found = json.loads(subprocess.check_output(again).splitlines()[-1])
        names = ("imports", "seconds", "GiB", "MB")
        table.add_row(f"{known}", *(f"{found[name]:.2f}" for name in names))
    Console().print(table)


if __name__ == "__main__":
    main()
