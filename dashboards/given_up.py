"""What giving up on runs beyond hope has saved."""

from __future__ import annotations

import pandas as pd

from search_spaces.intervals import given_up_note
from search_spaces.record import CellResult


def given_up_text(runs: pd.DataFrame) -> str:
    """A sentence about a table of runs; an empty string if none was given up."""
    given_up = runs[runs["skipped_steps"].notna()]
    columns = (given_up[name].fillna(0) for name in ("steps", "train_seconds", "skipped_steps"))
    note = given_up_note(
        CellResult(steps=int(steps), train_seconds=seconds, skipped_steps=int(skipped))
        for steps, seconds, skipped in zip(*columns, strict=True)
    )
    return note and f"{note}."
