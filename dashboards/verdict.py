"""Whether one curve's LRS is lower than another's by more than noise, and how far LRS depends on a strength."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, permutations

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr

from dashboards.comparison import ALPHA, holm, of_seeds, two_sided, welch
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
    if _without_noise(difference):
        return 1.0 if np.allclose(difference, 0.0, atol=1e-12) else 0.0
    return two_sided(_t(difference), difference.size - 1)


def _t(sample: npt.NDArray[np.float64]) -> float:
    """Student's, of a mean of 0."""
    return float(sample.mean() / (sample.std(ddof=1) / np.sqrt(sample.size)))


def _without_noise(sample: npt.NDArray[np.float64]) -> bool:
    """Whether all seeds say the same, of which no t-test can be made."""
    return bool(np.ptp(sample) <= 1e-12 * np.abs(sample).max(initial=0.0))


def strength_ranges(curves: Sequence[CurveFacts]) -> dict[str, float]:
    """By method, in nats: the largest LRS less the smallest, over the strengths that all of them were tried at."""
    return {
        method: float(np.ptp([curve.LRS for curve in by_strength])) for method, by_strength in _shared(curves).items()
    }


def less_dependent(curves: Sequence[CurveFacts]) -> dict[str, set[str]]:
    """By method: those whose ``strength_ranges`` are larger by more than noise.

    The range of A is larger than that of B if between some two strengths A's LRS moves by more than B's does between
    any two. A move, the difference of two LRS of a seed, is linear in them and so has no bias, as a range has. ``|a| >
    |b|`` is a + b > 0 and a - b > 0, of which each is a t-test over seeds; p is the largest of all these tests (that
    all must hold makes it conservative), times the two strengths of A to choose. All pairs of methods are corrected
    together by Holm. Curves that do not share their seeds, or have only one, are in no entry.
    """
    moves = {method: _moves(by_strength) for method, by_strength in _shared(curves).items()}
    tested = [(a, b) for a, b in permutations(moves, 2) if moves[a].shape == moves[b].shape and moves[a].shape[1] > 1]
    p = np.array([_p_wider(moves[wide], moves[narrow]) for narrow, wide in tested], dtype=float)
    found: dict[str, set[str]] = {}
    for (narrow, wide), corrected in zip(tested, holm(p), strict=True):
        if corrected < ALPHA:
            found.setdefault(narrow, set()).add(wide)
    return found


def _shared(curves: Sequence[CurveFacts]) -> dict[str, list[CurveFacts]]:
    """By method: its curves at the strengths that all of the methods were tried at, ascending.

    Of the curves of one scale, those with an LRS; methods without a strength, and attention norms beside the first, are
    left out. Nothing where fewer than two strengths are shared.
    """
    tried: dict[str, dict[float, CurveFacts]] = {}
    for curve in curves:
        if curve.gamma is not None and curve.LRS is not None and curve.attention_norm == curves[0].attention_norm:
            tried.setdefault(curve.method, {}).setdefault(curve.gamma, curve)
    several = {method: of_method for method, of_method in tried.items() if len(of_method) > 1}
    shared = set.intersection(*map(set, several.values())) if several else set()
    if len(shared) < 2:
        return {}
    return {method: [of_method[gamma] for gamma in sorted(shared)] for method, of_method in several.items()}


def _moves(by_strength: Sequence[CurveFacts]) -> npt.NDArray[np.float64]:
    """``(two strengths, seed)``: how far LRS moves between them. No seed where the curves do not have the same."""
    if len({frozenset(point.seed for point in curve.points) for curve in by_strength}) > 1:
        return np.empty((0, 0))
    found = np.stack([of_seeds(curve)["LRS"] for curve in by_strength])
    return np.stack([found[i] - found[j] for i, j in combinations(range(len(found)), 2)])


def _p_wider(wide: npt.NDArray[np.float64], narrow: npt.NDArray[np.float64]) -> float:
    """Of the moves of two methods, whose seeds are paired."""
    candidates = np.concatenate([wide, -wide])  # a move up or down; its sign is not known beforehand
    p = [max(_p_above(move + sign * other) for other in narrow for sign in (1, -1)) for move in candidates]
    return min(1.0, min(p) * len(candidates))


def _p_above(sample: npt.NDArray[np.float64]) -> float:
    """One-sided, of a mean above 0."""
    if _without_noise(sample):
        return 0.0 if sample.mean() > 1e-12 else 1.0
    return float(stdtr(sample.size - 1, -_t(sample)))
