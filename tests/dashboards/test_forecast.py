from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dashboards.forecast import COLUMNS, FEATURES, MIN_RUNS, OBSERVED_SHARE, Forecast, extract_features, forecast
from search_spaces.record import Row

STEPS = 100
LIMIT = 1.0
"""Heat above which a run diverges."""


def rows(heat: float, noise: np.random.Generator) -> list[Row]:
    """Returns a run's first rows. Output norms and the drift of the mean logit grow with heat; a hot run's loss
    rises."""
    found = []
    for step in range(0, 2 * int(OBSERVED_SHARE * STEPS) + 1, 5):
        t = step / STEPS
        blur = noise.normal(1.0, 0.05, 6)
        metrics = {
            "val_loss": 7.0 * math.exp(t * (heat - 0.5)) * blur[0],
            "logits_mean": -30 * t * math.exp(heat) * blur[1],
            "attention_logit_max": 4 * math.exp(t * heat) * blur[2],
            "qkv_norm/0": 10 * math.exp(4 * t * heat) * blur[3],
            "proj_norm/0": 0.2 * math.exp(8 * t * heat) * blur[4],
            "fc2_norm/1": 0.3 * math.exp(12 * t * heat) * blur[5],
        }
        found.append(Row(step, 0.0, metrics))
    return found


def run(i: int, heat: float, noise: np.random.Generator, **changes: Any) -> dict[str, Any]:
    diverged = heat > LIMIT
    return {
        "cell": f"cell-{i}",
        "label": f"run {i}",
        "curve": f"curve-{i % 6}",
        "lr": 10.0 ** (heat + noise.normal(0.0, 0.7)),  # only a hint, because each curve diverges at a different one
        "state": "diverged" if diverged else "finished",
        "steps": STEPS,
        "taken": 60 if diverged else STEPS,
        "seconds": 6.0 if diverged else 10.0,
        **extract_features(rows(heat, noise), STEPS),
    } | changes


def study(n: int, **changes: Any) -> pd.DataFrame:
    """Returns runs of six curves whose heat is uniform around the limit."""
    noise = np.random.default_rng(0)
    return table([run(i, noise.uniform(-1.0, 2.0), noise, **changes) for i in range(n)])


def table(runs: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(runs, columns=list(COLUMNS))


def score(found: Forecast, rule: str) -> Any:
    return next(score for score in found.scores if score.rule == rule)


def test_it_beats_an_uninformative_learning_rate() -> None:
    found = forecast(study(120))
    own, lr = found.scores[0], score(found, "learning rate alone")
    assert own.precision is not None
    assert own.recall is not None
    assert min(own.precision, own.recall) > 0.85
    assert own.recall > lr.recall
    assert own.precision > lr.precision
    counted = own.caught + len(own.missed)
    assert counted == (found.ended["state"] == "diverged").sum()


def test_it_saves_the_time_of_caught_runs_after_the_first_fifth() -> None:
    runs = study(120)
    own = forecast(runs).scores[0]
    # 60 of 100 steps take 6 s, the first 20 of them 2 s.
    assert own.saved == pytest.approx(own.caught * 4.0 / runs["seconds"].sum())


def test_a_probability_does_not_depend_on_outcomes_of_its_own_curve() -> None:
    """Swapping the outcomes of one curve must not change the probabilities of that curve."""
    runs = study(60)
    mine = runs["curve"] == "curve-2"
    turned = runs.copy()
    turned.loc[mine, "state"] = runs.loc[mine, "state"].map({"finished": "diverged", "diverged": "finished"})
    before, after = (forecast(table).runs["probability"] for table in (runs, turned))
    pd.testing.assert_series_equal(before[mine], after[mine])
    assert not np.allclose(before[~mine], after[~mine]), "other curves must be affected"


def test_random_outcomes_cannot_be_forecast() -> None:
    """If outcomes are independent of the features, recall is low."""
    runs = study(120)
    runs["state"] = np.random.default_rng(1).permutation(runs["state"])
    found = forecast(runs)
    own = found.scores[0]
    assert own.recall is not None
    assert own.recall < 0.5


def test_runs_that_cannot_be_forecast_are_counted_separately() -> None:
    noise = np.random.default_rng(2)
    early = run(1000, 2.0, noise, taken=20)
    unseen = run(1001, 0.0, noise) | dict.fromkeys(FEATURES, math.nan)
    found = forecast(pd.concat([study(60), table([early, unseen])]))
    assert (found.diverged_early, found.not_evaluated, len(found.runs)) == (1, 1, 60)


def test_an_unfinished_run_has_a_probability_but_no_score() -> None:
    noise = np.random.default_rng(3)
    running = {"state": "running", "taken": math.nan, "seconds": math.nan}
    hot, cold = run(1000, 2.0, noise, **running), run(1001, -1.0, noise, **running)
    found = forecast(pd.concat([study(60), table([hot, cold])]))
    p = found.runs.set_index("cell")["probability"]
    assert p["cell-1000"] > 0.9 > 0.1 > p["cell-1001"]
    assert found.scores == forecast(study(60)).scores


@pytest.mark.parametrize(
    ("runs", "reason"),
    [
        (study(0), f"needs at least {MIN_RUNS} runs"),
        (study(6), "there are"),
        (study(60).query("state == 'finished'"), "diverged after it; there are 0 from 0"),
        (study(60).query("state == 'diverged'"), "did not diverge; there are 0 from 0"),
        (study(60, curve="the only one"), "from two curves"),
    ],
    ids=["none", "few", "no divergence", "nothing else", "one curve"],
)  # fmt: skip
def test_without_enough_runs_there_is_no_forecast_but_a_reason(runs: pd.DataFrame, reason: str) -> None:
    found = forecast(runs)
    assert reason in found.reason
    assert found.scores == ()
    assert len(found.runs) == len(runs)


def test_features_come_from_the_first_fifth() -> None:
    seen = [
        Row(0, 0.0, {"val_loss": 7.0, "logits_mean": 1.0, "qkv_norm/0": 2.0, "fc2_norm/0": 1.0, "fc2_norm/1": 0.0}),
        Row(20, 0.0, {"val_loss": 14.0, "logits_mean": -3.0, "qkv_norm/0": 4.0, "fc2_norm/0": 8.0, "fc2_norm/1": 8.0}),
        Row(21, 0.0, {"val_loss": 1e9}),
    ]
    found = extract_features(seen, STEPS)
    assert tuple(found) == ("loss", *FEATURES)
    assert found["loss"] == pytest.approx(7.0)
    assert found["norm_growth"] == pytest.approx(math.log(2 * 8) / 2)
    assert found["logits_drift"] == pytest.approx(math.asinh(4.0))
    assert math.isnan(found["attention_logit_max"]), "the row does not have this value"


@pytest.mark.parametrize("steps", [[], [0], [0, 50, 100]])
def test_a_run_without_an_early_evaluation_has_no_features(steps: list[int]) -> None:
    assert extract_features([Row(step, 0.0, {"val_loss": 1.0}) for step in steps], STEPS) == {}
