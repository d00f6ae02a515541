"""The importance of hyperparameters of known functions, and which runs are counted."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from made_up import run, study

from dashboards.evaluators import EVALUATORS
from dashboards.importance import ALL, importance_figures, parallel_figures, start_importance
from dashboards.sensitivity import curves
from dashboards.views import lines, views


def bowl(by_lr: float, by_gamma: float, **changes: object) -> pd.DataFrame:
    """Returns losses of z-loss on a 7 x 7 grid, quadratic in log lr and log gamma."""
    return study(
        [
            run(
                method="z-loss", lr=float(10**x), gamma=float(10**y), cell=f"{x:.1f} {y:.1f}",
                val_loss=3 + by_lr * (x + 2) ** 2 + by_gamma * (y + 2) ** 2, **changes,
            )
            for x in np.linspace(-3.5, -0.5, 7)
            for y in np.linspace(-3.5, -0.5, 7)
        ]
    )  # fmt: skip


@pytest.mark.parametrize("evaluator", EVALUATORS)
@pytest.mark.parametrize(("by_lr", "by_gamma"), [(0.9, 0.1), (0.1, 0.9)])
def test_a_known_function_is_recovered(evaluator: str, by_lr: float, by_gamma: float) -> None:
    found = start_importance(bowl(by_lr, by_gamma))().set_index(["of", "evaluator", "hyperparameter"])
    of = found.loc["z-loss"].loc[evaluator]
    assert set(of.index) == {"lr", "gamma"}
    assert of["importance"].sum() == pytest.approx(1)
    assert (of["low"] <= of["importance"]).all()
    assert (of["importance"] <= of["high"]).all()
    # Variances are proportional to the squared weights, 81 to 1.
    assert of.loc["lr" if by_lr > by_gamma else "gamma", "importance"] > 0.85


def test_equal_weights_are_equal() -> None:
    found = start_importance(bowl(0.5, 0.5))().set_index(["evaluator", "hyperparameter"])["importance"]
    for evaluator in EVALUATORS:
        assert found[evaluator, "lr"] == pytest.approx(0.5, abs=0.12)


def test_only_ended_runs_count() -> None:
    runs = bowl(0.5, 0.5)
    runs.loc[:9, "state"] = "pruned"
    runs.loc[10:14, "state"] = "crashed"
    runs.loc[15:19, ["state", "val_loss"]] = ("diverged", math.nan)
    assert set(start_importance(runs)()["cells"]) == {49 - 15}
    assert start_importance(runs.head(8))().empty, "too few runs"
    assert start_importance(bowl(0.0, 0.0))().empty, "all losses are equal"
    assert set(start_importance(runs)()["of"]) == {"z-loss"}, "the group of all methods requires several methods"


def test_the_method_is_a_hyperparameter() -> None:
    other = bowl(0.1, 0.0).assign(method="mu-loss")
    other["val_loss"] += 2.0
    found = start_importance(pd.concat([bowl(0.1, 0.0), other], ignore_index=True))()
    of_all = found[(found["of"] == ALL) & (found["evaluator"] == "random forest")].set_index("hyperparameter")
    assert of_all["importance"].idxmax() == "method"
    assert "gamma" not in of_all.index


def test_the_figures() -> None:
    runs = bowl(0.9, 0.1)
    seen = views(lines(curves(runs)))
    (bars,) = importance_figures(start_importance(runs)(), seen)
    assert "over 49 cells" in bars.caption
    (every,) = parallel_figures(runs, seen)
    values = next(iter(every.spec["datasets"].values()))
    assert {row["axis"] for row in values} == {"gamma", "lr", "loss"}
    assert all(0 <= row["place"] <= 1 for row in values)
    assert {row["cell"] for row in values} == set(runs["cell"])
