"""The sentence that a report begins with: which learning rate to use, and what a larger one costs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from dashboards.answer import LOSS_MARGIN_NATS
from dashboards.drift import drifts, width_of
from dashboards.factors import axis_title
from dashboards.sensitivity import CurveFacts, t_half_width
from dashboards.tables import format_value
from dashboards.valley_table import format_interval
from search_spaces.factors import LR, short_name
from search_spaces.methods import FOREIGN_KINDS
from search_spaces.tolerance import same_value

MULTIPLES = {2: "twice as much", 4: "four times as much"}
BASELINE = "baseline"
COST = "LRS"
"""The column whose format a cost has."""


def recommendation(curves: Sequence[CurveFacts]) -> tuple[str, ...]:
    """The sentence, and sentences that qualify it; none if no curve has an LRS.

    A cost is the excess over the lowest mean loss, linear in log lr between the points of the grid, ± half its 95%
    interval, paired by seed.
    """
    curve = recommended(curves)
    if curve is None or curve.best_lr is None:
        return ()
    place = "Use" if len({other.scale for other in curves}) == 1 else f"At {curve.scale}, use"
    name = short_name(curve.lr_factor)
    setting = f"a learning rate of {curve.best_lr:g}" if name == LR else f"{name}={curve.best_lr:g}"
    sentence = f"{place} {setting}{_with(curve)}; {_consequences(curve, curve.best_lr)}."
    return (sentence, *_caveats(curve, sentence), *_drift(curve, curves))


def _with(curve: CurveFacts) -> str:
    """The curve's name, unless it only says that the trainer is foreign."""
    if curve.label in FOREIGN_KINDS:
        return ""
    return f" with the {curve.label}" if curve.method == BASELINE else f" with {curve.label}"


def recommended(curves: Sequence[CurveFacts]) -> CurveFacts | None:
    """The curve with the lowest LRS among those whose best loss is within ``LOSS_MARGIN_NATS`` of the lowest.

    With several scales or widths, only the curves of the widest one are compared.
    """
    ranked = [curve for curve in curves if curve.LRS is not None]
    if not ranked:
        return None
    widest = max(ranked, key=_width)
    at_scale = [curve for curve in ranked if (curve.scale, _width(curve)) == (widest.scale, _width(widest))]
    limit = min(min(curve.mean) for curve in at_scale) + LOSS_MARGIN_NATS
    return min((curve for curve in at_scale if min(curve.mean) <= limit), key=lambda curve: curve.LRS or 0.0)


def _width(curve: CurveFacts) -> float:
    return width_of(curve) or 0.0


def _consequences(curve: CurveFacts, best_lr: float) -> str:
    """E.g. ``twice as much costs 0.010 ± 0.004 nats, and four times as much diverges``."""
    found = {words: _consequence(curve, factor * best_lr) for factor, words in MULTIPLES.items()}
    if set(found.values()) == {"diverges"}:
        return f"{MULTIPLES[2]} already diverges"
    known = [f"{words} {consequence}" for words, consequence in found.items() if consequence]
    unknown = [words for words, consequence in found.items() if not consequence]
    if unknown:
        known.append(f"the grid ends at {curve.lr[-1]:g}, so nothing is known about {' or '.join(unknown)}")
    return ", and ".join(known)


def _consequence(curve: CurveFacts, lr: float) -> str:
    """What happens at a learning rate above the best one; empty if nothing is known."""
    diverged = {at: sum(point.diverged for point in curve.points if point.lr == at) for at in curve.lr}
    exact = [at for at in curve.lr if same_value(at, lr)]
    below, above = [at for at in curve.lr if at < lr], [at for at in curve.lr if at > lr]
    neighbors = exact or [*below[-1:], *above[:1]]
    broken = [at for at in neighbors if diverged[at]]
    if exact or above:
        if not broken:
            return f"costs {_cost(curve, lr)}"
        if all(diverged[at] == curve.seeds for at in neighbors):
            return "diverges"
        if exact:
            return f"diverges for {diverged[exact[0]]} of {curve.seeds} seeds"
    edge = curve.edge
    if edge and edge.high and lr >= edge.high:
        return "diverges"
    if edge and edge.low and lr <= edge.low:
        return "still converges, at an unknown cost"
    return f"may diverge, because {broken[0]:g} does" if broken else ""


def _cost(curve: CurveFacts, lr: float) -> str:
    losses, grid = curve.losses, np.log(curve.lr)
    excess = losses - losses[int(np.argmin(curve.mean))]
    by_seed = np.array([np.interp(math.log(lr), grid, of_seed) for of_seed in excess.T])
    cost = format_value(by_seed.mean(), COST)
    return f"{cost} nats" if curve.seeds < 2 else f"{cost} ± {format_value(t_half_width(by_seed), COST)} nats"


def _caveats(curve: CurveFacts, sentence: str) -> Iterator[str]:
    if curve.at_edge:
        side, better = ("smallest", "smaller") if curve.best_lr == curve.lr[0] else ("largest", "larger")
        yield f"{curve.best_lr:g} is the {side} of the grid, so a {better} one may be better."
    if curve.seeds < 2 and "nats" in sentence:
        yield "With only one seed, the uncertainty of these costs is unknown."


def _drift(curve: CurveFacts, curves: Sequence[CurveFacts]) -> Iterator[str]:
    """How the best learning rate of the recommended method changes with width, if its optimum is known at two."""
    for drift in drifts(curves):
        if curve in drift.curves and drift.factor is not None:
            factor, ends = f"{drift.factor:.2f}", drift.factor_interval
            interval = f" (95% interval: {format_interval(ends, '{:.2f}'.format)})" if ends else ""
            yield f"Each doubling of width multiplies its best {axis_title(curve.lr_factor)} by {factor}{interval}."
