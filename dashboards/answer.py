"""A study in a few sentences: what is least sensitive, and how far that can be trusted."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from dashboards.sensitivity import CurveFacts
from dashboards.tables import highest, listed, shown
from dashboards.verdict import less_dependent, less_sensitive, strength_ranges

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
    return " ".join([_winners(ranked, best), *_by_strength(ranked), *_highest(found), *_caveats(found, ranked)])


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
    return f"{sentence}{_noise(ranked, best)}{_price(ranked, best.values())}."


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


def _noise(ranked: Sequence[CurveFacts], best: Mapping[str, CurveFacts]) -> str:
    """A clause: at which scales the lowest LRS is lower than whose by more than noise; none from one seed."""
    scales_of: dict[str, list[str]] = {}
    for scale in dict.fromkeys(curve.scale for curve in ranked):
        at_scale = [curve for curve in ranked if curve.scale == scale]
        if len(at_scale) > 1:
            scales_of.setdefault(_beaten(at_scale, best[scale]), []).append(scale)
    seeds = min(curve.seeds for curve in ranked)
    if seeds < 2 or not scales_of:
        return ""
    clauses = listed([f"than {whose} at {listed(scales)}" for whose, scales in scales_of.items()])
    test = f"t-tests over {seeds} seeds, 5 % for all pairs of curves of a scale together"
    return f"; that is lower by more than noise {clauses} ({test})"


def _beaten(at_scale: Sequence[CurveFacts], winner: CurveFacts) -> str:
    place, others = at_scale.index(winner), len(at_scale) - 1
    beaten = less_sensitive(at_scale).get(place, set())
    if len(beaten) in (0, others):
        return "every other curve's" if beaten else "no other curve's"
    close = [curve.label for i, curve in enumerate(at_scale) if i != place and i not in beaten]
    return f"all but {listed(close)}" if len(close) <= NAMED else f"{len(beaten)} of {others} others"


def _caveats(found: Sequence[CurveFacts], ranked: Sequence[CurveFacts]) -> Iterator[str]:
    if min(curve.seeds for curve in ranked) < 2:
        yield "This rests on one seed, which can not tell a small difference from chance."
    if left_out := len(found) - len(ranked):
        yield f"Not ranked for want of cells: {left_out} of {len(found)} curves."


def _by_strength(ranked: Sequence[CurveFacts]) -> Iterator[str]:
    """A sentence on how far LRS depends on the strength, for methods that were tried at the same ones."""
    ranges: dict[str, list[float]] = {}
    smaller: list[dict[str, set[str]]] = []
    for scale in dict.fromkeys(curve.scale for curve in ranked):
        of_scale = [curve for curve in ranked if curve.scale == scale]
        widths = strength_ranges(of_scale)
        if len(widths) > 1:
            smaller.append(less_dependent(of_scale))
            for method, width in widths.items():
                ranges.setdefault(method, []).append(width)
    if not ranges:
        return
    least, *others = sorted(ranges, key=lambda method: max(ranges[method]))
    widths_said = listed([f"{_range(ranges[method])} for {method}" for method in (least, *others)])
    noise = ""
    if min(curve.seeds for curve in ranked) > 1:
        beaten = [other for other in others if all(other in at_scale.get(least, set()) for at_scale in smaller)]
        whose = "any other" if beaten == others else listed(beaten) if beaten else "no other"
        noise = f", by more than noise less than for {whose}"
    yield f"Over the strengths that were tried for all of them, LRS changes by {widths_said}, least for {least}{noise}."


def _range(values: Iterable[float]) -> str:
    written = sorted({shown(value, "LRS") for value in values}, key=float)
    return written[0] if len(written) == 1 else f"{written[0]} to {written[-1]}"


def _span(curves: Iterable[CurveFacts]) -> str:
    return _range(_lrs_of(curve) for curve in curves)


def _lrs_of(curve: CurveFacts) -> float:
    return math.inf if curve.LRS is None else curve.LRS
