"""Valleys and headroom: properties of the band, open ends, and the coverage of its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from made_up import GRID, L_INIT, curve, run, study

from dashboards.sensitivity import CurveFacts, Point, curves
from dashboards.valley import Band, Valley, headroom, valley
from dashboards.valley_table import format_band, format_ratio, valley_columns, valley_texts

LOSSES = st.lists(st.floats(2.0, 6.0), min_size=4, max_size=4)
SEEDS = st.lists(LOSSES, min_size=2, max_size=4)
TOLERANCE = st.floats(0.001, 2.0)


def facts(*by_seed: Sequence[float], scale_lr: float = 1.0, shift: float = 0.0) -> CurveFacts:
    """Returns a curve over ``GRID``, or over one more learning rate for five losses. It is created without a table of
    runs, which would take most of the time of a property test."""
    grid, l_init = tuple(lr * scale_lr for lr in (*GRID, 10.0)[: len(by_seed[0])]), L_INIT + shift
    losses = np.nan_to_num(np.array(by_seed, dtype=float) + shift, nan=l_init).T
    points = [
        Point(cell=f"{lr:g}-{seed}", lr=lr, seed=seed, loss=float(loss), diverged=bool(loss == l_init), run={})
        for lr, at_lr in zip(grid, losses, strict=True)
        for seed, loss in enumerate(at_lr)
    ]
    names = {
        "study": "made-up",
        "scale": "tiny",
        "attention_norm": "qk-norm",
        "method": "baseline",
        "label": "baseline",
    }
    numbers = {"lr": grid, "l_init": l_init, "mean": tuple(losses.mean(axis=1).tolist())}
    return CurveFacts(**names, **numbers, gamma=None, points=tuple(points), missing=())  # type: ignore[arg-type]


def valley_of(curve: CurveFacts, tolerance: float) -> Valley:
    found = valley(curve, tolerance)
    assert found is not None
    return found


def test_a_valley_by_hand() -> None:
    found = valley_of(facts([3.4, 3.0, 3.1, math.nan]), 0.05)
    assert found.band.low == pytest.approx(10 ** (-2 - 0.05 / 0.4))
    assert found.band.high == pytest.approx(10 ** (-2 + 0.05 / 0.1))
    assert found.band.width == pytest.approx(10 ** (0.05 / 0.4 + 0.05 / 0.1))
    assert not found.band.is_open
    assert found.interval is None, "one seed has no interval"


def test_a_diverged_cell_counts_as_l_init() -> None:
    found = valley_of(facts([3.4, 3.0, math.nan, math.nan]), 0.05)
    assert found.band.high == pytest.approx(10 ** (-2 + 0.05 / (L_INIT - 3.0)))


def test_a_second_valley_does_not_count() -> None:
    assert valley_of(facts([3.0, 3.5, 3.01, 3.5]), 0.05).band.high < GRID[1]


@pytest.mark.parametrize(
    ("losses", "ends"),
    [([3.5, 3.0, 3.0, 3.5], ""), ([3.01, 3.0, 3.5, 3.6], "low"), ([3.5, 3.2, 3.0, 3.01], "high"), ([3.0] * 4, "both")],
)
def test_an_end_is_open_if_the_grid_ends_first(losses: list[float], ends: str) -> None:
    band = valley_of(facts(losses), 0.05).band
    assert band.open_ends == ends
    assert (band.low == GRID[0]) == (ends in ("low", "both"))
    assert (band.high == GRID[-1]) == (ends in ("high", "both"))


def test_without_a_complete_curve_there_is_no_valley() -> None:
    records = curve([3.5, 3.0, 3.2, 3.4])
    records[3] |= {"state": "crashed", "val_loss": None}
    (incomplete,) = curves(study(records))
    (single,) = curves(study([run()]))
    assert valley(incomplete, 0.05) is None
    assert valley(single, 0.05) is None
    assert headroom(incomplete) is None
    assert set(valley_columns(incomplete).values()) == {None, ""}
    assert set(valley_texts(incomplete).values()) == {"–"}


@given(SEEDS, TOLERANCE)
def test_the_band_contains_the_best_lr_and_lies_in_the_grid(by_seed: list[list[float]], tolerance: float) -> None:
    found = facts(*by_seed)
    band = valley_of(found, tolerance).band
    assert found.best_lr is not None
    assert GRID[0] <= band.low <= found.best_lr <= band.high <= GRID[-1]


@given(SEEDS, TOLERANCE)
def test_the_interval_contains_the_width(by_seed: list[list[float]], tolerance: float) -> None:
    found = valley_of(facts(*by_seed), tolerance)
    assert found.interval is not None
    low, high = found.interval
    assert 1 <= low <= found.band.width * (1 + 1e-9)
    assert found.band.width <= high * (1 + 1e-9)


@given(SEEDS, TOLERANCE, TOLERANCE)
def test_the_band_grows_with_the_tolerance(by_seed: list[list[float]], one: float, other: float) -> None:
    found = facts(*by_seed)
    small, large = (valley_of(found, tolerance) for tolerance in sorted((one, other)))
    assert large.band.low <= small.band.low * (1 + 1e-9)
    assert small.band.high <= large.band.high * (1 + 1e-9)
    assert small.interval is not None
    assert large.interval is not None
    assert all(a <= b * (1 + 1e-9) for a, b in zip(small.interval, large.interval, strict=True))


def close(a: Valley, b: Valley, scale_lr: float = 1.0) -> bool:
    assert a.interval is not None
    assert b.interval is not None
    numbers = [(a.band.low * scale_lr, b.band.low), (a.band.high * scale_lr, b.band.high)]
    numbers += list(zip(a.interval, b.interval, strict=True))
    return a.band.open_ends == b.band.open_ends and all(math.isclose(x, y, rel_tol=1e-6) for x, y in numbers)


def far_from_ties(by_seed: list[list[float]], tolerance: float) -> bool:
    """Returns whether rounding cannot change the best learning rate or which ends are open."""
    mean = np.sort(np.mean(by_seed, axis=0))
    found = facts(*by_seed)
    nearby = [valley_of(found, tolerance + step) for step in (-1e-9, 0, 1e-9)]
    return mean[1] - mean[0] > 1e-6 and close(nearby[0], nearby[1]) and close(nearby[1], nearby[2])


@given(SEEDS, TOLERANCE, st.floats(-1, 1))
def test_the_valley_ignores_a_common_shift(by_seed: list[list[float]], tolerance: float, shift: float) -> None:
    assume(far_from_ties(by_seed, tolerance))
    assert close(valley_of(facts(*by_seed), tolerance), valley_of(facts(*by_seed, shift=shift), tolerance))


@given(SEEDS, TOLERANCE, st.floats(1e-3, 1e3))
def test_the_valley_scales_with_the_learning_rate(by_seed: list[list[float]], tolerance: float, factor: float) -> None:
    assume(far_from_ties(by_seed, tolerance))
    scaled = valley_of(facts(*by_seed, scale_lr=factor), tolerance)
    assert close(valley_of(facts(*by_seed), tolerance), scaled, factor)


@given(SEEDS, TOLERANCE, st.randoms())
def test_the_valley_ignores_the_order_of_seeds(by_seed: list[list[float]], tolerance: float, random: object) -> None:
    assume(far_from_ties(by_seed, tolerance))
    shuffled = list(by_seed)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert close(valley_of(facts(*by_seed), tolerance), valley_of(facts(*shuffled), tolerance))


@given(LOSSES, TOLERANCE, st.integers(2, 5))
def test_identical_seeds_leave_no_uncertainty(losses: list[float], tolerance: float, seeds: int) -> None:
    found = valley_of(facts(*[losses] * seeds), tolerance)
    width = math.inf if found.band.is_open else found.band.width
    assert found.interval == pytest.approx((found.band.width, width), rel=1e-6)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_interval_has_its_nominal_coverage(seeds: int) -> None:
    """The noise differs by learning rate, and a part of it is shared by all learning rates of a seed."""
    rng = np.random.default_rng(seeds)
    true = np.array([3.3, 3.0, 3.06, 3.3])
    width = valley_of(facts(true.tolist()), 0.05).band.width
    covered = 0
    for _ in range(200):
        noise = rng.normal(size=(seeds, 1)) * 0.05 + rng.normal(size=(seeds, 4)) * np.array([0.01, 0.01, 0.02, 0.04])
        found = valley_of(facts(*(true + noise).tolist()), 0.05)
        assert found.interval is not None
        covered += found.interval[0] <= width <= found.interval[1]
    assert covered / 200 > 0.93, "the docstring of dashboards.valley.valley promises 97%"


@pytest.mark.parametrize(
    ("losses", "factor", "is_lower_bound"),
    [
        ([3.5, 3.0, 3.2, math.nan], 10.0, False),
        ([3.5, 3.0, math.nan, math.nan], 1.0, False),
        ([3.5, 3.0, 3.2, 3.4], 100.0, True),
        ([3.5, 3.2, 3.1, 3.0], 1.0, True),
    ],
)
def test_headroom(losses: list[float], factor: float, is_lower_bound: bool) -> None:
    found = headroom(facts(losses))
    assert found is not None
    assert found.factor == pytest.approx(factor)
    assert found.is_lower_bound == is_lower_bound


def test_an_edge_narrows_the_headroom() -> None:
    searched = [run(lr=0.3, val_loss=3.3, origin="edge"), run(lr=0.5, val_loss=math.nan, origin="edge")]
    above = [run(lr=2.0, val_loss=3.5, origin="edge"), run(lr=4.0, val_loss=math.nan, origin="edge")]
    (within,) = curves(study(curve([3.5, 3.0, 3.2, math.nan]), searched), GRID)
    (beyond,) = curves(study(curve([3.5, 3.0, 3.2, 3.4]), above), GRID)
    for found, factor in ((within, 30.0), (beyond, 200.0)):
        room = headroom(found)
        assert room is not None
        assert (room.factor, room.is_lower_bound) == (pytest.approx(factor), False)


def test_if_everything_diverges_there_is_no_headroom() -> None:
    assert headroom(facts([math.nan] * 4)) is None


def test_the_interval_is_around_the_best_learning_rate_even_if_a_lower_one_may_be_as_good() -> None:
    found = valley_of(facts([6, 5, 4.5, 4, 4.3], [6.02, 3.9, 4.52, 4.02, 4.33]), 0.05)
    assert found.band.width == pytest.approx(1.84, abs=0.005)
    assert found.interval == pytest.approx((1.72, 2.03), abs=0.005)


def test_columns_have_the_numbers_of_the_valley() -> None:
    found = facts([3.4, 3.0, 3.01, 3.02], [3.4, 3.0, 3.02, 3.03])
    columns, narrow = valley_columns(found), valley_of(found, 0.01)
    assert (columns["within_0.01_low"], columns["within_0.01_high"]) == (narrow.band.low, narrow.band.high)
    assert (columns["within_0.05_open"], columns["within_0.05_width_high"]) == ("high", None)
    assert columns["headroom"] == pytest.approx(100)
    assert columns["optimum_low"] < columns["optimum_lr"] < columns["optimum_high"]


def test_what_the_page_shows() -> None:
    texts = valley_texts(facts([3.4, 3.0, 3.1, 3.1], [3.4, 3.0, 3.1, 3.1]))
    assert list(texts) == ["Best lr", "Interpolated", "Within 0.01 nats", "Within 0.05 nats", "Headroom"]
    assert texts["Within 0.01 nats"] == "0.0094 to 0.013\n1.3× (1.3 to 1.3)"
    assert texts["Headroom"] == "≥ 100×"
    assert format_band(Band(low=0.001, high=0.3, open_low=True, open_high=True)) == "≤ 0.001 to ≥ 0.3"
    assert [format_ratio(value) for value in (1.23, 45.6, 1234.5, math.inf)] == ["1.2", "46", "1,234", "∞"]
