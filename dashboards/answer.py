"""A study in a few sentences: what is least sensitive, and how far that can be trusted."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from dashboards.sensitivity import CurveFacts
from dashboards.tables import highest, listed, shown
from dashboards.verdict import less_sensitive, strength_ranges

HIGH_BY = 0.02
"""Nats by which a flat curve's best loss may lie above the lowest before the answer says so."""


NAMED = 3
"""Curves that share the highest learning rate are named up to this many, then counted."""


def answer(found: Sequence[CurveFacts]) -> str:
    """The study in a few sentences: what is least sensitive, and how far that can be trusted; where attention norms are
    compared, also what converges at the highest learning rate."""
    ranked = [curve for curve in found if curve.LRS is not None]
    if not ranked:
        missing = sum(len(curve.missing) for curve in found)
        return f"No curve has an LRS yet. Cells without a result: {missing}, in {len(found)} curves."
    best = best_by_scale(ranked)
    return " ".join([_winners(ranked, best), *_by_strength(ranked), *_highest(found), _caveat(found, ranked, best)])


def best_by_scale(ranked: Sequence[CurveFacts]) -> dict[str, CurveFacts]:
    best: dict[str, CurveFacts] = {}
    for curve in sorted(ranked, key=_lrs_of):
        best.setdefault(curve.scale, curve)
    return best


def _winners(ranked: Sequence[CurveFacts], best: Mapping[str, CurveFacts]) -> str:
    scales_of: dict[str, list[str]] = {}
    for scale in dict.fromkeys(curve.scale for curve in ranked):
        scales_of.setdefault(best[scale].label, []).append(scale)
    winners = listed([f"{name} at {listed(scales)}" for name, scales in scales_of.items()])
    verb = "is" if len(scales_of) == 1 else "are"
    sentence = f"{winners} {verb} the least sensitive to the learning rate, with an LRS of {_span(best.values())}"
    baselines = [curve for curve in ranked if curve.method == "baseline"]
    if any(curve.method != "baseline" for curve in best.values()):
        sentence += f", against {_span(baselines)} for the baseline" if baselines else "; there is no baseline"
    return f"{sentence}{_price(ranked, best.values())}."


def _highest(found: Sequence[CurveFacts]) -> Iterator[str]:
    """A sentence a scale, where there are several attention norms."""
    if len({curve.attention_norm for curve in found}) < 2:
        return
    for scale in dict.fromkeys(curve.scale for curve in found):
        at_scale = [curve for curve in found if curve.scale == scale]
        limit = max(curve.highest_lr or 0.0 for curve in at_scale)
        top = [curve for curve in at_scale if curve.highest_lr == limit]
        if top:
            few = len(top) <= NAMED
            names = listed([curve.label for curve in top]) if few else f"{len(top)} of {len(at_scale)} curves"
            lr = highest(limit, top[0].diverged)
            yield f"The highest learning rate that converges at {scale}, {lr}, is that of {names}."


def _price(ranked: Sequence[CurveFacts], best: Iterable[CurveFacts]) -> str:
    """A curve can be flat because it is bad everywhere; say so."""
    for curve in best:
        lowest = min(other.best_loss for other in ranked if other.scale == curve.scale and other.best_loss is not None)
        if curve.best_loss is not None and curve.best_loss > lowest + HIGH_BY:
            where = f" of {curve.label} at {curve.scale}"
            return f"; but the best loss{where} is {curve.best_loss:.3f}, where another curve reaches {lowest:.3f}"
    return ""


def _caveat(found: Sequence[CurveFacts], ranked: Sequence[CurveFacts], best: Mapping[str, CurveFacts]) -> str:
    left_out = len(found) - len(ranked)
    also = f" Not ranked for want of cells: {left_out} of {len(found)} curves." if left_out else ""
    if min(curve.seeds for curve in ranked) < 2:
        return f"This rests on one seed, which can not tell a small difference from chance.{also}"
    return (
        " ".join(_noise([c for c in ranked if c.scale == scale], of_scale) for scale, of_scale in best.items()) + also
    )


def _noise(at_scale: Sequence[CurveFacts], best: CurveFacts) -> str:
    """Against which curves of its scale the best one's LRS is lower by more than noise."""
    others = [curve for curve in at_scale if curve is not best]
    if not others:
        return f"It is the only curve at {best.scale}."
    beaten = less_sensitive(at_scale).get(at_scale.index(best), set())
    close = [curve.label for i, curve in enumerate(at_scale) if curve is not best and i not in beaten]
    test = f"(t-tests over {best.seeds} seeds, 5 % for all pairs of curves together)"
    if not close:
        return f"At {best.scale} that is lower than every other curve's by more than noise {test}."
    few = listed(close) if len(close) <= NAMED else f"{len(close)} of {len(others)} curves"
    if not beaten:
        return f"At {best.scale} no other curve's LRS is higher by more than noise {test}."
    return f"At {best.scale} that is lower by more than noise, but for {few} {test}."


def _by_strength(ranked: Sequence[CurveFacts]) -> Iterator[str]:
    """A sentence a scale on how far LRS depends on the strength, for methods that were tried at the same ones."""
    for scale in dict.fromkeys(curve.scale for curve in ranked):
        ranges = strength_ranges([curve for curve in ranked if curve.scale == scale])
        if len(ranges) < 2:
            continue
        shares = [f"{shown(width, 'LRS')} for {name}" for name, width in sorted(ranges.items(), key=lambda one: one[1])]
        yield f"Over the strengths that were tried for all of them at {scale}, LRS changes by {listed(shares)}."


def _span(curves: Iterable[CurveFacts]) -> str:
    values = sorted({shown(curve.LRS, "LRS") for curve in curves}, key=float)
    return values[0] if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _lrs_of(curve: CurveFacts) -> float:
    return math.inf if curve.LRS is None else curve.LRS
