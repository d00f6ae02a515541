"""How the best learning rate changes with the width of the model."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from dashboards.factors import Shared
from dashboards.sensitivity import CurveFacts, Floats, t_half_width
from search_spaces.factors import short_name, to_json
from search_spaces.scales import SCALES

WIDTH_FACTORS = ("width", "d_model", "n_embd", "hidden_size")
"""Factors that give the width of a model whose scale is not one of ``SCALES``."""
COLUMNS = (
    *("study", "attention_norm", "method", "gamma", "factors", "lr_factor"),
    *("widths", "drift", "drift_low", "drift_high", "note"),
)
"""Columns of ``drift_table``."""


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """The best learning rate, interpolated between the points of the grid."""

    lr: float
    by_seed: Floats
    """The same for each seed alone, shape ``(seed,)``, by ascending seed."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """95% interval over seeds; None with one seed."""
        if self.by_seed.size < 2:
            return None
        ratio = float(2 ** t_half_width(np.log2(self.by_seed)))
        return self.lr / ratio, self.lr * ratio


@dataclass(frozen=True, kw_only=True)
class Drift:
    """The change of the optimum with width, over curves that are otherwise equal."""

    curves: tuple[CurveFacts, ...]
    """All of them, by ascending width."""
    points: tuple[tuple[CurveFacts, float, Optimum], ...]
    """The curves that have an optimum, each with its width, by ascending width."""
    slope: float | None = None
    """Change of log2 lr per doubling of width, by least squares: 0 if the optimum does not depend on width, -1 if it is
    inversely proportional to it. None below two widths."""
    interval: tuple[float, float] | None = None
    """95% interval of the slope over seeds; None with one seed, or if the curves differ in their seeds."""

    @property
    def factors(self) -> Shared:
        """The factors that its curves share."""
        return _shared_factors(self.curves[0])

    @property
    def factor(self) -> float | None:
        """By how much each doubling of width multiplies the optimum."""
        return None if self.slope is None else 2**self.slope

    @property
    def factor_interval(self) -> tuple[float, float] | None:
        return self.interval and (2 ** self.interval[0], 2 ** self.interval[1])

    @property
    def widths(self) -> Floats:
        return np.array([width for _, width, _ in self.points])

    @property
    def fitted(self) -> Floats:
        """The learning rates on the fitted line at ``widths``; defined only if there is a slope."""
        x, y = np.log2(self.widths), np.log2([optimum.lr for _, _, optimum in self.points])
        return np.asarray(2 ** (y.mean() + (self.slope or 0.0) * (x - x.mean())))


def optimum(curve: CurveFacts) -> Optimum | None:
    """The minimum of a parabola in log lr through the best learning rate of the mean curve and its two neighbors.

    A diverged cell counts as ``l_init``. A seed's optimum uses the same three learning rates. The interval is Student's
    t on the seeds' log optima, centered at that of the mean curve. In simulations of parabolas on grids of factor 3
    with 2 to 10 seeds, it contained the true optimum 93 to 96% of the time.

    Returns:
        None if a cell is missing, or if the best learning rate is the first or last of the grid.
    """
    if curve.missing or curve.at_edge:
        return None
    best = int(np.argmin(curve.mean))
    x, losses = np.log2(curve.lr[best - 1 : best + 2]), curve.losses[best - 1 : best + 2]
    by_seed = np.array([minimum_of_parabola(x, of_seed) for of_seed in losses.T])
    return Optimum(lr=2 ** minimum_of_parabola(x, losses.mean(axis=1)), by_seed=2**by_seed)


def minimum_of_parabola(x: Floats, y: Floats) -> float:
    """Where the parabola through three points is lowest between the outer two; the middle if those are equally low.

    Args:
        x: ascending, shape ``(3,)``.
        y: shape ``(3,)``.
    """
    left, right = np.diff(y) / np.diff(x)
    curvature = (right - left) / (x[2] - x[0])
    if curvature <= 0:
        return float(x[1] if y[0] == y[2] else x[0] if y[0] < y[2] else x[2])
    return float(np.clip((x[0] + x[1]) / 2 - left / (2 * curvature), x[0], x[2]))


def width_of(curve: CurveFacts) -> float | None:
    """The width of a curve's model, from its scale or else from a numeric factor; None if neither tells."""
    if curve.scale in SCALES:
        return SCALES[curve.scale].D
    factors = dict(curve.factors)
    values = (factors.get(name) for name in WIDTH_FACTORS)
    numbers = (value for value in values if isinstance(value, int | float) and value > 0)
    return next(map(float, numbers), None)


