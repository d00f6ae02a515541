"""The recommendation with which a report begins."""

from __future__ import annotations

import math

import pytest
from made_up import GRID, curve, run, study

from dashboards import published
from dashboards.recommendation import recommendation, recommended
from dashboards.runs import read_csv
from dashboards.sensitivity import curves
from search_spaces.factors import to_json

DENSE = (1e-3, 2e-3, 4e-3, 8e-3)
ONE_SEED = "With only one seed, the uncertainty of these costs is unknown."


def dense(losses: list[float], **changes: object) -> list[dict[str, object]]:
    return [run(lr=lr, val_loss=loss, **changes) for lr, loss in zip(DENSE, losses, strict=True)]


def said(*records: list[dict[str, object]], grid: tuple[float, ...] | None = DENSE) -> str:
    return " ".join(recommendation(curves(study(*records), grid)))


def test_the_recommendation_of_a_typical_study() -> None:
    records = [
        dense([3.5, 3.0, 3.0 + cost, math.nan], seed=s, method="mu-centering") for s, cost in enumerate((0.01, 0.02))
    ]
    # By hand: the standard deviation of 0.01 and 0.02, divided by the square root of 2, is 0.005; t(1) is 12.706.
    assert said(*records) == (
        "Use a learning rate of 0.002 with mu-centering; twice as much costs 0.015 ± 0.064 nats, and four times as "
        "much diverges."
    )


def test_with_one_seed_it_says_so() -> None:
    assert said(dense([3.0, 3.01, 3.05, 3.4])) == (
        "Use a learning rate of 0.001 with the baseline; twice as much costs 0.010 nats, and four times as much costs "
        f"0.050 nats. 0.001 is the smallest of the grid, so a smaller one may be better. {ONE_SEED}"
    )


def test_costs_are_interpolated_in_log_lr() -> None:
    text = said(curve([3.5, 3.0, 3.2, 3.4]), grid=GRID)
    assert f"twice as much costs {0.2 * math.log10(2):.3f} nats" in text
    assert f"four times as much costs {0.2 * math.log10(4):.3f} nats" in text


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        (
            [3.5, 3.2, 3.0, 3.1],
            "twice as much costs 0.100 nats, and the grid ends at 0.008, so nothing is known about four times as much.",
        ),
        (
            [3.5, 3.2, 3.1, 3.0],
            "; the grid ends at 0.008, so nothing is known about twice as much or four times as much. "
            "0.008 is the largest of the grid, so a larger one may be better.",
        ),
        ([3.5, 3.0, math.nan, math.nan], "; twice as much already diverges."),
        (
            [3.5, 3.2, 3.0, math.nan],
            "; twice as much diverges, and four times as much may diverge, because 0.008 does.",
        ),
    ],
)
def test_at_the_end_of_the_grid_it_says_what_is_unknown(losses: list[float], words: str) -> None:
    assert words in said(dense(losses))


def test_between_the_last_converging_lr_and_the_first_diverging_one() -> None:
    records = curve([3.5, 3.0, math.nan, math.nan])
    unknown = "twice as much may diverge, because 0.1 does, and four times as much may diverge, because 0.1 does."
    assert unknown in said(records, grid=GRID)
    edge = [run(lr=0.025, val_loss=3.1, origin="edge"), run(lr=0.03, val_loss=math.nan, origin="edge")]
    known = "twice as much still converges, at an unknown cost, and four times as much diverges."
    assert known in said(records, edge, grid=GRID)


def test_an_edge_beyond_the_grid_is_known() -> None:
    edge = [run(lr=0.012, val_loss=3.1, origin="edge"), run(lr=0.015, val_loss=math.nan, origin="edge")]
    assert "; twice as much already diverges." not in said(dense([3.5, 3.2, 3.1, 3.0]))
    assert "; twice as much already diverges." in said(dense([3.5, 3.2, 3.1, 3.0]), edge)


def test_if_some_seeds_diverge() -> None:
    records = [dense([3.5, 3.0, 3.1, 3.2], seed=1), dense([3.5, 3.0, math.nan, 3.2], seed=2)]
    assert "twice as much diverges for 1 of 2 seeds, and four times as much costs 0.200 ± 0.000 nats." in said(*records)


def test_the_recommended_curve_has_a_low_lrs_and_not_a_high_loss() -> None:
    flat_but_bad = dense([3.55, 3.5, 3.5, 3.5], method="mu-loss", gamma=0.1)
    flat = dense([3.1, 3.01, 3.02, 3.03], method="mu-centering")
    found = curves(study(dense([3.4, 3.0, 3.2, 3.4]), flat, flat_but_bad))
    best = recommended(found)
    assert best is not None
    assert best.method == "mu-centering"


def test_with_several_scales_it_is_about_the_widest() -> None:
    scales = [dense([3.4, 3.0, 3.2, 3.4], scale=scale) for scale in ("w192", "w96", "tiny")]
    text = said(*scales)
    assert text.startswith("At w192, use a learning rate of 0.002 with the baseline; ")
    assert text.endswith("Each doubling of width multiplies its best learning rate by 1.00.")


def test_the_drift_has_its_interval() -> None:
    scales = [dense([3.4, 3.0 + s / 100, 3.2, 3.4], scale=scale, seed=s) for scale in ("w192", "w96") for s in range(2)]
    assert "by 1.00 (95% interval: " in said(*scales)


def test_without_an_lrs_there_is_no_recommendation() -> None:
    assert recommendation(curves(study(dense([3.4, 3.0, 3.2, 3.4])[:3]), DENSE)) == ()
    assert recommendation([]) == ()


def test_the_published_runs() -> None:
    found = curves(read_csv(published.RUNS_CSV))
    main = [curve for curve in found if curve.gamma in (None, published.GAMMA)]
    assert recommendation(main)[0].startswith("At 221M, use a learning rate of 0.003 with ")


def test_a_factor_in_place_of_the_learning_rate_is_named() -> None:
    records = [
        run(lr=1e-2, val_loss=loss, factors=to_json({"training.eps": eps}), lr_factor="training.eps", scale=scale)
        for scale in ("w96", "w192")
        for eps, loss in zip(DENSE, [3.4, 3.0, 3.1, 3.2], strict=True)
    ]
    text = " ".join(recommendation(curves(study(records))))
    assert text.startswith("At w192, use eps=0.002 with the baseline; twice as much costs 0.100 nats")
    assert text.endswith("Each doubling of width multiplies its best eps by 1.00.")


def test_a_foreign_curve_is_named_by_its_factors() -> None:
    command = {"scale": "train.py", "method": "command"}
    assert said(dense([3.4, 3.0, 3.1, 3.2], **command)).startswith("Use a learning rate of 0.002; twice as much costs")
    widths = [
        dense([3.4, loss, 3.1, 3.2], factors=to_json({"width": width}), **command)
        for width, loss in ((64, 2.0), (128, 3.0))
    ]
    assert said(*widths).startswith("Use a learning rate of 0.002 with width=128; "), "the widest model must be used"
