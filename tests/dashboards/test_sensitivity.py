"""Curves and LRS: the published numbers to the last digit, properties of LRS, and incomplete curves."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import GRID, L_INIT, curve, run, study

from dashboards import published
from dashboards.runs import from_records, read_csv
from dashboards.sensitivity import CurveFacts, _interval, curves, ended_runs, highest_converging, lrs
from dashboards.tables import method_overheads
from search_spaces.errors import InvalidInput

LOSSES = st.lists(
    st.one_of(st.floats(0, 20), st.sampled_from([math.nan, math.inf, L_INIT])), min_size=2, max_size=9
).filter(lambda losses: any(loss <= L_INIT for loss in losses))


@pytest.fixture(scope="module")
def published_curves() -> dict[tuple[str, str, float | None], CurveFacts]:
    return {(curve.scale, curve.method, curve.gamma): curve for curve in curves(read_csv(published.RUNS_CSV))}


@pytest.mark.parametrize(("scale", "curve"), list(product(published.SCALES, published.CURVES)))
def test_published_numbers(
    published_curves: dict[tuple[str, str, float | None], CurveFacts], scale: str, curve: tuple[str, float | None]
) -> None:
    found, place = published_curves[scale, *curve], published.CURVES.index(curve)
    assert f"{found.LRS:.3f}" == f"{published.LRS[scale][place]:.3f}"
    assert f"{found.best_loss:.2f}" == f"{published.BEST_LOSS[scale][place]:.2f}"
    assert found.best_lr == published.BEST_LR[scale][place]
    assert not found.missing
    assert found.at_edge == (scale in ("109M", "221M") and curve == ("z-loss", 100.0))


def test_every_published_curve_exists(
    published_curves: dict[tuple[str, str, float | None], CurveFacts],
) -> None:
    assert set(published_curves) == {(scale, *curve) for scale, curve in product(published.SCALES, published.CURVES)}
    for table in (published.LRS, published.BEST_LOSS, published.BEST_LR):
        assert {scale: len(row) for scale, row in table.items()} == dict.fromkeys(published.SCALES, 10)


def test_the_definition_divides_by_n(
    published_curves: dict[tuple[str, str, float | None], CurveFacts],
) -> None:
    assert f"{published_curves['16M', 'baseline', None].LRS_n:.3f}" == "0.262"


def test_published_overheads(published_curves: dict[tuple[str, str, float | None], CurveFacts]) -> None:
    found = method_overheads(published_curves.values())
    methods = published.METHODS[1:]
    assert len(found) == len(published.SCALES) * len(methods)
    for (_, scale, _, method), extra in found.items():
        assert f"{extra.percent:.1f}" == f"{published.OVERHEAD_PERCENT[scale][methods.index(method)]:.1f}", (
            scale,
            method,
        )
        assert 0 < extra.half_width < 0.5, "the interval over seven learning rates is too wide"


def test_the_overhead_of_a_method_is_a_mean_over_its_gammas() -> None:
    def timed(seconds: list[float], **changes: object) -> list[dict[str, object]]:
        return [
            record | {"train_seconds": time}
            for record, time in zip(curve([3.5, 3.0, 3.2, 3.4], **changes), seconds, strict=True)
        ]

    # By hand: the baseline's mean is 100; those of the gammas are 110 and 130, whose mean is 120.
    found = curves(
        study(
            timed([70, 90, 110, 130]),
            timed([80, 100, 120, 140], method="z-loss", gamma=0.1),
            timed([130, 130, 130, 130], method="z-loss", gamma=1.0),
        )
    )
    assert [extra.percent for extra in method_overheads(found).values()] == pytest.approx([20.0])
    assert method_overheads(found[:1]) == {}, "the baseline has no overhead"


@given(LOSSES)
def test_lrs_is_between_zero_and_the_full_height(losses: list[float]) -> None:
    best = min(loss for loss in losses if loss <= L_INIT)
    assert -1e-9 <= lrs(losses, L_INIT, "definition") <= L_INIT - best + 1e-9


@given(LOSSES, st.floats(-5, 5))
def test_lrs_ignores_a_common_shift(losses: list[float], shift: float) -> None:
    # A loss within rounding of l_init may be on either side of it after the shift, but counts as l_init on both.
    shifted = [loss + shift for loss in losses]
    assert lrs(shifted, L_INIT + shift) == pytest.approx(lrs(losses, L_INIT), abs=1e-9)


@given(LOSSES, st.randoms())
def test_lrs_ignores_the_order(losses: list[float], random: object) -> None:
    shuffled = list(losses)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert lrs(shuffled, L_INIT) == pytest.approx(lrs(losses, L_INIT), abs=1e-12)


@given(LOSSES)
def test_the_two_divisors_differ_by_their_ratio(losses: list[float]) -> None:
    n = len(losses)
    assert lrs(losses, L_INIT, "published") * (n - 1) == pytest.approx(lrs(losses, L_INIT, "definition") * n)


@given(LOSSES, st.sampled_from([math.nan, math.inf, L_INIT + 0.1, 1e9]))
def test_any_diverged_run_counts_as_l_init(losses: list[float], broken: float) -> None:
    assert lrs([*losses, broken], L_INIT) == lrs([*losses, L_INIT], L_INIT)


def test_ended_runs_have_the_losses_of_their_curves() -> None:
    runs = study(curve([3.5, math.nan, 99.0, 3.4]), [run(state=state) for state in ("crashed", "pruned", "planned")])
    assert ended_runs(runs)["loss"].tolist() == [3.5, L_INIT, L_INIT, 3.4]
    (found,) = curves(study(curve([3.5, math.nan, 99.0, 3.4])))
    assert ended_runs(runs)["loss"].tolist() == [point.loss for point in found.points]
    assert ended_runs(study([run(l_init=None)])).empty


@given(st.floats(0, L_INIT), st.integers(2, 9))
def test_a_flat_curve_has_no_sensitivity(loss: float, n: int) -> None:
    assert lrs([loss] * n, L_INIT) == 0


@pytest.mark.parametrize("state", ["crashed", "planned", "running"])
def test_a_missing_cell_is_named_and_not_averaged_over(state: str) -> None:
    records = curve([3.5, 3.0, 3.2, 3.4])
    records[2] |= {"state": state, "val_loss": None}
    (found,) = curves(from_records(records), GRID)
    assert found.missing == (f"lr=0.1 seed=1 ({state})",)
    assert (found.LRS, found.LRS_n, found.best_loss, found.best_lr, found.interval) == (None,) * 5
    assert any("lr=0.1 seed=1" in warning for warning in found.warnings)
    assert len(found.points) == 3, "cells with a result must still be drawn"


@pytest.mark.parametrize(
    ("versions", "warned"),
    [
        ((None, None, None, None), False),
        (("2.13.0+cpu", "2.13.0+cpu", None, "2.13.0+cpu"), False),
        (("2.13.0+cpu", "2.13.0+cpu", "2.11.0+cu130", "2.13.0+cpu"), True),
    ],
)
def test_two_pytorch_versions_in_a_curve_are_a_warning(versions: tuple[str | None, ...], warned: bool) -> None:
    cells = [cell | {"torch": version} for cell, version in zip(curve([3.0, 2.5, 2.0, 2.5]), versions, strict=True)]
    (found,) = curves(study(cells))
    sentence = "cells were trained with PyTorch 2.11.0+cu130 and 2.13.0+cpu, which may explain some of the differences"
    assert any(sentence in warning for warning in found.warnings) == warned
    assert warned or not any("PyTorch" in warning for warning in found.warnings)


def test_a_cell_without_a_record_is_missing() -> None:
    (found,) = curves(from_records(curve([3.5, 3.0, 3.2, 3.4])[:3]), GRID)
    assert found.missing == ("lr=1 seed=1 (not planned)",)


def test_a_seed_that_lacks_one_learning_rate_makes_the_curve_incomplete() -> None:
    records = curve([3.5, 3.0, 3.2, 3.4]) + curve([3.5, 3.0, 3.2, 3.4], seed=2)[:3]
    (found,) = curves(from_records(records), GRID)
    assert found.missing == ("lr=1 seed=2 (not planned)",)
    assert math.isnan(found.mean[3])


def test_diverged_cells_count_as_l_init() -> None:
    (found,) = curves(study(curve([3.5, 3.0, math.nan, 99.0])), GRID)
    assert found.mean == pytest.approx((3.5, 3.0, L_INIT, L_INIT))
    assert found.diverged == 2
    assert pytest.approx((0.5 + 2 * (L_INIT - 3.0)) / 3) == found.LRS


def test_a_run_that_diverged_after_its_last_evaluation_counts_as_l_init() -> None:
    records = curve([3.5, 3.0, 3.2, 3.4])
    records[3] |= {"state": "diverged"}
    assert curves(from_records(records), GRID)[0].mean[3] == pytest.approx(L_INIT)


def test_without_any_l_init_a_diverged_cell_is_missing() -> None:
    records = curve([3.5, 3.0, 3.2, math.nan], l_init=None)
    (found,) = curves(from_records(records), GRID)
    assert found.LRS is None
    assert "l_init" in found.missing[0]


def test_refinements_off_the_grid_are_not_in_the_curve() -> None:
    plain = curves(study(curve([3.5, 3.0, 3.2, 3.4])), GRID)
    refined = study(
        curve([3.5, 3.0, 3.2, 3.4]),
        [run(lr=0.0123, val_loss=1.0), run(lr=0.0456, method="z-loss", gamma=0.003, val_loss=1.0)],
    )
    assert curves(refined, GRID) == plain


def test_without_a_grid_all_learning_rates_of_the_scale_count() -> None:
    records = [*curve([3.5, 3.0, 3.2, 3.4]), run(method="mu-centering", lr=0.5)]
    baseline, centering = curves(from_records(records))
    assert baseline.lr == centering.lr == (1e-3, 1e-2, 1e-1, 0.5, 1.0)
    assert baseline.missing == ("lr=0.5 seed=1 (not planned)",)


def test_learning_rates_match_the_grid_despite_lost_digits() -> None:
    third = 1 / 3
    (found,) = curves(from_records([run(lr=0.3333333), run(lr=1.0, val_loss=3.5)]), (third, 1.0))
    assert not found.missing
    assert found.best_lr == third


def test_pruned_runs_are_ignored() -> None:
    extra = [run(state="pruned", lr=1e-2, seed=2, val_loss=0.1), run(state="pruned", lr=0.5, val_loss=0.1)]
    runs = study(curve([3.5, 3.0, 3.2, 3.4]))
    with_pruned = study(curve([3.5, 3.0, 3.2, 3.4]), extra)
    assert curves(with_pruned) == curves(runs)


@pytest.mark.parametrize(("losses", "edge"), [([3.0, 3.1, 3.2, 3.3], 1e-3), ([3.3, 3.2, 3.1, 3.0], 1.0)])
def test_a_best_learning_rate_at_the_edge_is_a_warning(losses: list[float], edge: float) -> None:
    (found,) = curves(study(curve(losses)), GRID)
    assert found.at_edge
    assert f"best lr {edge:g}" in " ".join(found.warnings)


def test_several_seeds_give_the_mean_curve_and_an_interval() -> None:
    runs = study(*(curve([3.5 + s / 10, 3.0, 3.2 + s / 5, math.nan], seed=s) for s in range(3)))
    (found,) = curves(runs, GRID)
    assert found.mean == pytest.approx((3.6, 3.0, 3.4, L_INIT))
    assert pytest.approx(lrs(found.mean, L_INIT)) == found.LRS
    assert found.interval is not None
    low, high = found.interval
    assert low < found.LRS < high  # type: ignore[operator]
    # By hand: a seed's LRS is 3.93 / 3 plus 0, 0.1 or 0.2; t is 4.303 with two degrees of freedom.
    assert (low, high) == pytest.approx((found.LRS - 4.303 * 0.1 / 3**0.5, found.LRS + 4.303 * 0.1 / 3**0.5), rel=1e-3)


def test_an_interval_of_lrs_is_never_negative() -> None:
    noisy = ([3.0, 3.1, 3.0, 3.1], [3.1, 3.0, 3.1, 3.1])
    (found,) = curves(study(*(curve(losses, seed=s) for s, losses in enumerate(noisy))), GRID)
    assert found.interval is not None
    assert found.interval[0] == 0.0
    assert found.interval[1] > 0.0


def test_a_95_percent_interval_covers_the_truth_95_percent_of_the_time() -> None:
    """Three seeds of a curve whose noise grows with the learning rate. In 600 studies, the coverage is almost surely
    within 2.5% of 95%."""
    random = np.random.default_rng(0)
    mean, noise = np.array([3.6, 3.2, 3.0, 3.3]), np.array([0.01, 0.01, 0.02, 0.1])
    losses = mean[:, None] + noise[:, None] * random.normal(size=(600, 4, 3))
    intervals = [_interval(one) for one in losses]
    assert np.mean([low <= lrs(mean, L_INIT) <= high for low, high in intervals]) == pytest.approx(0.95, abs=0.025)


def test_identical_seeds_have_an_interval_of_width_zero() -> None:
    (found,) = curves(study(*(curve([3.5, 3.0, 3.2, 3.4], seed=s) for s in range(4))), GRID)
    assert found.interval == pytest.approx((found.LRS, found.LRS))


def test_overhead_compares_the_same_finished_runs() -> None:
    slow = curve([3.5, 3.0, 3.2, math.nan], method="z-loss", gamma=1e-4)
    for record, seconds in zip(slow, (11.0, 12.0, 10.0, 500.0), strict=True):
        record["train_seconds"] = seconds
    baseline, z_loss = curves(study(curve([3.5, 3.0, 3.2, 3.4]), slow), GRID)
    assert baseline.overhead_percent is None
    assert z_loss.overhead_percent == pytest.approx(10.0)


def test_overhead_is_over_the_baseline_of_the_same_attention_norm() -> None:
    records = [
        curve([3.5, 3.0, 3.2, 3.4], attention_norm=norm, method=method, train_seconds=seconds)
        for norm, method, seconds in (
            ("none", "baseline", 10.0),
            ("none", "mu-centering", 11.0),
            ("attn-cap", "baseline", 20.0),
            ("attn-cap", "mu-centering", 30.0),
            ("qkv-norm", "mu-centering", 30.0),
        )
    ]
    found = {(c.attention_norm, c.method): c.overhead_percent for c in curves(study(*records), GRID)}
    assert found["none", "mu-centering"] == pytest.approx(10)
    assert found["attn-cap", "mu-centering"] == pytest.approx(50)
    assert found["qkv-norm", "mu-centering"] is None
    assert found["attn-cap", "baseline"] is None


@pytest.mark.parametrize(
    ("converged", "expected"),
    [
        ((True, True, True), 3.0),
        ((True, True, False), 2.0),
        ((True, False, True), 1.0),
        ((False, True, True), None),
        ((True, None, True), None),
        ((True, False, None), 1.0),
        ((None, True, True), None),
        ((), None),
    ],
)
def test_highest_converging(converged: tuple[bool | None, ...], expected: float | None) -> None:
    assert highest_converging((1.0, 2.0, 3.0)[: len(converged)], converged) == expected


def test_the_highest_lr_is_one_at_which_no_seed_diverged() -> None:
    steady, breaking = curve([3.5, 3.0, 3.2, 3.4]), curve([3.5, 3.0, math.nan, 3.4], seed=2)
    (both,) = curves(study(steady, breaking), GRID)
    assert both.highest_lr == 1e-2
    (alone,) = curves(study(steady), GRID)
    assert alone.highest_lr == GRID[-1]
    assert "every lr of the grid converges" in " ".join(alone.warnings)
    (none,) = curves(study(curve([math.nan, 3.0, 3.2, 3.4])), GRID)
    assert none.highest_lr is None
    assert "0.001, diverges" in " ".join(none.warnings)


def test_a_grid_of_one_learning_rate_has_no_warning_about_its_edge() -> None:
    (alone,) = curves(study([run()]))
    assert alone.warnings == ("no LRS because the grid has only one learning rate",)


def test_the_highest_lr_is_unknown_where_a_cell_below_it_is_missing() -> None:
    records = curve([3.5, 3.0, 3.2, math.nan])
    records[1] |= {"state": "crashed", "val_loss": None}
    assert curves(study(records), GRID)[0].highest_lr is None
    records = curve([3.5, 3.0, math.nan, 3.4])
    records[3] |= {"state": "crashed", "val_loss": None}
    assert curves(study(records), GRID)[0].highest_lr == 1e-2


def test_overhead_without_times_or_baseline_is_unknown() -> None:
    records = curve([3.5, 3.0, 3.2, 3.4], method="z-loss", gamma=1e-4)
    assert curves(study(records), GRID)[0].overhead_percent is None
    untimed = study(curve([3.5, 3.0, 3.2, 3.4], train_seconds=None), records)
    assert curves(untimed, GRID)[1].overhead_percent is None


def test_curves_are_sorted_by_size_registry_and_gamma() -> None:
    records = [
        run(scale=scale, method=method, gamma=gamma)
        for scale in ("109M", "from elsewhere", "16M")
        for method, gamma in (("new-method", None), ("z-loss", 0.1), ("z-loss", 1e-4), ("baseline", None))
    ]
    order = [(c.scale, c.label) for c in curves(from_records(records))]
    labels = ["baseline", "z-loss (gamma=0.0001)", "z-loss (gamma=0.1)", "new-method"]
    assert order == list(product(["16M", "109M", "from elsewhere"], labels))


def test_attention_norms_are_sorted_by_the_registry_and_named() -> None:
    norms = ("from elsewhere", "soft-clip", "qk-norm", "none")
    found = curves(from_records([run(attention_norm=norm) for norm in norms]))
    assert [c.attention_norm for c in found] == ["none", "qk-norm", "soft-clip", "from elsewhere"]
    assert [c.label for c in found][:2] == ["baseline + none", "baseline + qk-norm"]


def test_a_duplicate_cell_is_refused() -> None:
    with pytest.raises(InvalidInput, match="occurs twice"):
        curves(from_records([run(), run(val_loss=2.0)]))


def test_each_study_has_its_own_curves_on_its_own_grid() -> None:
    runs = study(
        curve([3.5, 3.0, 3.2, 3.4]),
        curve([3.5, 3.0, 3.2, 3.6], study="another"),
        curve([3.5, 3.0, 3.2, 3.6], study="another", method="mu-centering", train_seconds=20.0),
    )
    first, second, third = curves(runs, {"another": GRID[:3]})
    assert [(first.study, first.label), (second.study, second.label)] == [
        ("made-up", "made-up: baseline"),
        ("another", "another: baseline"),
    ]
    assert (first.lr, second.lr) == (GRID, GRID[:3])
    assert third.overhead_percent == pytest.approx(100), "the baseline of its own study must be used"
    alone = curves(runs[runs["study"] == "another"], GRID[:3])
    assert [curve.label for curve in alone] == ["baseline", "mu-centering"]
    assert second.LRS == alone[0].LRS


def test_runs_without_a_study_belong_to_the_given_one() -> None:
    (found,) = curves(from_records([run(study=None), run(lr=1.0)]))
    assert (found.study, len(found.points)) == ("made-up", 2)


def test_no_runs_have_no_curves() -> None:
    assert curves(from_records([])) == []
    assert curves(from_records([]), GRID) == []


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(1, 6), min_size=4, max_size=4), st.permutations(range(8)))
def test_the_order_of_the_rows_does_not_matter(losses: list[float], order: list[int]) -> None:
    runs = study(curve(losses), curve([3.0, 3.1, 3.2, 3.3], method="mu-centering"))
    shuffled: pd.DataFrame = runs.iloc[np.asarray(order)].reset_index(drop=True)
    assert curves(shuffled, GRID) == curves(runs, GRID)


def test_a_refinement_belongs_to_no_curve() -> None:
    """This holds whether it lies between the grid's learning rates or equals one of them with another gamma."""
    cell = {"scale": "tiny", "method": "z-loss", "gamma": 1e-4, "seed": 1, "state": "finished", "l_init": 7.0}
    grid = [
        {**cell, "lr": lr, "val_loss": loss, "origin": "grid"} for lr, loss in ((1e-3, 3.0), (1e-2, 2.0), (1e-1, 4.0))
    ]
    refined = [
        {**cell, "lr": 3.3e-3, "val_loss": 1.5, "origin": "refine"},
        {**cell, "lr": 1e-2, "gamma": 0.02, "val_loss": 1.0, "origin": "refine"},
    ]
    for origin in ("grid", None):  # tables of other programs do not have this column
        (curve,) = curves(from_records([{**run, "origin": origin} for run in grid] + refined))
        assert pytest.approx((1.0 + 2.0) / 2) == curve.LRS
        assert curve.lr == (1e-3, 1e-2, 1e-1)
