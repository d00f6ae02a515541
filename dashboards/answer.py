"""A study in a few sentences: which curve is least sensitive to the learning rate, and how certain that is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from dashboards.factors import axis_title, varied
from dashboards.sensitivity import CurveFacts
from dashboards.tables import format_highest_lr, format_value, join_words
from dashboards.verdict import less_dependent, less_sensitive, lrs_ranges_over_gamma
from search_spaces.factors import to_text
from search_spaces.methods import FOREIGN_KINDS

LOSS_MARGIN_NATS = 0.02
"""The answer warns if the best loss of the least sensitive curve exceeds the lowest at its scale by more than this."""

MAX_NAMED = 3
"""A sentence names up to this many curves; if there are more, it gives their number."""
NO_OTHER = "no other curve"


def answer(curves: Sequence[CurveFacts]) -> str:
    """The study in a few sentences: which curve is least sensitive, and how certain that is.

    If attention norms are compared, the answer also says which curves converge at the highest learning rate.
    """
    ranked = [curve for curve in curves if curve.LRS is not None]
    if not ranked:
        missing = sum(len(curve.missing) for curve in curves)
        if curves and not missing:
            return f"No curve has an LRS, because the grid has only one {axis_title(curves[0].lr_factor)}."
        return f"No curve has an LRS yet: {missing} cells of {len(curves)} curves have no result."
    best = best_by_scale(ranked)
    sentences = [_least_sensitive(ranked, best), *_gamma_dependence(ranked), *_highest_lr(curves)]
    return " ".join([*sentences, *_caveats(curves, ranked)])


def best_by_scale(ranked: Sequence[CurveFacts]) -> dict[str, CurveFacts]:
    best: dict[str, CurveFacts] = {}
    for curve in sorted(ranked, key=_sort_value):
        best.setdefault(curve.scale, curve)
    return best


def _by_scale(curves: Sequence[CurveFacts]) -> dict[str, list[CurveFacts]]:
    scales = dict.fromkeys(curve.scale for curve in curves)
    return {scale: [curve for curve in curves if curve.scale == scale] for scale in scales}


def _least_sensitive(ranked: Sequence[CurveFacts], best: Mapping[str, CurveFacts]) -> str:
    if len(ranked) == 1:
        of = "" if ranked[0].label in FOREIGN_KINDS else f" of {ranked[0].label} at {ranked[0].scale}"
        return f"The LRS{of} is {_lrs_range(ranked)}."
    scales_by_label: dict[str, list[str]] = {}
    for scale in _by_scale(ranked):
        scales_by_label.setdefault(best[scale].label, []).append(scale)
    subject = join_words([f"{name} at {join_words(scales)}" for name, scales in scales_by_label.items()])
    verb = "is" if len(scales_by_label) == 1 else "are"
    axis = f"the {axis_title(ranked[0].lr_factor)}"
    sentence = f"{subject} {verb} least sensitive to {axis}, with an LRS of {_lrs_range(best.values())}"
    baselines = [curve for curve in ranked if curve.method == "baseline"]
    if any(curve.method not in ("baseline", *FOREIGN_KINDS) for curve in best.values()):
        sentence += (
            f", compared with {_lrs_range(baselines)} for the baseline" if baselines else "; there is no baseline"
        )
    return f"{sentence}.{_significance(ranked, best)}{_loss_penalty(ranked, best.values())}"


def _highest_lr(curves: Sequence[CurveFacts]) -> Iterator[str]:
    """One sentence per scale if there are several attention norms."""
    if len({curve.attention_norm for curve in curves}) < 2:
        return
    for scale, at_scale in _by_scale(curves).items():
        highest = max(curve.highest_lr or 0.0 for curve in at_scale)
        top = [curve for curve in at_scale if curve.highest_lr == highest]
        if top:
            few = len(top) <= MAX_NAMED
            names = join_words([curve.label for curve in top]) if few else f"{len(top)} of {len(at_scale)} curves"
            lr = format_highest_lr(highest, top[0].diverged)
            axis = axis_title(top[0].lr_factor)
            yield f"The highest {axis} that converges at {scale} is {lr}, reached by {names}."


def _loss_penalty(ranked: Sequence[CurveFacts], best: Iterable[CurveFacts]) -> str:
    """A sentence if a curve is flat because its loss is high everywhere."""
    for curve in best:
        lowest = min(other.best_loss for other in ranked if other.scale == curve.scale and other.best_loss is not None)
        if curve.best_loss is not None and curve.best_loss > lowest + LOSS_MARGIN_NATS:
            name = f"{curve.label} at {curve.scale}"
            return (
                f" However, the best loss of {name} is {curve.best_loss:.3f}, and another curve reaches {lowest:.3f}."
            )
    return ""


def _significance(ranked: Sequence[CurveFacts], best: Mapping[str, CurveFacts]) -> str:
    """A sentence on whether the lowest LRS of each scale is significantly lower; nothing for one seed."""
    scales_by_phrase: dict[str, list[str]] = {}
    for scale, at_scale in _by_scale(ranked).items():
        if len(at_scale) > 1:
            scales_by_phrase.setdefault(_less_sensitive_than(at_scale, best[scale]), []).append(scale)
    seeds = min(curve.seeds for curve in ranked)
    if seeds < 2 or not scales_by_phrase:
        return ""
    test = f"t-tests over {seeds} seeds, at a level of 5% for all pairs of curves of a scale"
    if set(scales_by_phrase) == {NO_OTHER}:
        scales = join_words(scales_by_phrase[NO_OTHER])
        return f" The lowest LRS is not significantly lower than any other at {scales} ({test})."
    phrases = join_words([f"{phrase} at {join_words(scales)}" for phrase, scales in scales_by_phrase.items()])
    return f" The lowest LRS is significantly lower than that of {phrases} ({test})."


def _less_sensitive_than(at_scale: Sequence[CurveFacts], winner: CurveFacts) -> str:
    index, others = at_scale.index(winner), len(at_scale) - 1
    higher = less_sensitive(at_scale).get(index, set())
    if len(higher) in (0, others):
        return "every other curve" if higher else NO_OTHER
    close = [curve.label for i, curve in enumerate(at_scale) if i != index and i not in higher]
    if len(close) <= MAX_NAMED:
        return f"every other curve but {join_words(close)}"
    return f"{len(higher)} of the {others} other curves"


def _caveats(curves: Sequence[CurveFacts], ranked: Sequence[CurveFacts]) -> Iterator[str]:
    if min(curve.seeds for curve in ranked) < 2:
        yield "With only one seed, small differences cannot be told from noise."
    if left_out := len(curves) - len(ranked):
        verb = "is" if left_out == 1 else "are"
        yield f"{left_out} of {len(curves)} curves {verb} not ranked because cells are missing."


def _gamma_dependence(ranked: Sequence[CurveFacts]) -> Iterator[str]:
    """A sentence on how much LRS depends on gamma, for methods that were tried at the same gammas.

    If curves differ in their factors, it is about those with the factors of the first one.
    """
    factors = dict(ranked[0].factors)
    of_factors = [curve for curve in ranked if curve.factors == ranked[0].factors]
    ranges: dict[str, list[float]] = {}
    less_dependent_at: list[dict[str, set[str]]] = []
    for at_scale in _by_scale(of_factors).values():
        range_by_method = lrs_ranges_over_gamma(at_scale)
        if len(range_by_method) > 1:
            less_dependent_at.append(less_dependent(at_scale))
            for method, value in range_by_method.items():
                ranges.setdefault(method, []).append(value)
    if not ranges:
        return
    least, *others = sorted(ranges, key=lambda method: max(ranges[method]))
    changes = join_words([f"{_format_range(ranges[method])} for {method}" for method in (least, *others)])
    shown = {name: factors[name] for name in varied(curve.factors for curve in ranked) if name in factors}
    among = f" (with {to_text(shown)})" if shown else ""
    sentence = f"Over the gammas that all of these methods were tried at{among}, LRS varies by {changes}"
    if min(curve.seeds for curve in of_factors) > 1:
        beaten = [method for method in others if all(method in wider.get(least, set()) for wider in less_dependent_at)]
        if beaten:
            than = "any other method" if beaten == others else join_words(beaten)
            sentence += f"; {least} varies significantly less than {than}"
        else:
            sentence += f"; {least} does not vary significantly less than any other method"
    yield f"{sentence}."


def _format_range(values: Iterable[float]) -> str:
    texts = sorted({format_value(value, "LRS") for value in values}, key=float)
    return texts[0] if len(texts) == 1 else f"{texts[0]} to {texts[-1]}"


def _lrs_range(curves: Iterable[CurveFacts]) -> str:
    return _format_range(_sort_value(curve) for curve in curves)


def _sort_value(curve: CurveFacts) -> float:
    return math.inf if curve.LRS is None else curve.LRS
