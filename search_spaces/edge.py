"""The edge of a curve: the largest learning rate that converges, bracketed by one that does and one that does not.

Verdicts go in; the next run to do, or the edge, comes out. There is no state: a search is replayed from the verdicts
alone, so that it resumes after a kill and never asks for a run twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from search_spaces.cell import SIGNIFICANT_DIGITS, rounded
from search_spaces.record import Verdict, aggregate_seeds

MAX_EXPANSIONS = 3
"""Steps above a grid on which everything converged; after them the edge is a lower bound."""
SINGLE_LR_STEP = 3.0
"""Factor of such a step for a grid of one learning rate; otherwise it is the ratio of the grid's last two."""
MIN_FACTOR = 1.01
"""A finer edge would be lost in the rounding of the learning rates."""
ROUNDING = 10.0 ** (1 - SIGNIFICANT_DIGITS)
"""Upper bound of what rounding adds to the logarithm of a bracket over all bisections: twice half a unit in the last
digit, because every later halving halves what the earlier ones added."""


@dataclass(frozen=True, kw_only=True)
class Edge:
    """What is known about the largest learning rate that converges.

    ``low`` and ``high``: it lies between them. ``low`` alone: nothing diverged, so it is a lower bound. ``high`` alone:
    the smallest one tried diverged. ``missing``: unknown, because that learning rate has no result.
    """

    low: float | None = None
    """It and every smaller one converged."""
    high: float | None = None
    """The next larger one, which diverged."""
    missing: float | None = None


@dataclass(frozen=True, kw_only=True)
class Search:
    """The progress of the search for an edge."""

    edge: Edge
    ask: tuple[float, int] | None
    """The ``(lr, seed)`` to run next; None while a run has to end first, and when the search is over."""
    runs: int
    """Learning rates off the grid that it has tried or is trying."""
    cells_left: int
    """Upper bound of the runs that it may still ask for."""


def bracket(verdicts: Mapping[float, Verdict]) -> Edge:
    """The edge that verdicts by learning rate show: just below the smallest one that diverged.

    A learning rate that was stopped says nothing. It leaves the edge unknown only if a larger one converged: if the
    next one diverged, the edge lies between its neighbors whatever it would have done.
    """
    low, gap = None, None
    for lr in sorted(verdicts):
        match verdicts[lr]:
            case "converged" if gap is not None:
                return Edge(missing=gap)
            case "converged":
                low = lr
            case "diverged":
                return Edge(low=low, high=lr)
            case "stopped":
                gap = lr
            case _:
                return Edge(missing=lr)
    return Edge(low=low, missing=gap if low is None else None)


def search(
    grid: Sequence[float], seeds: Sequence[int], factor: float, verdict: Callable[[float, int], Verdict | None]
) -> Search:
    """Replay the search for the edge of one curve.

    Bisects the logarithm of the learning rate until ``high / low`` is at most ``factor``. A learning rate is run seed
    by seed, and no further once one diverged. The search is over when a learning rate that it needs was stopped.

    Args:
        grid: the learning rates of the curve, ascending; they are run anyway, and before all others.
        seeds: the seeds of the study.
        factor: the ratio of ``high`` and ``low`` to reach, at least ``MIN_FACTOR``.
        verdict: on a run by its learning rate and seed; None if it was never planned.
    """

    def of_seeds(lr: float) -> list[Verdict | None]:
        return [verdict(lr, seed) for seed in seeds]

    tried: dict[float, Verdict] = {lr: aggregate_seeds(of_seeds(lr)) or "running" for lr in grid}
    step = max(factor, grid[-1] / grid[-2] if len(grid) > 1 else SINGLE_LR_STEP)
    while True:
        edge = bracket(tried)
        lr = _next_lr(edge, grid, factor, step, above=sum(lr > grid[-1] for lr in tried))
        runs = len(tried) - len(grid)
        if lr in tried:
            return Search(edge=edge, ask=None, runs=runs, cells_left=0)
        left = _max_lrs_left(tried, grid, factor, step) * len(seeds)
        if lr is None:
            return Search(edge=edge, ask=None, runs=runs, cells_left=left)
        each = of_seeds(lr)
        joint = aggregate_seeds(each)
        tried[lr] = joint or "running"
        if joint in (None, "running"):
            ask = (lr, seeds[each.index(None)]) if joint is None else None
            left = each.count(None) + _max_lrs_left(tried, grid, factor, step) * len(seeds)
            return Search(edge=edge, ask=ask, runs=runs + 1, cells_left=left)


def max_cells(grid: Sequence[float], seeds: Sequence[int], factor: float) -> int:
    """Upper bound of the runs off the grid that the search for one edge may take, unless one of the grid is stopped."""
    return search(grid, seeds, factor, lambda lr, seed: "running").cells_left


def _next_lr(edge: Edge, grid: Sequence[float], factor: float, step: float, above: int) -> float | None:
    """What to try next, given how many learning rates above the grid were tried; None if nothing would be learned."""
    if edge.low is None:
        return None
    if edge.high is None:
        if edge.low < grid[-1]:  # the top of the grid was stopped
            return None
        return rounded(edge.low * step) if above < MAX_EXPANSIONS else None
    return rounded(math.sqrt(edge.low) * math.sqrt(edge.high)) if edge.high / edge.low > factor else None


def _max_lrs_left(tried: Mapping[float, Verdict], grid: Sequence[float], factor: float, step: float) -> int:
    """Upper bound of the learning rates that may follow those in ``tried``, unless a running one is stopped."""
    most, low, gap = 0, None, False
    for lr in sorted(tried):
        verdict = tried[lr]
        if verdict == "crashed" or (verdict == "converged" and gap):
            return most
        if verdict == "stopped":
            gap = True
            continue
        if verdict != "converged":
            most = max(most, _bisections(low, lr, factor))
        if verdict == "diverged" or gap:  # above a gap, only a divergence shows an edge
            return most
        low = lr
    if low is None or low < grid[-1]:
        return most
    expansions = MAX_EXPANSIONS - sum(lr > grid[-1] for lr in tried)
    # Each step up may end in a bracket of one step, the last one too.
    return max(most, expansions + _bisections(1.0, step * (1 + ROUNDING), factor) if expansions else 0)


def _bisections(low: float | None, high: float, factor: float) -> int:
    if low is None or high / low <= factor:
        return 0
    # A halving leaves half of the width and half of ROUNDING, at most: it halves what the width has above ROUNDING.
    halvings = math.ceil(math.log2((math.log(high / low) - ROUNDING) / (math.log(factor) - ROUNDING)))
    return max(1, halvings)  # a width hardly above the factor's may have the same logarithm
