"""Which methods recover from a stressed start, and after how many steps.

``python -m benchmarks.recovery STUDY [--home oec-home]``, for a study that has run, such as ``stressed``.

A cell has recovered at the first evaluation after which the mean logit of the validation tokens stays within 32, where
bfloat16 still resolves differences of an eighth.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence

from search_spaces.methods import label
from search_spaces.record import Row
from service.home.location import open_home
from service.home.studies import read_ledger, require_study
from trainers.rows import read

BACK = 32.0


def back_at(rows: Sequence[Row]) -> float:
    """Returns the step after which ``|logits_mean|`` stays within ``BACK``; infinity if it ends outside."""
    step = math.inf
    for row in reversed(rows):
        if abs(row.metrics.get("logits_mean", math.inf)) > BACK:
            break
        step = row.step
    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study")
    parser.add_argument("--home", default="oec-home")
    args = parser.parse_args()
    home = open_home(args.home)
    require_study(home, args.study)
    steps: dict[tuple[str, float], list[float]] = defaultdict(list)
    for entry in read_ledger(home, args.study).entries.values():
        if entry.state in ("finished", "diverged"):
            rows = read(home.metrics(entry.cell.id, entry.reused_from or args.study))
            steps[label(entry.cell.method, entry.cell.gamma), entry.cell.lr].append(back_at(rows))
    grid = sorted({lr for _, lr in steps})
    print(f"{'step at which it is back, median over seeds':44}", *(f"lr {lr:<7g}" for lr in grid))
    for name in dict.fromkeys(name for name, _ in steps):
        found = [statistics.median(steps[name, lr]) if (name, lr) in steps else math.nan for lr in grid]
        print(f"{name:44}", *(f"{'never' if math.isinf(step) else f'{step:.0f}':10}" for step in found))


if __name__ == "__main__":
    main()
