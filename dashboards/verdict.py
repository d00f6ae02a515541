"""Tests whether one curve's LRS is significantly lower than another's, and how much LRS depends on gamma."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, permutations

import numpy as np
from scipy.special import stdtr

from dashboards.comparison import ALPHA, holm_adjust, seed_samples, two_sided_p, welch_p
from dashboards.sensitivity import CurveFacts, Floats


def less_sensitive(curves: Sequence[CurveFacts]) -> dict[int, set[int]]:
    """For each curve of one scale, the curves whose LRS is significantly higher, as indices into ``curves``.

    Each pair of curves is compared by Student's t over seeds (paired if both have the same seeds), and the p values of
    all pairs are corrected by Holm's method. The chance of any wrong entry is therefore at most ``ALPHA``, even for a
    curve that was picked because its LRS is the lowest. A curve with one seed is in no entry.
    """
    samples = [seed_samples(curve).get("LRS", np.empty(0)) for curve in curves]
    tested = [(a, b) for a, b in combinations(range(len(curves)), 2) if min(samples[a].size, samples[b].size) > 1]
    seeds = [{point.seed for point in curve.points} for curve in curves]
    p = np.array([_p_unequal(samples[a], samples[b], seeds[a] == seeds[b]) for a, b in tested], dtype=float)
    higher: dict[int, set[int]] = {}
    for (a, b), corrected in zip(tested, holm_adjust(p), strict=True):
        if corrected < ALPHA:
            low, high = (a, b) if samples[a].mean() < samples[b].mean() else (b, a)
            higher.setdefault(low, set()).add(high)
    return higher


def _p_unequal(x: Floats, y: Floats, paired: bool) -> float:
    """Two-sided p value; 1 if the two curves are equal at every seed."""
    if not paired:
        return welch_p(x, y)
    difference = x - y
    if _is_constant(difference):
        return 1.0 if np.allclose(difference, 0.0, atol=1e-12) else 0.0
    return two_sided_p(_t_statistic(difference), difference.size - 1)


def _t_statistic(sample: Floats) -> float:
    return float(sample.mean() / (sample.std(ddof=1) / np.sqrt(sample.size)))


def _is_constant(sample: Floats) -> bool:
    """Whether all seeds agree, so that a t-test is not defined."""
    return bool(np.ptp(sample) <= 1e-12 * np.abs(sample).max(initial=0.0))


def lrs_ranges_over_gamma(curves: Sequence[CurveFacts]) -> dict[str, float]:
    """By method, in nats: the largest minus the smallest LRS over the gammas that all methods were tried at."""
    shared = _curves_at_shared_gammas(curves)
    return {method: float(np.ptp([curve.LRS for curve in by_gamma])) for method, by_gamma in shared.items()}


def less_dependent(curves: Sequence[CurveFacts]) -> dict[str, set[str]]:
    """By method: the methods whose ``lrs_ranges_over_gamma`` are significantly larger.

    The range of A is larger than that of B if A's LRS changes more between some two gammas than B's does between any
    two. The change, a difference of two LRS values of one seed, is linear in them and therefore unbiased, unlike a
    range. ``|a| > |b|`` means that a + b > 0 and a - b > 0 (or the same for -a), each a t-test over seeds. The p value
    is the largest of these tests, which is conservative, multiplied by the number of choices for A's pair of gammas.
    The p values of all pairs of methods are corrected by Holm's method. Curves with different seeds or only one are in
    no entry.
    """
    changes = {method: _lrs_differences(by_gamma) for method, by_gamma in _curves_at_shared_gammas(curves).items()}
    tested = [
        (a, b) for a, b in permutations(changes, 2) if changes[a].shape == changes[b].shape and changes[a].shape[1] > 1
    ]
    p = np.array([_p_wider(changes[wide], changes[narrow]) for narrow, wide in tested], dtype=float)
    wider: dict[str, set[str]] = {}
    for (narrow, wide), corrected in zip(tested, holm_adjust(p), strict=True):
        if corrected < ALPHA:
            wider.setdefault(narrow, set()).add(wide)
    return wider


def _curves_at_shared_gammas(curves: Sequence[CurveFacts]) -> dict[str, list[CurveFacts]]:
    """By method: its curves at the gammas that all methods were tried at, by ascending gamma.

    Uses the curves of one scale that have an LRS, and the attention norm and factors of the first curve. Methods
    without gamma or with only one are left out; the result is empty if the others share fewer than two gammas.
    """
    first = curves[0]
    curves_by_method: dict[str, dict[float, CurveFacts]] = {}
    for curve in curves:
        same = curve.attention_norm == first.attention_norm and curve.factors == first.factors
        if curve.gamma is not None and curve.LRS is not None and same:
            curves_by_method.setdefault(curve.method, {}).setdefault(curve.gamma, curve)
    several = {method: by_gamma for method, by_gamma in curves_by_method.items() if len(by_gamma) > 1}
    shared = set.intersection(*map(set, several.values())) if several else set()
    if len(shared) < 2:
        return {}
    return {method: [by_gamma[gamma] for gamma in sorted(shared)] for method, by_gamma in several.items()}


def _lrs_differences(by_gamma: Sequence[CurveFacts]) -> Floats:
    """The change of LRS between two gammas, shape ``(pair of gammas, seed)``; empty if the curves differ in seeds."""
    if len({frozenset(point.seed for point in curve.points) for curve in by_gamma}) > 1:
        return np.empty((0, 0))
    samples = [seed_samples(curve)["LRS"] for curve in by_gamma]
    return np.stack([a - b for a, b in combinations(samples, 2)])


def _p_wider(wide: Floats, narrow: Floats) -> float:
    """One-sided p value that ``wide`` changes more than ``narrow``; both have paired ``_lrs_differences``."""
    candidates = np.concatenate([wide, -wide])  # the sign of the change is not known in advance
    p = [max(_p_above(change + sign * other) for other in narrow for sign in (1, -1)) for change in candidates]
    return min(1.0, min(p) * len(candidates))


def _p_above(sample: Floats) -> float:
    if _is_constant(sample):
        return 0.0 if sample.mean() > 1e-12 else 1.0
    return float(stdtr(sample.size - 1, -_t_statistic(sample)))
