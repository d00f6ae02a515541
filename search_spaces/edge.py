"""The edge of a curve: the largest learning rate that converges, between a low that does and a high that does not.

Outcomes in, the next run or the verdict out. Nothing is remembered: a search is replayed from the outcomes alone, so
that it goes on after a kill and never asks for a run twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from search_spaces.cell import SIGNIFICANT_DIGITS, rounded

Outcome = Literal["converged", "diverged", "running", "crashed"]
"""Of a run, or of a learning rate over its seeds. ``running`` has no end yet, ``crashed`` ended without a result."""

EXPANSIONS = 3
"""Steps above a grid on which everything converged; after them the edge is a lower bound."""
LONE_STEP = 3.0
"""Factor of such a step for a grid of one learning rate; for any other it is that of the grid's last two."""
SMALLEST_FACTOR = 1.01
"""A finer edge would be lost in the rounding of the learning rates."""
ROUNDING = 10.0 ** (1 - SIGNIFICANT_DIGITS)
"""What rounding adds to the logarithm of a bracket at most, over all bisections: twice half a unit in the last digit,
as every later halving halves what the earlier ones added."""


@dataclass(frozen=True, kw_only=True)
class Edge:
    """What is known of the largest learning rate that converges.

    ``low`` and ``high``: it lies between them. ``low`` alone: nothing diverged, it is a lower bound. ``high`` alone:
    already the smallest one tried diverged. ``missing``: not known, as that learning rate has no result.
    """

    low: float | None = None
    """It and every smaller one converged."""
    high: float | None = None
    """The next larger one, which diverged."""
    missing: float | None = None


@dataclass(frozen=True, kw_only=True)
class Search:
    """How far the search for an edge has come."""

    edge: Edge
    ask: tuple[float, int] | None
    """The ``(lr, seed)`` to run next; None while a run has to end first, and when the search is over."""
    runs: int
    """Learning rates off the grid that it has tried or is trying."""
    cells_left: int
    """Runs that it may still ask for, at most."""


def together(outcomes: Iterable[Outcome | None]) -> Outcome | None:
    """The outcome of a learning rate from those of its seeds, None for a run that nobody planned.

    It converges if it does with every seed, so one that diverged decides, whatever the others did.
    """
    found = set(outcomes)
    for outcome in ("diverged", "crashed", "running", None):
        if outcome in found:
            return outcome
    return "converged"


def bracket(outcomes: Mapping[float, Outcome]) -> Edge:
    """The edge that the outcomes show, by learning rate: below the smallest one that did not converge."""
    low = None
    for lr in sorted(outcomes):
        if outcomes[lr] == "diverged":
            return Edge(low=low, high=lr)
        if outcomes[lr] != "converged":
            return Edge(missing=lr)
        low = lr
    return Edge(low=low)


def search(
    grid: Sequence[float], seeds: Sequence[int], factor: float, outcome: Callable[[float, int], Outcome | None]
) -> Search:
    """Replay the search for the edge of one curve.

    Bisects the logarithm of the learning rate until ``high / low`` is at most ``factor``. A learning rate is run seed
    by seed, and no further once one diverged.

    Args:
        grid: the learning rates of the curve, ascending; they are run anyway, and all of them first.
        seeds: the seeds of the study.
        factor: how near ``low`` and ``high`` have to come, ``SMALLEST_FACTOR`` or above.
        outcome: of a run by its learning rate and seed; None if it was never planned.
    """

    def of_seeds(lr: float) -> list[Outcome | None]:
        return [outcome(lr, seed) for seed in seeds]

    tried: dict[float, Outcome] = {lr: together(of_seeds(lr)) or "running" for lr in grid}
    step = max(factor, grid[-1] / grid[-2] if len(grid) > 1 else LONE_STEP)
    while True:
        edge = bracket(tried)
        lr = _next_lr(edge, grid, factor, step, above=sum(lr > grid[-1] for lr in tried))
        if lr is None:
            return Search(
                edge=edge,
                ask=None,
                runs=len(tried) - len(grid),
                cells_left=_most_lrs(tried, grid, factor, step) * len(seeds),
            )
        each = of_seeds(lr)
        joint = together(each)
        tried[lr] = joint or "running"
        if joint in (None, "running"):
            return Search(
                edge=edge,
                ask=(lr, seeds[each.index(None)]) if joint is None else None,
                runs=len(tried) - len(grid),
                cells_left=each.count(None) + _most_lrs(tried, grid, factor, step) * len(seeds),
            )


def most_cells(grid: Sequence[float], seeds: Sequence[int], factor: float) -> int:
    """Runs off the grid that the search for one edge may take, whatever comes out."""
    return search(grid, seeds, factor, lambda lr, seed: "running").cells_left


def _next_lr(edge: Edge, grid: Sequence[float], factor: float, step: float, above: int) -> float | None:
    """What to try next, given how many learning rates above the grid were tried; None if nothing is to be learnt."""
    if edge.low is None:
        return None
    if edge.high is None:
        return rounded(edge.low * step) if above < EXPANSIONS else None
    return rounded(math.sqrt(edge.low) * math.sqrt(edge.high)) if edge.high / edge.low > factor else None


def _most_lrs(tried: Mapping[float, Outcome], grid: Sequence[float], factor: float, step: float) -> int:
    """Learning rates that may follow those in ``tried``, at most, however the running ones end."""
    most, low = 0, None
    for lr in sorted(tried):
        if tried[lr] == "crashed":
            return most
        if tried[lr] != "converged":
            most = max(most, _bisections(low, lr, factor))
        if tried[lr] == "diverged":
            return most
        low = lr
    expansions = EXPANSIONS - sum(lr > grid[-1] for lr in tried)
    # Each step up may end in a bracket of one step, the last one too.
    return max(most, expansions + _bisections(1.0, step * (1 + ROUNDING), factor) if expansions else 0)


def _bisections(low: float | None, high: float, factor: float) -> int:
    if low is None or high / low <= factor:
        return 0
    # A halving leaves half of the width and half of ROUNDING, at most: it halves what the width has above ROUNDING.
    halvings = math.ceil(math.log2((math.log(high / low) - ROUNDING) / (math.log(factor) - ROUNDING)))
    return max(1, halvings)  # a width hardly above the factor's may have the same logarithm
