"""The interpolated optimum and its drift with width."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import curve, run, study

from dashboards import published
from dashboards.drift import COLUMNS, drift_table, drifts, minimum_of_parabola, optimum
from dashboards.drift_figure import drift_figures, drift_texts
from dashboards.runs import read_csv
from dashboards.sensitivity import curves
from dashboards.views import lines
from search_spaces.factors import to_json
from search_spaces.scales import SCALES

GRID = tuple(10.0**i for i in (-4, -3.5, -3, -2.5, -2, -1.5, -1))
ASCENDING = st.lists(st.floats(-10, 10), min_size=3, max_size=3).map(sorted).filter(lambda x: min(np.diff(x)) > 0.1)


def parabola(best: float, noise: float = 0.0, rng: np.random.Generator | None = None, **changes: object) -> list[dict]:
    """Returns runs whose losses are a parabola in log lr with its minimum at ``best``."""
    return [
        run(
            lr=lr,
            val_loss=3.0 + 0.05 * math.log(lr / best) ** 2 + (rng.normal() * noise if rng else 0.0),
            **changes,
        )
        for lr in GRID
    ]


def with_slope(
    slope: float, seeds: int = 1, noise: float = 0.0, scales: tuple[str, ...] = ("w96", "w192", "w384")
) -> list:
    rng = np.random.default_rng(7)
    return [
        parabola(3e-3 * (SCALES[scale].D / 96) ** slope, noise, rng, scale=scale, seed=seed)
        for scale in scales
        for seed in range(seeds)
    ]


@given(ASCENDING, st.floats(-10, 10), st.floats(0.01, 5))
def test_the_minimum_of_a_parabola(x: list[float], center: float, curvature: float) -> None:
    y = curvature * (np.array(x) - center) ** 2
    assert minimum_of_parabola(np.array(x), y) == pytest.approx(min(max(center, x[0]), x[2]), abs=1e-6)


@given(ASCENDING, st.lists(st.floats(0, 10), min_size=3, max_size=3))
def test_the_minimum_lies_between_the_outer_points(x: list[float], y: list[float]) -> None:
    assert x[0] <= minimum_of_parabola(np.array(x), np.array(y)) <= x[2]


@pytest.mark.parametrize(("y", "x"), [([3, 3, 3], 0), ([3, 4, 3], 0), ([1, 2, 3], -1), ([3, 2, 1], 1), ([2, 3, 1], 1)])
def test_the_minimum_if_the_parabola_has_none(y: list[float], x: float) -> None:
    assert minimum_of_parabola(np.array([-1.0, 0.0, 1.0]), np.array(y, dtype=float)) == x


@settings(max_examples=25, deadline=None)
@given(st.floats(3e-4, 3e-2), st.floats(0.1, 10))
def test_the_optimum_is_exact_for_parabolas_and_scales_with_the_learning_rate(best: float, factor: float) -> None:
    (found,) = curves(study(parabola(best)))
    (scaled,) = curves(study([record | {"lr": record["lr"] * factor} for record in parabola(best)]))
    one, other = optimum(found), optimum(scaled)
    assert one is not None
    assert other is not None
    assert one.lr == pytest.approx(best, rel=1e-6)
    assert other.lr == pytest.approx(best * factor, rel=1e-6)
    assert one.interval is None


def test_without_two_neighbors_there_is_no_optimum() -> None:
    for losses in ([3.0, 3.1, 3.2, 3.3], [3.3, 3.2, 3.1, 3.0]):
        (found,) = curves(study(curve(losses)))
        assert optimum(found) is None
    (single,) = curves(study([run()]))
    assert optimum(single) is None


@settings(max_examples=15, deadline=None)
@given(st.floats(-1.2, 0.8))
def test_the_slope_is_that_of_the_optima(slope: float) -> None:
    (found,) = drifts(curves(study(*with_slope(slope))))
    assert found.slope == pytest.approx(slope, abs=1e-6)
    assert found.factor == pytest.approx(2**slope)
    assert found.widths.tolist() == [96, 192, 384]
    assert found.fitted == pytest.approx([best.lr for _, _, best in found.points])
    assert found.interval is None


def test_seeds_give_an_interval_that_contains_the_truth() -> None:
    (found,) = drifts(curves(study(*with_slope(-1.0, seeds=4, noise=0.003))))
    assert found.slope is not None
    assert found.interval is not None
    assert found.interval[0] < -1 < found.interval[1]
    assert sum(found.interval) / 2 == pytest.approx(found.slope)
    assert found.factor_interval == pytest.approx([2**end for end in found.interval])


def test_seeds_that_differ_from_scale_to_scale_give_no_interval() -> None:
    records = with_slope(-1.0, seeds=3, noise=0.003)
    (found,) = drifts(curves(study(*records[:-1])))
    assert found.slope is not None
    assert found.interval is None


def test_a_scale_whose_best_lr_is_at_the_end_of_the_grid_is_left_out() -> None:
    shifted = parabola(1.0, scale="w768")
    (found,) = drifts(curves(study(*with_slope(-1.0), shifted)))
    assert found.slope == pytest.approx(-1.0)
    table = drift_table([found])
    assert tuple(table) == COLUMNS
    assert table["widths"].item() == "96, 192, 384"
    assert table["note"].item() == "no optimum at w768: the best lr is at an end of the grid, or cells are missing"


def test_the_note_names_the_axis() -> None:
    over_eps = [
        record | {"lr": 1e-3, "factors": to_json({"training.eps": record["lr"]}), "lr_factor": "training.eps"}
        for scale, best in (("w96", 3e-3), ("w192", 1.0))
        for record in parabola(best, scale=scale)
    ]
    note = drift_table(drifts(curves(study(over_eps))))["note"].item()
    assert note.startswith("no optimum at w192: the best eps is at an end")


def test_one_width_has_no_drift_and_one_optimum_no_slope() -> None:
    assert drifts(curves(study(parabola(1e-3, scale="w96")))) == []
    (found,) = drifts(curves(study(parabola(1e-3, scale="w96"), parabola(1.0, scale="w192"))))
    assert (found.slope, found.factor, found.interval) == (None, None, None)
    assert drift_texts(lines(found.curves))[0]["Slope"] == "–"
    assert not list(drift_figures(lines(found.curves)))


def test_methods_and_norms_drift_apart() -> None:
    records = [*with_slope(-1.0), *([r | {"method": "mu-centering"} for r in part] for part in with_slope(0.0))]
    records += [[r | {"attention_norm": "none"} for r in part] for part in with_slope(-0.5)]
    slopes = {(d.curves[0].attention_norm, d.curves[0].method): d.slope for d in drifts(curves(study(*records)))}
    expected = {("none", "baseline"): -0.5, ("qk-norm", "baseline"): -1.0, ("qk-norm", "mu-centering"): 0.0}
    assert slopes == pytest.approx(expected, abs=1e-6)


def test_scales_of_different_depths_are_not_compared() -> None:
    assert drifts(curves(read_csv(published.RUNS_CSV))) == [], "the published scales also differ in depth"
    assert SCALES["5M"].D == SCALES["w96"].D
    (found,) = drifts(curves(study(*with_slope(-1.0), *with_slope(0.5, scales=("5M", "8M")))))
    assert [curve.scale for curve in found.curves] == ["w96", "w192", "w384"]
    assert found.slope == pytest.approx(-1.0, abs=1e-6)
    drawn = lines(curves(study(*with_slope(-1.0), *with_slope(0.5, scales=("455M", "612M")))))
    names = {"baseline, w96 to w384": "-1.00", "baseline, 455M to 612M": "+0.50"}
    assert {row["Method"]: row["Slope"] for row in drift_texts(drawn)} == names
    (figure,) = drift_figures(drawn)
    assert {fact["label"] for fact in figure.spec["datasets"]["facts"]} == set(names)


def test_the_figure_and_the_rows_of_the_page() -> None:
    drawn = lines(curves(study(*with_slope(-1.0, seeds=3, noise=0.001))))
    (figure,) = drift_figures(drawn)
    facts = figure.spec["datasets"]["facts"]
    assert [fact["width"] for fact in facts] == [96, 192, 384]
    assert all(fact["low"] < fact["lr"] < fact["high"] for fact in facts)
    assert all(fact["factor"] == pytest.approx(0.5, abs=0.1) for fact in facts)
    (row,) = drift_texts(drawn)
    assert list(row) == ["Method", "Widths", "Slope", "Factor per doubling"]
    assert row["Widths"] == "96, 192, 384"
    assert row["Slope"].startswith(("-1.0", "-0.9"))
    assert " to " in row["Slope"]


def test_a_factor_gives_the_width_of_a_foreign_model() -> None:
    records = [
        parabola(
            3e-3 * (width / 64) ** slope,
            scale="train.py",
            method="command",
            factors=to_json({"n_embd": width, "parametrization": name}),
        )
        for name, slope in (("standard", -1.0), ("mup", 0.0))
        for width in (64, 128, 256)
    ]
    found = curves(study(*records))
    slopes = {drift.factors: drift.slope for drift in drifts(found)}
    expected = {(("parametrization", "standard"),): -1.0, (("parametrization", "mup"),): 0.0}
    assert slopes == pytest.approx(expected, abs=1e-6)
    drawn = lines(found)
    assert [row["Method"] for row in drift_texts(drawn)] == ["parametrization=standard", "parametrization=mup"]
    (figure,) = drift_figures(drawn)
    facts = figure.spec["datasets"]["facts"]
    assert [(fact["label"], fact["width"]) for fact in facts[:3]] == [
        ("parametrization=standard", width) for width in (64, 128, 256)
    ]
    assert drift_table(drifts(found))["factors"].tolist() == [to_json(dict(factors)) for factors in expected]


def test_a_field_of_our_own_model_separates_drifts() -> None:
    records = [
        parabola(3e-3 * (SCALES[scale].D / 96) ** slope, scale=scale, factors=to_json({"training.eps": eps}))
        for eps, slope in ((1e-8, -1.0), (1e-6, -0.5))
        for scale in ("w96", "w192")
    ]
    assert [drift.slope for drift in drifts(curves(study(*records)))] == pytest.approx([-1.0, -0.5], abs=1e-6)
