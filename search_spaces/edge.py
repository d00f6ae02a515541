"""The edge of a curve: the largest learning rate that converges, bracketed by one that does and one that does not.

A search is a pure function from verdicts to the next run, or to the edge. It is replayed from the verdicts alone, so it
resumes after a kill and never asks for the same run twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from search_spaces.cell import SIGNIFICANT_DIGITS, round_significant
from search_spaces.record import Verdict, aggregate_seeds
from search_spaces.tolerance import snap

MAX_EXPANSIONS = 3
"""Maximum number of steps above a grid on which everything converged; after that the edge is a lower bound."""
SINGLE_LR_STEP = 3.0
"""The factor of such a step if the grid has one learning rate; otherwise it is the ratio of the grid's last two."""
MIN_FACTOR = 1.01
"""A finer edge would be lost when learning rates are rounded."""
ROUNDING = 10.0 ** (1 - SIGNIFICANT_DIGITS)
"""Upper bound of the total rounding error of a bracket's logarithm over all bisections: twice half a unit in the last
digit, because each bisection halves the errors of the earlier ones."""


@dataclass(frozen=True, kw_only=True)
class Edge:
    """What is known about the largest learning rate that converges.

    With ``low`` and ``high`` it lies between them. With only ``low`` nothing diverged, and ``low`` is a lower bound.
    With only ``high`` the smallest one tried diverged. With ``missing`` it is unknown, because that learning rate has
    no result.
    """

    low: float | None = None
    """This learning rate and every smaller one converged."""
    high: float | None = None
    """The next larger learning rate, which diverged."""
    missing: float | None = None


@dataclass(frozen=True, kw_only=True)
class Search:
    """The progress of the search for an edge."""

    edge: Edge
    ask: tuple[float, int] | None
    """The ``(lr, seed)`` to run next; None if a run has to end first, or if the search is over."""
    runs: int
    """Number of learning rates off the grid that the search has tried or is trying."""
    cells_left: int
    """Upper bound of the runs that the search may still ask for."""


def bracket(verdicts: Mapping[float, Verdict]) -> Edge:
    """The edge according to verdicts by learning rate: just below the smallest one that diverged.

    A learning rate that was stopped says nothing. It leaves the edge unknown only if a larger one converged; if the
    next one diverged, the edge lies between its two neighbors in any case.
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
    grid: Sequence[float],
    seeds: Sequence[int],
    factor: float,
    verdict: Callable[[float, int], Verdict | None],
    accepts: Callable[[float], bool] = lambda lr: True,
) -> Search:
    """Replay the search for the edge of one curve.

    The search bisects the logarithm of the learning rate until ``high / low`` is at most ``factor``. It runs a learning
    rate seed by seed, and skips the remaining seeds once one diverged. It ends if a learning rate that it needs was
    stopped.

    Args:
        grid: the learning rates of the curve, ascending; the study runs them anyway, before all others.
        seeds: the seeds of the study.
        factor: the target ratio of ``high`` and ``low``, at least ``MIN_FACTOR``.
        verdict: returns the verdict on a run by its learning rate and seed; None if it was never planned.
        accepts: whether a value above the grid can be tried; where it cannot, the edge is a lower bound.
    """
    tried: dict[float, Verdict] = {lr: aggregate_seeds(verdict(lr, seed) for seed in seeds) or "running" for lr in grid}
    step = max(factor, grid[-1] / grid[-2] if len(grid) > 1 else SINGLE_LR_STEP)
    while True:
        edge = bracket(tried)
        lr = _next_lr(edge, grid, factor, step, above=sum(lr > grid[-1] for lr in tried))
        runs = len(tried) - len(grid)
        lr = None if lr is None else snap(tried, lr)
        if lr is not None and lr > grid[-1] and not accepts(lr):
            return Search(edge=edge, ask=None, runs=runs, cells_left=0)
        if lr is None or lr in tried:
            left = _max_lrs_left(tried, grid, factor, step) * len(seeds) if lr is None else 0
            return Search(edge=edge, ask=None, runs=runs, cells_left=left)
        by_seed = [verdict(lr, seed) for seed in seeds]
        aggregate = aggregate_seeds(by_seed)
        tried[lr] = aggregate or "running"
        if aggregate in (None, "running"):
            ask = (lr, seeds[by_seed.index(None)]) if aggregate is None else None
            left = by_seed.count(None) + _max_lrs_left(tried, grid, factor, step) * len(seeds)
            return Search(edge=edge, ask=ask, runs=runs + 1, cells_left=left)


def max_cells(grid: Sequence[float], seeds: Sequence[int], factor: float) -> int:
    """Upper bound of the runs off the grid that the search for one edge takes, unless a cell of the grid is stopped."""
    return search(grid, seeds, factor, lambda lr, seed: "running").cells_left


def _next_lr(edge: Edge, grid: Sequence[float], factor: float, step: float, above: int) -> float | None:
    """The learning rate to try next; None if none would narrow the edge.

    Args:
        above: how many learning rates above the grid have been tried.
    """
    if edge.low is None:
        return None
    if edge.high is None:
        if edge.low < grid[-1]:  # the top of the grid was stopped
            return None
        return round_significant(edge.low * step) if above < MAX_EXPANSIONS else None
    return round_significant(math.sqrt(edge.low) * math.sqrt(edge.high)) if edge.high / edge.low > factor else None


def _max_lrs_left(tried: Mapping[float, Verdict], grid: Sequence[float], factor: float, step: float) -> int:
    """Upper bound of the learning rates still to try after those in ``tried``, unless a running one is stopped."""
    bound, low, gap = 0, None, False
    for lr in sorted(tried):
        verdict = tried[lr]
        if verdict == "crashed" or (verdict == "converged" and gap):
            return bound
        if verdict == "stopped":
            gap = True
            continue
        if verdict != "converged":
            bound = max(bound, _bisections(low, lr, factor))
        if verdict == "diverged" or gap:  # above a gap, only a divergence shows an edge
            return bound
        low = lr
    if low is None or low < grid[-1]:  # the top of the grid was stopped
        return bound
    expansions = MAX_EXPANSIONS - sum(lr > grid[-1] for lr in tried)
    # Any step up, the last one included, may end in a bracket that is one step wide.
    return max(bound, expansions + _bisections(1.0, step * (1 + ROUNDING), factor) if expansions else 0)


def _bisections(low: float | None, high: float, factor: float) -> int:
    if low is None or high / low <= factor:
        return 0
    # A halving leaves at most half the width plus half of ROUNDING, so it halves the width in excess of ROUNDING.
    halvings = math.ceil(math.log2((math.log(high / low) - ROUNDING) / (math.log(factor) - ROUNDING)))
    return max(1, halvings)  # a ratio just above the factor may have the same logarithm
