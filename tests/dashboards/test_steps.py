"""What a page keeps of a cell's steps."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from dashboards.steps import FEWEST_ROWS, METRICS, MOST_CELLS, MOST_ROWS, NUMBERS, at_end, rows_of_each, thinned
from trainers.diagnostics import keys


@given(st.integers(0, 500), st.integers(2, 80))
def test_first_and_last_are_kept(rows: int, most: int) -> None:
    found = thinned([{"step": i, "val_loss": 1 / (i + 1)} for i in range(rows)], most)
    steps = found["step"]
    assert len(steps) == min(rows, most)
    if rows:
        assert (steps[0], steps[-1]) == (0, rows - 1)
        assert steps == sorted(set(steps))
        assert found["val_loss"] == [float(f"{1 / (i + 1):.4g}") for i in steps]


def test_layers_are_averaged_and_what_is_not_finite_is_none() -> None:
    rows = [{"step": 0, "qkv_norm/0": 1.0, "qkv_norm/1": 3.0}, {"step": 1, "qkv_norm/0": math.inf, "log_z": 2.0}]
    found = thinned(rows)
    assert found == {"step": [0, 1], "qkv_norm": [2.0, None], "log_z": [None, 2.0]}
    assert math.isnan(at_end(found, "qkv_norm"))
    assert at_end(found, "log_z") == 2.0
    assert math.isnan(at_end(found, "val_loss"))


def test_a_page_holds_what_it_can() -> None:
    assert rows_of_each(1) == MOST_ROWS
    assert rows_of_each(MOST_CELLS) == FEWEST_ROWS
    assert all(cells * rows_of_each(cells) * len(METRICS) <= NUMBERS for cells in range(1, MOST_CELLS + 1))


def test_every_metric_is_one_that_runs_have() -> None:
    measured = {key.partition("/")[0] for key in keys(2)}
    assert set(METRICS) <= measured
