"""Seconds that it takes to open a large ledger and find out what is missing in its study.

    python -m benchmarks.ledger [--cells 10000]

Every cell was planned, started and finished: three lines each. The target is 2 s for 10,000 cells on an idle machine.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from search_spaces.plan import Plan
from search_spaces.record import CellResult
from search_spaces.study import Study
from service.home.ledger import Ledger


def finished(path: Path, study: Study) -> None:
    """Writes the ledger of a complete study."""
    with Ledger(path, study.name, write=True) as ledger:
        ledger.plan(Plan(study, "data").cells)
        result = CellResult(state="finished", val_loss=2.0, l_init=5.0, train_seconds=1.0)
        for event in (
            {"event": "running"},
            {"event": "finished", "result": result},
        ):  # each synced once instead of 10,000 times
            ledger._append([{**event, "cell": cell_id} for cell_id in ledger.entries])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=10_000)
    cells = parser.parse_args().cells
    smoke = Study.load("smoke")
    study = smoke.model_copy(update={"methods": smoke.methods[:1], "lrs": (1e-3,), "seeds": tuple(range(cells))})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.jsonl"
        finished(path, study)
        plan = Plan(study, "data")
        began, used = time.perf_counter(), time.process_time()
        with Ledger(path, study.name, write=True) as ledger:
            ledger.plan(plan.cells)
            missing = len(ledger.missing())
        print(f"{cells} cells, {path.stat().st_size / 2**20:.1f} MiB, {missing} missing:")
        print(f"{time.perf_counter() - began:.2f} s, {time.process_time() - used:.2f} s of processor time")


if __name__ == "__main__":
    main()
