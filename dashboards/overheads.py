"""Extra training time over the baseline: of a curve, and of a method by the rule of the published tables."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dashboards.sensitivity import CurveFacts


def overhead_percent(curve: CurveFacts, baseline: CurveFacts) -> float | None:
    """Extra training time of ``curve`` over ``baseline``, in percent; None without a pair of runs to compare.

    The ratio of the total seconds over the (lr, seed) at which both finished: a diverged run ends early. Where all
    finished it is the ratio of the mean seconds, as published; see ``method_overheads``.
    """
    theirs = _finished_seconds(baseline)
    ours = {pair: seconds for pair, seconds in _finished_seconds(curve).items() if pair in theirs}
    total = sum(theirs[pair] for pair in ours)
    return 100 * (sum(ours.values()) / total - 1) if total else None


def method_overheads(curves: Iterable[CurveFacts]) -> dict[tuple[str, str, str, str], float]:
    """Extra training time of each method over the baseline, in percent, by study, scale, attention norm and method.

    The mean over the method's strengths of ``overhead_percent``: the rule of the tables of arXiv 2601.02031, which
    average over the learning rates of each strength, then over the strengths. A method without such a number is left
    out.
    """
    found: dict[tuple[str, str, str, str], list[float]] = {}
    for curve in curves:
        if curve.overhead_percent is not None:
            key = (curve.study, curve.scale, curve.attention_norm, curve.method)
            found.setdefault(key, []).append(curve.overhead_percent)
    return {key: sum(percents) / len(percents) for key, percents in found.items()}


def _finished_seconds(curve: CurveFacts) -> dict[tuple[float, int], float]:
    return {
        (point.lr, point.seed): point.run["train_seconds"]
        for point in curve.points
        if not point.diverged and math.isfinite(point.run["train_seconds"])
    }