def drifts(curves: Iterable[CurveFacts]) -> list[Drift]:
    """The drift of each (study, depth, attention norm, method, gamma, other factors) with curves of several widths.

    The interval of a slope is Student's t on the slopes of single seeds, centered at that of the mean curves. In
    simulations like those of ``optimum``, with two and four widths, it contained the true slope 94 to 98% of the time.
    """
    groups: dict[Hashable, dict[float, CurveFacts]] = {}
    for curve in curves:
        width = width_of(curve)
        if width is not None:
            groups.setdefault(_group(curve), {})[width] = curve
    return [_drift(by_width) for by_width in groups.values() if len(by_width) > 1]


def _group(curve: CurveFacts) -> Hashable:
    """What curves share that differ only in width; of a scale of ``SCALES`` its depth, which would be confounded."""
    scale = SCALES[curve.scale].L if curve.scale in SCALES else curve.scale
    return curve.study, scale, curve.attention_norm, curve.method, curve.gamma, _shared_factors(curve), curve.lr_factor


def _shared_factors(curve: CurveFacts) -> Shared:
    """The factors of a curve without one that gives its width."""
    if curve.scale in SCALES:
        return curve.factors
    return tuple((name, value) for name, value in curve.factors if name not in WIDTH_FACTORS)


def _drift(by_width: Mapping[float, CurveFacts]) -> Drift:
    found = [(by_width[width], width, optimum(by_width[width])) for width in sorted(by_width)]
    points = tuple((curve, width, best) for curve, width, best in found if best is not None)
    drift = Drift(curves=tuple(curve for curve, _, _ in found), points=points)
    if len(points) < 2:
        return drift
    slope = _slope(drift.widths, np.array([best.lr for _, _, best in points]))
    seeds = {frozenset(point.seed for point in curve.points) for curve, _, _ in points}
    if len(seeds) > 1 or points[0][2].by_seed.size < 2:
        return replace(drift, slope=float(slope))
    half = float(t_half_width(_slope(drift.widths, np.array([best.by_seed for _, _, best in points]))))
    return replace(drift, slope=float(slope), interval=(float(slope) - half, float(slope) + half))


def _slope(widths: Floats, lrs: Floats) -> Floats:
    """The slope of log2 lr on log2 width by least squares; ``lrs`` has shape ``(width, ...)``."""
    x = np.log2(widths) - np.log2(widths).mean()
    return np.asarray(x @ np.log2(lrs) / (x @ x))


def drift_table(found: Iterable[Drift]) -> pd.DataFrame:
    """One row per drift, columns ``COLUMNS``; ``widths`` are those of the curves that have an optimum, as text."""
    rows = []
    for drift in found:
        first, (low, high) = drift.curves[0], drift.interval or (None, None)
        shared = {name: getattr(first, name) for name in COLUMNS[:6]} | {"factors": to_json(dict(drift.factors))}
        widths = ", ".join(f"{width:g}" for width in drift.widths)
        numbers = {"drift": drift.slope, "drift_low": low, "drift_high": high}
        rows.append(shared | {"widths": widths} | numbers | {"note": _note(drift)})
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.astype(dict.fromkeys(("gamma", "drift", "drift_low", "drift_high"), "float64"))


def _note(drift: Drift) -> str:
    """Which scales have no optimum."""
    with_optimum = [curve for curve, _, _ in drift.points]
    scales = [curve.scale for curve in drift.curves if curve not in with_optimum]
    if not scales:
        return ""
    axis = short_name(drift.curves[0].lr_factor)
    return f"no optimum at {', '.join(scales)}: the best {axis} is at an end of the grid, or cells are missing"
