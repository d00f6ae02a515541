"""The search for an edge: it terminates within its bound of runs, and its bracket contains the true edge."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from search_spaces.edge import MAX_EXPANSIONS, MIN_FACTOR, Edge, Search, bracket, max_cells, search
from search_spaces.record import Verdict, aggregate_seeds

Runs = dict[tuple[float, int], Verdict]
GRID = (1e-3, 1e-2, 1e-1, 1.0)

factors = st.floats(min_value=MIN_FACTOR, max_value=20)
grids = st.lists(st.floats(1e-6, 1e2), min_size=1, max_size=7, unique=True).map(sorted).map(tuple)
seeds = st.integers(1, 3).map(lambda n: tuple(range(1, n + 1)))


def run_all(
    grid: tuple[float, ...], seeds: tuple[int, ...], factor: float, result: Callable[[float, int], Verdict]
) -> tuple[Search, Runs]:
    """Returns the finished search and all runs, grid first. No run may be requested twice, and the bound may only
    shrink."""
    runs: Runs = {(lr, seed): result(lr, seed) for lr in grid for seed in seeds}
    found = search(grid, seeds, factor, lambda lr, seed: runs.get((lr, seed)))
    while found.ask:
        assert found.ask not in runs, "a run was requested twice"
        runs[found.ask] = "running"
        waiting = search(grid, seeds, factor, lambda lr, seed: runs.get((lr, seed)))
        assert waiting.ask is None, "a curve may only have one run at a time"
        assert waiting.cells_left < found.cells_left
        runs[found.ask] = result(*found.ask)
        found = search(grid, seeds, factor, lambda lr, seed: runs.get((lr, seed)))
        assert found.cells_left <= waiting.cells_left
    assert found.cells_left == 0
    return found, runs


@example(grid=(4.4375, 13.875), seeds=(1,), factor=1.01, exponent=1.0)  # rounding widens a half
@example(grid=(1.0,), seeds=(1,), factor=13.999999999999996, exponent=3.0)  # a step is rounded up to 14
@given(grids, seeds, factors, st.floats(-7, 9))
def test_the_bracket_contains_the_true_edge(
    grid: tuple[float, ...], seeds: tuple[int, ...], factor: float, exponent: float
) -> None:
    threshold = 10**exponent
    found, runs = run_all(grid, seeds, factor, lambda lr, _: "converged" if lr < threshold else "diverged")
    low, high = found.edge.low, found.edge.high
    assert low is None or low < threshold
    assert high is None or high >= threshold
    if low is None:
        assert high == grid[0]
        assert len(runs) == len(grid) * len(seeds), "the search must not go below the grid"
    elif high is None:
        assert sum(lr > grid[-1] for lr, _ in runs) == MAX_EXPANSIONS * len(seeds)
    else:
        assert high / low <= factor
    assert len(runs) - len(grid) * len(seeds) <= max_cells(grid, seeds, factor)


@given(grids, seeds, factors, st.randoms(use_true_random=False))
def test_any_search_ends_within_its_bound(
    grid: tuple[float, ...], seeds: tuple[int, ...], factor: float, random: object
) -> None:
    verdicts = ("converged", "converged", "diverged", "crashed", "stopped")
    found, runs = run_all(grid, seeds, factor, lambda *_: random.choice(verdicts))  # type: ignore[attr-defined]
    if "stopped" not in runs.values():  # a gap may widen the bracket
        assert len(runs) - len(grid) * len(seeds) <= max_cells(grid, seeds, factor)
    if found.edge.low and found.edge.high:
        by_lr = {lr: aggregate_seeds(runs.get((lr, seed)) for seed in seeds) for lr, _ in runs}
        assert all(by_lr[lr] == "converged" for lr in by_lr if lr <= found.edge.low)
        assert by_lr[found.edge.high] == "diverged"


@pytest.mark.parametrize(("factor", "runs"), [(1.2, 4), (2.0, 2), (3.5, 1), (10.0, 0)])
def test_a_bracket_takes_as_many_runs_as_a_bisection(factor: float, runs: int) -> None:
    """The minimum for runs with a yes-or-no outcome is the base-2 logarithm of the number of pieces to distinguish."""
    assert runs == math.ceil(math.log2(math.log(10) / math.log(factor)))
    found, _ = run_all(GRID, (1,), factor, lambda lr, _: "converged" if lr < 0.05 else "diverged")
    assert found.runs == runs


def test_if_everything_converges_it_steps_up_by_the_grids_last_ratio() -> None:
    found, runs = run_all(GRID, (1,), 2.0, lambda *_: "converged")
    assert [lr for lr, _ in runs][4:] == [10.0, 100.0, 1000.0]
    assert found.edge == Edge(low=1000.0)
    found, runs = run_all(GRID, (1,), 2.0, lambda lr, _: "converged" if lr < 50 else "diverged")
    assert [lr for lr, _ in runs][4:] == [10.0, 100.0, 31.62, 56.23]
    assert found.edge == Edge(low=31.62, high=56.23)


def test_a_grid_of_one_learning_rate() -> None:
    found, runs = run_all((1.0,), (1,), 2.0, lambda lr, _: "converged" if lr < 5 else "diverged")
    assert [lr for lr, _ in runs] == [1.0, 3.0, 9.0, 5.196]
    assert found.edge == Edge(low=3.0, high=5.196)


def test_no_other_seed_is_run_after_one_diverged() -> None:
    limit = {1: 0.5, 2: 0.3, 3: 0.9}
    found, runs = run_all(GRID, (1, 2, 3), 2.0, lambda lr, seed: "converged" if lr < limit[seed] else "diverged")
    assert [run for run in runs if run[0] not in GRID] == [
        (0.3162, 1),
        (0.3162, 2),
        (0.1778, 1),
        (0.1778, 2),
        (0.1778, 3),
    ]
    assert found.edge == Edge(low=0.1778, high=0.3162)


@pytest.mark.parametrize("state", ["crashed", "running"])
def test_there_is_no_edge_if_a_result_below_it_is_missing(state: Verdict) -> None:
    runs: Runs = {(1e-3, 1): "converged", (1e-2, 1): state, (1e-1, 1): "diverged", (1.0, 1): "diverged"}
    found = search(GRID, (1,), 2.0, lambda lr, seed: runs.get((lr, seed)))
    assert (found.edge, found.ask) == (Edge(missing=1e-2), None)
    assert found.cells_left == (0 if state == "crashed" else 2)


def test_results_above_the_edge_do_not_matter() -> None:
    runs: Runs = {(1e-3, 1): "converged", (1e-2, 1): "diverged", (1e-1, 1): "crashed", (1.0, 1): "converged"}
    found = search(GRID, (1,), 2.0, lambda lr, seed: runs.get((lr, seed)))
    assert (found.edge, found.ask) == (Edge(low=1e-3, high=1e-2), (0.003162, 1))


def test_bracket() -> None:
    assert bracket({}) == Edge()
    assert bracket({2.0: "diverged", 1.0: "converged"}) == Edge(low=1.0, high=2.0)
    assert bracket({1.0: "diverged"}) == Edge(high=1.0)
    assert bracket({1.0: "converged", 2.0: "crashed", 3.0: "diverged"}) == Edge(missing=2.0)


def test_a_stopped_learning_rate_is_a_gap() -> None:
    """It widens its bracket, and hides the edge only if a larger learning rate converged."""
    assert bracket({1.0: "converged", 2.0: "stopped", 3.0: "diverged"}) == Edge(low=1.0, high=3.0)
    assert bracket({1.0: "converged", 2.0: "stopped", 3.0: "converged"}) == Edge(missing=2.0)
    assert bracket({1.0: "stopped", 2.0: "diverged"}) == Edge(high=2.0)
    assert bracket({1.0: "converged", 2.0: "stopped"}) == Edge(low=1.0)
    assert bracket({1.0: "stopped"}) == Edge(missing=1.0)


@given(st.dictionaries(st.floats(1e-6, 1e2), st.sampled_from(get_args(Verdict)), max_size=9))
def test_gaps_below_a_divergence_do_not_change_a_bracket(verdicts: dict[float, Verdict]) -> None:
    known = {lr: verdict for lr, verdict in verdicts.items() if verdict != "stopped"}

    def next_above(lr: float) -> Verdict | None:
        above = [other for other in known if other > lr]
        return known[min(above)] if above else None

    kept = {lr: verdict for lr, verdict in verdicts.items() if lr in known or next_above(lr) != "diverged"}
    assert bracket(verdicts) == bracket(kept)


def test_a_search_ends_if_a_run_that_it_needs_was_stopped() -> None:
    runs: Runs = {(1e-3, 1): "converged", (1e-2, 1): "converged", (1e-1, 1): "diverged", (1.0, 1): "diverged"}
    runs[0.03162, 1] = "stopped"
    found = search(GRID, (1,), 2.0, lambda lr, seed: runs.get((lr, seed)))
    assert (found.edge, found.ask, found.cells_left) == (Edge(low=1e-2, high=1e-1), None, 0)
    found = search((1.0,), (1,), 2.0, lambda lr, seed: "stopped")
    assert (found.edge, found.ask, found.cells_left) == (Edge(missing=1.0), None, 0)
    found = search((0.5, 1.5, 2.0), (1,), 1.01, lambda lr, seed: "converged" if lr == 0.5 else "stopped")
    assert (found.edge, found.ask, found.cells_left) == (Edge(low=0.5), None, 0), (
        "there must be no steps up from below a gap"
    )


@pytest.mark.parametrize(
    ("seeds", "verdict"),
    [
        (["converged", None, "crashed", "diverged"], "diverged"),
        (["converged", "running", "stopped", "crashed"], "crashed"),
        (["converged", "running", None, "stopped"], "stopped"),
        (["converged", None, "running"], "running"),
        (["converged", None], None),
        (["converged", "converged"], "converged"),
    ],
)
def test_the_verdict_over_seeds(seeds: list[Verdict | None], verdict: Verdict | None) -> None:
    assert aggregate_seeds(seeds) == verdict
