"""The steps of a cell that a page contains."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from dashboards.steps import MAX_CELLS, MAX_NUMBERS, MAX_ROWS, METRICS, MIN_ROWS, at_end, rows_per_cell, thin
from search_spaces.record import Row
from trainers.diagnostics import keys


@given(st.integers(0, 500), st.integers(2, 80))
def test_first_and_last_are_kept(rows: int, max_rows: int) -> None:
    found = thin([Row(i, 0.0, {"val_loss": 1 / (i + 1)}) for i in range(rows)], max_rows)
    steps = found["step"]
    assert len(steps) == min(rows, max_rows)
    if rows:
        assert (steps[0], steps[-1]) == (0, rows - 1)
        assert steps == sorted(set(steps))
        assert found["val_loss"] == [float(f"{1 / (i + 1):.4g}") for i in steps]


def test_layers_are_averaged_and_non_finite_values_are_none() -> None:
    rows = [Row(0, 0.0, {"qkv_norm/0": 1.0, "qkv_norm/1": 3.0}), Row(1, 1.0, {"qkv_norm/0": math.inf, "log_z": 2.0})]
    found = thin(rows)
    assert found == {"step": [0, 1], "qkv_norm": [2.0, None], "log_z": [None, 2.0]}
    assert math.isnan(at_end(found, "qkv_norm"))
    assert at_end(found, "log_z") == 2.0
    assert math.isnan(at_end(found, "val_loss"))


def test_the_number_of_rows_respects_the_limits() -> None:
    assert rows_per_cell(1) == MAX_ROWS
    assert rows_per_cell(MAX_CELLS) == MIN_ROWS
    assert all(cells * rows_per_cell(cells) * len(METRICS) <= MAX_NUMBERS for cells in range(1, MAX_CELLS + 1))


def test_runs_record_every_metric() -> None:
    measured = {key.partition("/")[0] for key in keys(2)}
    assert set(METRICS) <= measured
