"""Whether one curve's LRS is lower than another's by more than noise, and how far LRS depends on a strength."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from scipy.stats import ttest_1samp

from dashboards.comparison import ALPHA, holm, of_seeds, welch
from dashboards.sensitivity import CurveFacts


def less_sensitive(curves: Sequence[CurveFacts]) -> dict[int, set[int]]:
    """By position in ``curves``, of one scale: the positions of those whose LRS is higher by more than noise.

    Every two curves are tested by Student's t over seeds, in pairs where both have the same ones, and all p values are
    corrected together by Holm: the chance of a wrong entry anywhere is at most ``ALPHA``, also for the curve that was
    picked because it came out lowest. A curve of one seed is in no entry.
    """
    samples = [of_seeds(curve).get("LRS", np.empty(0)) for curve in curves]
    tested = [(a, b) for a, b in combinations(range(len(curves)), 2) if min(samples[a].size, samples[b].size) > 1]
    p = np.array([_p(curves[a], curves[b]) for a, b in tested], dtype=float)
    found: dict[int, set[int]] = {}
    for (a, b), corrected in zip(tested, holm(p), strict=True):
        if corrected < ALPHA:
            low, high = (a, b) if samples[a].mean() < samples[b].mean() else (b, a)
            found.setdefault(low, set()).add(high)
    return found


def _p(a: CurveFacts, b: CurveFacts) -> float:
    """Two-sided; 1 where all seeds say that the two are equal."""
    x, y = of_seeds(a)["LRS"], of_seeds(b)["LRS"]
    if {point.seed for point in a.points} != {point.seed for point in b.points}:
        return welch(x, y)
    difference = x - y
    if np.ptp(difference) <= 1e-12 * np.abs(difference).max(initial=0.0):
        return 1.0 if np.allclose(difference, 0.0, atol=1e-12) else 0.0
    return float(ttest_1samp(difference, 0.0).pvalue)


def strength_ranges(curves: Sequence[CurveFacts]) -> dict[str, float]:
    """By method, in nats: the largest LRS less the smallest, over the strengths that all of them were tried at.

    Of the curves of one scale, those with an LRS; methods without a strength, and attention norms beside the first, are
    left out. Nothing where fewer than two strengths are shared.
    """
    tried: dict[str, dict[float, float]] = {}
    for curve in curves:
        if curve.gamma is not None and curve.LRS is not None and curve.attention_norm == curves[0].attention_norm:
            tried.setdefault(curve.method, {}).setdefault(curve.gamma, curve.LRS)
    several = {method: of_method for method, of_method in tried.items() if len(of_method) > 1}
    shared = set.intersection(*map(set, several.values())) if several else set()
    if len(shared) < 2:
        return {}
    return {
        method: max(of_method[gamma] for gamma in shared) - min(of_method[gamma] for gamma in shared)
        for method, of_method in several.items()
    }
