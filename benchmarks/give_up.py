"""How often would ``intervals.give_up`` end a run that comes back, and what does it save? From finished studies.

    python -m benchmarks.give_up HOME STUDY... [--most 6]

The studies have to be trained without ``give_up``. For each number of evaluations, prints how many runs would have been
given up, how many of those ended below ``l_init`` all the same (their loss on the curve would change), and the share of
all steps saved.
"""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

from search_spaces.intervals import GiveUp
from search_spaces.record import Row
from service.home.ledger import Entry
from service.home.location import open_home
from service.home.studies import read_ledger
from trainers.rows import read


def given_up_at(rows: list[Row], give_up: GiveUp, l_init: float) -> int | None:
    """Returns the step at which a run would have been given up, or None if it would have run to its end."""
    evaluated = [(row.step, row.val_loss) for row in rows if row.val_loss is not None]
    losses = [loss for _, loss in evaluated]
    return next((step for n, (step, _) in enumerate(evaluated, 1) if give_up.is_reached(losses[:n], l_init)), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("home")
    parser.add_argument("studies", nargs="+")
    parser.add_argument("--most", type=int, default=6, help="largest number of evaluations to try")
    args = parser.parse_args()
    home = open_home(args.home)
    table = Table("study", "runs", "diverged", "evaluations", "given up", "came back", "steps saved")
    for study in args.studies:
        entries = [entry for entry in read_ledger(home, study).ended() if entry.state in ("finished", "diverged")]
        if any(entry.result.skipped_steps is not None for entry in entries):
            parser.error(f"runs of {study} were given up: train it with `intervals: {{give_up: null}}`")
        rows = {entry.id: read(home.metrics(entry.id, study)) for entry in entries}
        diverged = sum(entry.outcome.verdict == "diverged" for entry in entries)
        for evaluations in range(1, args.most + 1):
            give_up = GiveUp(evaluations=evaluations)
            ends = [(entry, given_up_at(rows[entry.id], give_up, entry.result.l_init or 0.0)) for entry in entries]
            ended: list[tuple[Entry, int]] = [(e, step) for e, step in ends if step and step < (e.result.steps or 0)]
            back = [entry for entry, _ in ended if entry.outcome.verdict != "diverged"]
            saved = sum((entry.result.steps or 0) - step for entry, step in ended)
            share = saved / sum(entry.result.steps or 0 for entry in entries)
            numbers = (len(entries), diverged, evaluations, len(ended), len(back), f"{share:.1%}")
            table.add_row(study, *map(str, numbers))
    Console().print(table)


if __name__ == "__main__":
    main()
