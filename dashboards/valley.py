"""The valley of a curve: the learning rates whose loss is close to the best, and how far the best one is from
divergence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dashboards.sensitivity import CurveFacts, Floats, t_half_width

TOLERANCES = (0.01, 0.05)
"""In nats: the excess over the lowest loss that each reported valley allows."""


@dataclass(frozen=True, kw_only=True)
class Band:
    """A range of learning rates around the best one.

    It is open where the grid ends before the loss exceeds the tolerance: its end is then the end of the grid, the true
    end lies farther out, and ``width`` is a lower bound.
    """

    low: float
    high: float
    open_low: bool
    open_high: bool

    @property
    def is_open(self) -> bool:
        return self.open_low or self.open_high

    @property
    def open_ends(self) -> str:
        """``low``, ``high``, ``both``, or empty."""
        return "both" if self.open_low and self.open_high else "low" * self.open_low + "high" * self.open_high

    @property
    def width(self) -> float:
        """The ratio of the ends, at least 1."""
        return self.high / self.low


@dataclass(frozen=True, kw_only=True)
class Valley:
    """The learning rates around the best one whose mean loss exceeds the lowest by at most a tolerance."""

    band: Band
    interval: tuple[float, float] | None
    """95% interval of the band's true width over seeds. The upper end is infinite if the seeds cannot exclude that the
    band extends beyond the grid. None with one seed."""


@dataclass(frozen=True, kw_only=True)
class Headroom:
    """The largest learning rate known to converge, divided by the best one."""

    factor: float
    is_lower_bound: bool
    """Whether no larger learning rate is known to diverge."""


def valley(curve: CurveFacts, tolerance: float) -> Valley | None:
    """The valley of the mean curve, linear in the logarithm of the learning rate between the points of the grid.

    A diverged cell counts as ``l_init``. The interval inverts a t-test: at each learning rate, the excess over the
    loss at the best one has a mean and a 95% interval, paired by seed. The interval's lower end is the width of the
    band in which the upper bound of the excess is within ``tolerance``, and its upper end that of the band in which the
    lower bound is. In simulations with seven learning rates, five shapes of curve, three kinds of noise and 2 to 10
    seeds, it contained the true width 97 to 99.7% of the time. Student's t on the log widths of single seeds contained
    it 58 to 95% of the time, because a seed's lowest loss lies below its expected loss there. The alternatives that
    start from the best learning rate of the mean curve (t on log widths around it, the jackknife, and linearization)
    contained it 81 to 96% of the time. None of them is defined for a band that is open for some seeds.

    Args:
        tolerance: in nats, at least 0.

    Returns:
        None if a cell is missing, or if the grid has only one learning rate.
    """
    if curve.missing or len(curve.lr) < 2:
        return None
    best = int(np.argmin(curve.mean))
    excess = curve.losses - curve.losses[best]
    mean = excess.mean(axis=1)
    band = band_within(curve.lr, mean, tolerance, best)
    if curve.seeds < 2:
        return Valley(band=band, interval=None)
    half = t_half_width(excess)
    bounds = (mean + half, np.maximum(mean - half, 0.0))
    narrow, wide = (band_within(curve.lr, bound, tolerance, best) for bound in bounds)
    return Valley(band=band, interval=(narrow.width, math.inf if wide.is_open else wide.width))


def band_within(lrs: Sequence[float], excess: Floats, tolerance: float, best: int) -> Band:
    """The connected range of learning rates around the best one whose excess is at most ``tolerance``.

    Args:
        lrs: ascending, shape ``(n,)``.
        excess: 0 at the best learning rate and never negative, shape ``(n,)``.
        best: the index of the best learning rate. The excess may be 0 at others, too.
    """
    low, open_low = _end(lrs[best::-1], excess[best::-1], tolerance)
    high, open_high = _end(lrs[best:], excess[best:], tolerance)
    return Band(low=low, high=high, open_low=open_low, open_high=open_high)


def _end(lrs: Sequence[float], excess: Floats, tolerance: float) -> tuple[float, bool]:
    """Where ``excess`` first exceeds ``tolerance``, going outward from the best learning rate, and whether that is
    beyond the last one."""
    outside = np.flatnonzero(excess > tolerance)
    if not outside.size:
        return lrs[-1], True
    i = int(outside[0])
    share = (tolerance - excess[i - 1]) / (excess[i] - excess[i - 1])
    return lrs[i - 1] * (lrs[i] / lrs[i - 1]) ** float(share), False


def headroom(curve: CurveFacts) -> Headroom | None:
    """How far above the best learning rate training still converges.

    The largest learning rate known to converge is that of the search for the edge, or else of the grid. The factor is
    below 1 if a learning rate below the best one diverged.

    Returns:
        None if a cell is missing, or if the smallest learning rate diverged.
    """
    edge = curve.edge
    highest = (edge and edge.low) or curve.highest_lr
    if curve.best_lr is None or highest is None:
        return None
    is_bounded = bool(edge and edge.high) or curve.diverged > 0
    return Headroom(factor=highest / curve.best_lr, is_lower_bound=not is_bounded)
