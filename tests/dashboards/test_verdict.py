"""The significance tests behind the answer, on simulated studies with known truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dashboards.factors import Shared
from dashboards.sensitivity import CurveFacts, Point, _interval, lrs
from dashboards.verdict import less_dependent, less_sensitive, lrs_ranges_over_gamma

TRUTH = np.array([3.4, 3.1, 3.0, 3.05, 3.2, 3.6, 4.1])
"""Expected loss at each of seven learning rates."""
NOISE = 0.01 * np.arange(1, 8)
"""Its standard deviation over seeds, which grows with the learning rate."""
STUDIES = 400


def curve(
    losses: Any, method: str = "baseline", gamma: float | None = None, first_seed: int = 1, factors: Shared = ()
) -> CurveFacts:
    """Returns a curve with losses of shape ``(lr, seed)``."""
    grid = tuple(10.0 ** (i / 2 - 4) for i in range(len(losses)))
    points = tuple(
        Point(cell="", lr=lr, seed=first_seed + j, loss=float(loss), diverged=False, run={})
        for lr, at_lr in zip(grid, losses, strict=True)
        for j, loss in enumerate(at_lr)
    )
    mean = losses.mean(axis=1)
    facts = {
        "study": "s",
        "scale": "tiny",
        "attention_norm": "qk-norm",
        "method": method,
        "gamma": gamma,
        "factors": factors,
        "label": method,
    }
    return CurveFacts(**facts, lr=grid, points=points, missing=(), l_init=9.0, mean=tuple(mean), LRS=lrs(mean, 9.0))


def drawn(rng: np.random.Generator, seeds: int, shift: float = 0.0) -> Any:
    """Draws the losses of one curve; ``shift`` raises all except the best and thereby the LRS."""
    return (TRUTH + shift * (TRUTH > 3.0))[:, None] + NOISE[:, None] * rng.standard_normal((7, seeds))


@pytest.mark.parametrize("seeds", [3, 5])
def test_among_equal_curves_the_lowest_is_rarely_significant(seeds: int) -> None:
    """Four curves have the same true losses, and runs of a seed share half of the noise. 16 and 13 of 400 studies are
    wrong."""
    rng, wrong = np.random.default_rng(seeds), 0
    for _ in range(STUDIES):
        shared = drawn(rng, seeds) - TRUTH[:, None]
        wrong += bool(less_sensitive([curve(drawn(rng, seeds) + shared) for _ in range(4)]))
    assert wrong / STUDIES <= 0.05


def test_a_lower_lrs_is_detected() -> None:
    rng, found = np.random.default_rng(0), 0
    for _ in range(100):
        lower, higher = curve(drawn(rng, 5)), curve(drawn(rng, 5, shift=0.2))
        verdict = less_sensitive([higher, lower])
        assert verdict in ({1: {0}}, {})
        found += bool(verdict)
    assert found > 90


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_intervals_of_lrs_have_their_nominal_coverage(seeds: int) -> None:
    rng, truth = np.random.default_rng(seeds), lrs(TRUTH, 9.0)
    held = [low <= truth <= high for low, high in (_interval(drawn(rng, seeds)) for _ in range(4000))]
    assert 0.92 <= np.mean(held) <= 0.98


def test_without_noise_or_with_one_seed() -> None:
    flat, steep = np.tile(TRUTH[:, None], 3), np.tile((TRUTH + 0.5 * (TRUTH > 3.0))[:, None], 3)
    assert less_sensitive([curve(flat), curve(flat)]) == {}
    assert less_sensitive([curve(steep), curve(flat)]) == {1: {0}}
    assert less_sensitive([curve(steep[:, :1]), curve(flat[:, :1])]) == {}
    other_seeds = curve(steep + np.array([0, 1e-3, -1e-3]), first_seed=7)
    assert less_sensitive([other_seeds, curve(flat + np.array([1e-3, 0, -1e-3]))]) == {1: {0}}


def test_the_range_of_lrs_is_over_the_gammas_that_all_methods_were_tried_at() -> None:
    def flat_but(by: float, method: str, gamma: float | None, factors: Shared = ()) -> CurveFacts:
        return curve(np.tile((TRUTH + by * (TRUTH > 3.0))[:, None], 2), method, gamma, factors=factors)

    tried = [
        flat_but(0.0, "baseline", None),
        *(flat_but(by, "z-loss", gamma) for by, gamma in ((0.0, 0.1), (0.6, 1.0), (5.0, 10.0))),
        *(flat_but(by, "mu-loss", gamma) for by, gamma in ((0.1, 0.1), (0.2, 1.0))),
        flat_but(0.0, "soft-cap", 30.0),
    ]
    assert lrs_ranges_over_gamma(tried) == {"z-loss": pytest.approx(0.6), "mu-loss": pytest.approx(0.1)}
    assert lrs_ranges_over_gamma(tried[:2]) == {}
    others = [flat_but(9.0, "z-loss", 0.1, (("wd", 0.1),)), flat_but(9.0, "mu-loss", 2.0, (("wd", 0.1),))]
    assert lrs_ranges_over_gamma([tried[0], *others, *tried[1:]]) == lrs_ranges_over_gamma(tried), (
        "curves with other factors must not count"
    )


def at_gammas(rng: np.random.Generator, seeds: int, **by_method: tuple[float, ...]) -> list[CurveFacts]:
    """Returns curves of methods whose LRS is shifted by the given amount at each gamma, each method with its own
    noise."""
    return [
        curve(drawn(rng, seeds, shift) + 0.05 * k * rng.standard_normal((7, seeds)), method, 10.0**i)
        for k, (method, shifts) in enumerate(by_method.items())
        for i, shift in enumerate(shifts)
    ]


@pytest.mark.parametrize("truth", [(0.0, 0.0, 0.0), (0.0, 0.4, 0.8)])
def test_methods_that_depend_equally_on_gamma_are_rarely_distinguished(truth: tuple[float, ...]) -> None:
    """Either no method depends on gamma or both do. The noisier method must not be mistaken for the more dependent
    one."""
    rng = np.random.default_rng(len(set(truth)))
    wrong = sum(bool(less_dependent(at_gammas(rng, 4, quiet=truth, loud=truth))) for _ in range(200))
    assert wrong / 200 <= 0.05


def test_the_method_that_depends_less_on_gamma_is_reported() -> None:
    """This holds even if the LRS of one method falls while that of the other rises."""
    rng = np.random.default_rng(0)
    found = [less_dependent(at_gammas(rng, 5, calm=(0.0, 0.1, 0.2), wild=(2.0, 1.0, 0.0))) for _ in range(50)]
    assert all(verdict in ({}, {"calm": {"wild"}}) for verdict in found)
    assert sum(map(bool, found)) > 45


def test_dependence_without_noise_with_one_seed_or_without_common_seeds() -> None:
    def exact(seeds: int, first_seed: int = 1) -> list[CurveFacts]:
        return [
            curve(np.tile((TRUTH + by * (TRUTH > 3.0))[:, None], seeds), method, gamma, first_seed)
            for method, gamma, by in (("calm", 0.1, 0.0), ("calm", 1.0, 0.1), ("wild", 0.1, 0.0), ("wild", 1.0, 0.5))
        ]

    assert less_dependent(exact(2)) == {"calm": {"wild"}}
    assert less_dependent(exact(1)) == {}
    assert less_dependent(exact(2)[:3] + exact(2, first_seed=7)[3:]) == {}
