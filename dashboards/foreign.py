"""Rows of another program's table that are not training runs: parents of nested runs, summaries, blank lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

IDENTITY = ("scale", "method", "lr", "seed")
"""What tells a run apart from others; every run has all of them."""


def training_runs(
    table: pd.DataFrame, names: Sequence[str], parents: Sequence[int | None] = ()
) -> tuple[pd.DataFrame, str]:
    """The rows of ``table`` that are training runs, and a sentence about the others, empty if there are none.

    A row is not a run if it has no learning rate, if it has no loss and lacks another part of its identity, or if it
    only groups runs of the table. One with a learning rate and a loss is a run, so what it lacks must be given. If no
    row is a run, all are returned: an error about what they lack says more than an empty table.

    Args:
        table: our columns, with None for a missing value.
        names: how to name each row for a person.
        parents: for each row the position of the row that it is nested in; empty if no row is nested.
    """
    lacking: pd.DataFrame = table[[column for column in IDENTITY if column in table]].isna()
    no_run = lacking["lr"] | (lacking.any(axis=1) & table["val_loss"].isna())
    of_runs = {parent for parent, other in zip(parents, no_run, strict=False) if not other}
    groups = pd.Series([i in of_runs for i in range(len(table))], index=table.index) & ~no_run
    if (no_run | groups).all():
        return table, ""
    sentences = []
    if count := int(no_run.sum()):
        columns = [column for column in IDENTITY if column in lacking and lacking[column][no_run].any()]
        sentences.append(_left_out(count, f"without {', '.join(columns)}", _first(names, no_run)))
    if count := int(groups.sum()):
        which = "that only groups others" if count == 1 else "that only group others"
        sentences.append(_left_out(count, which, _first(names, groups)))
    return table[~(no_run | groups)], "; ".join(sentences)


def _first(names: Sequence[str], chosen: pd.Series[Any]) -> str:
    return next(name for name, is_chosen in zip(names, chosen, strict=True) if is_chosen)


def _left_out(count: int, which: str, example: str) -> str:
    return f"{count} {'run' if count == 1 else 'runs'} {which} left out, such as {example}"
