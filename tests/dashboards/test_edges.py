"""Edges computed from a table of runs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from made_up import curve, run, study

from dashboards.runs import from_records, read_csv
from dashboards.sensitivity import curves, edge_of
from dashboards.tables import format_columns, sensitivity_table
from search_spaces.edge import Edge


def edge_run(lr: float, converges: bool, **changes: Any) -> dict[str, Any]:
    return run(lr=lr, origin="edge", val_loss=3.0 if converges else math.inf) | changes


GRID_RUNS = curve([3.5, 3.0, 3.2, math.nan])


@pytest.mark.parametrize(
    ("searched", "edge"),
    [
        ([], Edge(low=0.1, high=1.0)),
        ([edge_run(0.3162, True), edge_run(0.5623, False)], Edge(low=0.3162, high=0.5623)),
        ([edge_run(0.3162, True), edge_run(0.5623, True)], Edge(low=0.5623, high=1.0)),
        ([edge_run(0.3162, True), run(lr=0.5, origin="refine", val_loss=math.inf)], Edge(low=0.3162, high=1.0)),
        ([edge_run(0.3162, True, state="crashed", val_loss=None)], Edge(missing=0.3162)),
        ([edge_run(0.3162, True, state="running", val_loss=None)], Edge(missing=0.3162)),
        ([edge_run(0.3162, True, state="pruned")], Edge(low=0.1, high=1.0)),
    ],
)
def test_edge_search_runs_narrow_the_bracket(searched: list[dict[str, Any]], edge: Edge) -> None:
    assert edge_of(study(GRID_RUNS, searched)) == edge


def test_a_curve_that_never_or_always_diverges_has_one_bound() -> None:
    assert edge_of(study(curve([math.nan, 3.0, 3.0, 3.0]))) == Edge(high=1e-3)
    assert edge_of(study(curve([3.0, 3.0, 3.0, 3.0]), [edge_run(10.0, True)])) == Edge(low=10.0)


def test_every_seed_has_to_converge() -> None:
    two = [*GRID_RUNS, *curve([3.5, 3.0, 3.2, 3.3], seed=2)]
    assert edge_of(study(two)) == Edge(low=0.1, high=1.0)
    assert edge_of(study(two[:-2])) == Edge(missing=0.1), "a seed is missing from the grid"
    assert edge_of(study(two, [edge_run(0.3162, True)])) == Edge(low=0.1, high=1.0), (
        "the budget ended before seed 2 was run"
    )
    assert edge_of(study(two, [edge_run(0.3162, False)])) == Edge(low=0.1, high=0.3162), "one diverged seed is enough"


def test_edge_search_runs_belong_to_no_curve(tmp_path: Any) -> None:
    with_edge = study(GRID_RUNS, [edge_run(0.3162, True), edge_run(10.0, False)])
    with_edge.to_csv(tmp_path / "runs.csv", index=False)
    for runs in (with_edge, read_csv(tmp_path / "runs.csv")):
        (found,) = curves(runs)
        assert [replace(found, edge=None)] == curves(study(GRID_RUNS))
    assert edge_of(read_csv(tmp_path / "runs.csv")) == Edge(low=0.3162, high=1.0)


def test_no_runs_have_no_edge() -> None:
    assert edge_of(from_records([])) == Edge()


def test_a_curve_and_its_table_row_have_the_edge() -> None:
    searched = [edge_run(0.3162, True), edge_run(0.5623, False)]
    found = curves(
        study(curve([3.5, 3.0, 3.2, math.inf]), curve([3.4, 3.1, 3.0, 3.3], method="mu-centering"), searched)
    )
    assert [one.edge for one in found] == [Edge(low=0.3162, high=0.5623), None]
    row = sensitivity_table(found).iloc[0]
    assert (row["edge_low"], row["edge_high"], row["LRS"]) == (0.3162, 0.5623, found[0].LRS)
    assert "edge_low" not in format_columns(sensitivity_table(found[1:])), (
        "a table without an edge search must not have the column"
    )
