"""Reads thousands of mutated files with every reader of external files.

    python -m benchmarks.fuzz [--inputs 6000] [--seed 1]

Each file must be read, or rejected with a message that names a field and a remedy. Any other outcome, including a hang
of more than 20 s, is printed with the smallest input that causes it, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback

from rich.console import Console
from rich.table import Table

from benchmarks.fuzzing import fuzz
from benchmarks.fuzzing.targets import targets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=6000, help="in all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", help="this target alone")
    args = parser.parse_args()
    table, total, faults = Table("", "inputs", "read", "refused", "seconds"), 0, 0
    with targets() as found:
        chosen = {name: target for name, target in found.items() if args.only in (None, name)}
        for name, target in chosen.items():
            began = time.perf_counter()
            try:
                tally = fuzz(target, -(-args.inputs // len(chosen)), args.seed)
            except Exception:  # these are what fuzzing looks for
                traceback.print_exc()
                faults += 1
                continue
            total += tally.inputs
            took = f"{time.perf_counter() - began:.0f}"
            table.add_row(name, f"{tally.inputs}", f"{tally.inputs - tally.refused}", f"{tally.refused}", took)
    Console().print(table, f"{total} inputs; {faults} targets with a fault")
    sys.exit(faults > 0)


if __name__ == "__main__":
    main()
