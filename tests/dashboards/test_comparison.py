"""The comparison of two studies: which changes are reported, and how often noise is mistaken for a change."""

from __future__ import annotations

import io
import math

import numpy as np
import pandas as pd
import pytest
from made_up import L_INIT, curve, study
from rich.console import Console
from scipy.stats import ttest_ind

from dashboards.comparison import ALPHA, Comparison, compare, comparison_tables
from dashboards.sensitivity import curves

LOSSES = [3.5, 3.0, 3.2, 3.4]


def compared(before: list[list[dict[str, object]]], after: list[list[dict[str, object]]]) -> Comparison:
    return compare(curves(study(*before)), curves(study(*after)))


def seeds(losses: list[float], noise: float, count: int = 3, **changes: object) -> list[list[dict[str, object]]]:
    """Returns curves over seeds around ``losses``, with noise at the last learning rate."""
    shifts = np.linspace(-noise, noise, count)
    return [curve([*losses[:-1], losses[-1] + shift], seed=s, **changes) for s, shift in enumerate(shifts)]


def row(found: Comparison, measure: str) -> pd.Series:
    (one,) = [row for _, row in found.rows.iterrows() if row["measure"] == measure]
    return one


def said(found: Comparison) -> str:
    console = Console(file=io.StringIO(), width=100, color_system=None)
    for renderable in comparison_tables(found, "A", "B"):
        console.print(renderable, soft_wrap=True)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_change_beyond_the_noise_is_reported() -> None:
    found = compared(seeds(LOSSES, 0.01), seeds([3.5, 3.0, 3.2, 4.4], 0.01))
    lrs = row(found, "LRS")
    assert lrs["change"] == pytest.approx(1 / 3)
    assert (lrs["verdict"], row(found, "best_loss")["verdict"]) == ("changed", "equal")
    assert "LRS changed significantly: tiny baseline" in said(found)


def test_a_change_within_the_noise_is_not_reported() -> None:
    found = compared(seeds(LOSSES, 0.5), seeds([3.5, 3.0, 3.2, 3.5], 0.5))
    assert row(found, "LRS")["verdict"] == "within noise"
    assert "No LRS and no best loss changed significantly." in said(found)


def test_the_test_is_welchs() -> None:
    """By hand, t = 0.3 / sqrt(0.01 / 3 + 0.09 / 3) with 2.44 degrees of freedom. The change of LRS is a third of
    0.3."""
    found = compared(seeds(LOSSES, 0.1), seeds([3.5, 3.0, 3.2, 3.7], 0.3))
    assert row(found, "LRS")["p"] == pytest.approx(0.218, abs=0.005)


def test_the_interval_of_a_change_is_welchs() -> None:
    """SciPy computes the expected interval from the losses at the last learning rate; LRS changes by a third of their
    difference."""
    found = compared(seeds(LOSSES, 0.1), seeds([3.5, 3.0, 3.2, 3.7], 0.3, count=4))
    before, after = 3.4 + np.linspace(-0.1, 0.1, 3), 3.7 + np.linspace(-0.3, 0.3, 4)
    expected = ttest_ind(after, before, equal_var=False).confidence_interval(0.95)
    lrs = row(found, "LRS")
    assert (lrs["low"], lrs["high"]) == pytest.approx((expected.low / 3, expected.high / 3))
    half = (expected.high - expected.low) / 6
    assert f"+0.100 ± {half:.3f}" in said(found)


def test_with_one_seed_the_noise_is_unknown() -> None:
    found = compared([curve(LOSSES)], seeds([3.5, 3.1, 3.2, 4.4], 0.01))
    assert row(found, "LRS")["verdict"] == row(found, "best_loss")["verdict"] == "noise unknown"
    assert row(found, "LRS")[["p", "low", "high"]].isna().all()
    assert "±" not in said(found)
    assert "a change cannot be told from noise" in said(found)


def test_equal_studies_are_equal() -> None:
    found = compared(seeds(LOSSES, 0.1), seeds(LOSSES, 0.1))
    assert set(found.rows["verdict"]) == {"equal"}
    assert said(found) == "Equal: tiny baseline\n"


def test_learning_rates_change_by_factors() -> None:
    found = compared([curve([3.5, 3.0, 3.2, math.nan])], [curve([3.0, 3.5, math.nan, math.nan])])
    best, highest = row(found, "best_lr"), row(found, "highest_lr")
    assert (best["before"], best["after"], best["change"]) == pytest.approx((1e-2, 1e-3, 0.1))
    assert (highest["before"], highest["after"]) == (0.1, 0.01)


def test_curves_of_only_one_study_are_listed() -> None:
    centering = curve(LOSSES, method="mu-centering")
    found = compared(
        [curve(LOSSES), curve(LOSSES, method="z-loss", gamma=1e-4), centering],
        [centering, curve(LOSSES, method="z-loss", gamma=1e-2), curve(LOSSES, attention_norm="none")],
    )
    assert found.only_before == ("tiny baseline", "tiny z-loss (gamma=0.0001)")
    assert found.only_after == ("tiny baseline + none", "tiny z-loss (gamma=0.01)")
    assert "Only in A: tiny baseline and tiny z-loss (gamma=0.0001)" in said(found)


def test_different_grids_are_compared_at_common_learning_rates() -> None:
    found = compared([curve(LOSSES)], [curve(LOSSES)[:3]])
    assert set(found.rows["verdict"]) == {"equal"}, "LRS over different learning rates must not be compared"
    assert "compared over the learning rates that both have: 0.001, 0.01, 0.1" in said(found)
    nowhere = compared([curve(LOSSES)], [[record | {"lr": 5.0} for record in curve(LOSSES)[:1]]])
    assert nowhere.rows.empty
    assert "learning rates that both have: none" in said(nowhere)


def test_an_incomplete_curve_gets_no_verdict() -> None:
    broken = curve(LOSSES)
    broken[0] |= {"state": "crashed", "val_loss": None}
    found = compared([curve(LOSSES)], [broken])
    assert row(found, "LRS")["verdict"] == "unknown"
    assert "the second is incomplete; cells without a result: lr=0.001 seed=1 (crashed)" in said(found)


def test_losses_on_different_texts_are_not_comparable() -> None:
    text = said(compared([curve(LOSSES)], [curve(LOSSES, l_init=10.8)]))
    assert f"the loss before training is {L_INIT:.2f} and 10.80 nats" in text


def test_studies_that_share_no_curve() -> None:
    assert said(compared([], [curve(LOSSES)])) == "A and B have no curve in common.\nOnly in B: tiny baseline\n"


def test_noise_alone_is_rarely_called_a_change() -> None:
    """Each study has four methods with equal loss and three seeds. The noise grows with the learning rate."""
    rng = np.random.default_rng(0)
    wrong, repetitions = 0, 80

    def noisy() -> list[list[dict[str, object]]]:
        return [
            curve((np.asarray(LOSSES) + rng.normal(size=4) * [0.01, 0.01, 0.03, 0.1]).tolist(), seed=s, method=method)
            for method in ("baseline", "mu-centering", "z-loss", "max-z")
            for s in range(3)
        ]

    for _ in range(repetitions):
        wrong += bool((compared(noisy(), noisy()).rows["verdict"] == "changed").any())
    assert wrong / repetitions <= ALPHA + 0.04, (
        f"noise was reported as a change in {wrong} of {repetitions} comparisons"
    )
