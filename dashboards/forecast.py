"""Forecasts which runs will diverge, from the norms and logits of their first fifth.

A logistic regression on three features per run, scored on curves that it was not fitted to and compared with two
simpler rules. According to arXiv 2410.16682, linear layers with outputs of more than twice the norm of a converging run
precede divergence.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from search_spaces.record import Row

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

OBSERVED_SHARE = 0.2
"""The share of a run's steps that a forecast may use."""
TARGET_PRECISION = 0.9
"""The precision that the cautious threshold is chosen for."""
MIN_RUNS = 5
"""A forecast needs at least this many runs of each outcome."""
LAYERS = ("qkv_norm/", "proj_norm/", "fc1_norm/", "fc2_norm/")
INPUT_KEYS = ("val_loss", "logits_mean", "attention_logit_max")
FEATURES = ("norm_growth", "attention_logit_max", "logits_drift")
"""Mean log growth of the layers' output norms since the start; largest attention logit; drift of the mean logit. The
latter two are transformed by asinh, which behaves like a logarithm but allows zero and negative values.

Largest logit, loss and gradient norm are left out, because methods bound or scale them (soft-cap, z-loss) and they
mislead on a method that the model was not fitted to. On 113 runs of the tiny scale, 34 of which diverged, precision and
recall on held-out curves were 0.80 and 0.35 with these and the spike score, and 0.84 and 0.79 without.
"""
COLUMNS = ("cell", "label", "curve", "lr", "state", "steps", "taken", "seconds", "loss", *FEATURES)
"""Columns of a table of runs for a forecast. ``curve`` is shared by the runs of one model and method. ``steps`` were
planned; ``taken`` were trained, in ``seconds``. ``loss`` is the validation loss minus its value at the start."""

Booleans = npt.NDArray[np.bool_]


def extract_features(rows: Sequence[Row], steps: int) -> dict[str, float]:
    """``loss`` and ``FEATURES`` of a run of ``steps`` steps, from its first ``OBSERVED_SHARE``.

    A feature is NaN if a row lacks its values; the result is empty if the run was not evaluated after its start.
    """
    observed = bisect_right(rows, OBSERVED_SHARE * steps, key=lambda row: row.step)
    if observed < 2:
        return {}
    first, last = rows[0].metrics, rows[observed - 1].metrics
    # A layer that starts at zero has no growth.
    norms = [name for name in last if name.startswith(LAYERS) and min(first.get(name, 0.0), last[name]) > 0]
    value, start = ({name: row.get(name, math.nan) for name in INPUT_KEYS} for row in (last, first))
    features = {
        "loss": value["val_loss"] - start["val_loss"],
        "norm_growth": float(np.mean([math.log(last[name] / first[name]) for name in norms])) if norms else math.nan,
        "attention_logit_max": math.asinh(value["attention_logit_max"]),
        "logits_drift": math.asinh(abs(value["logits_mean"] - start["logits_mean"])),
    }
    return {name: float(number) for name, number in features.items()}


@dataclass(frozen=True, kw_only=True)
class Score:
    """How a stopping rule would have performed on runs whose outcome is known."""

    rule: str
    caught: int
    """Diverged runs that it would have stopped."""
    missed: tuple[str, ...]
    """Labels of the diverged runs that it would not have stopped."""
    false_alarms: tuple[str, ...]
    """Labels of the finished runs that it would have stopped."""
    saved: float
    """The share of all training time saved by stopping the caught runs after ``OBSERVED_SHARE``."""

    @property
    def precision(self) -> float | None:
        stopped = self.caught + len(self.false_alarms)
        return self.caught / stopped if stopped else None

    @property
    def recall(self) -> float | None:
        diverged = self.caught + len(self.missed)
        return self.caught / diverged if diverged else None


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The probability of divergence of each run, and the scores of the forecast."""

    runs: pd.DataFrame
    """Runs that could be forecast, with their ``probability`` of divergence. For a run that ended, the model was fitted
    to all other curves; for a running one, to all runs that ended. NaN if there is no model."""
    diverged_early: int
    """Number of runs that diverged before there was anything to forecast."""
    not_evaluated: int
    """Number of runs that were not evaluated early enough."""
    scores: tuple[Score, ...]
    """The scores of the forecast, then of the simpler rules; empty without a forecast."""
    reason: str = ""
    """The reason why there is no forecast, as a clause with the subject "it"."""

    @property
    def ended(self) -> pd.DataFrame:
        return self.runs[self.runs["state"] != "running"]


def forecast(runs: pd.DataFrame) -> Forecast:
    """The forecast for runs that finished, diverged or are running, a table with ``COLUMNS``.

    If a run was not evaluated early enough, its features are all NaN.
    """
    early = (runs["state"] == "diverged") & (runs["taken"] <= OBSERVED_SHARE * runs["steps"])
    evaluated = runs[list(FEATURES)].notna().any(axis=1)
    rated = runs[evaluated & ~early].assign(probability=math.nan).reset_index(drop=True)
    counts: dict[str, Any] = {"diverged_early": int(early.sum()), "not_evaluated": int((~evaluated & ~early).sum())}
    has_ended = rated["state"] != "running"
    ended = rated[has_ended]
    diverged = (ended["state"] == "diverged").to_numpy(dtype=bool)
    if reason := _shortfall(ended, diverged):
        return Forecast(runs=rated, scores=(), reason=reason, **counts)

    rated.loc[has_ended, "probability"] = _predict_held_out(ended[list(FEATURES)], diverged, ended["curve"])
    if not has_ended.all():
        model = _model().fit(ended[list(FEATURES)], diverged)
        rated.loc[~has_ended, "probability"] = model.predict_proba(rated.loc[~has_ended, list(FEATURES)])[:, 1]
    p = rated.loc[has_ended, "probability"].to_numpy(dtype=float)
    by_lr = _predict_held_out(ended[["lr"]].map(math.log), diverged, ended["curve"])
    cautious = _precision_threshold(p, diverged)
    rules = {
        "forecast, p >= 0.5": p >= 0.5,
        f"forecast, p >= {cautious:.2f} (fitted)": p >= cautious,
        "learning rate alone": by_lr >= 0.5,
        "loss above initial loss": ended["loss"].to_numpy(dtype=float) > 0,
    }
    total = float(runs.loc[runs["state"] != "running", "seconds"].sum())
    return Forecast(
        runs=rated, scores=tuple(_score(rule, ended, stops, total) for rule, stops in rules.items()), **counts
    )


def _shortfall(ended: pd.DataFrame, diverged: Booleans) -> str:
    """Why there are too few runs to fit a model, or an empty string. Each outcome must occur in at least two curves."""
    for outcome, runs in (("diverged after it", ended[diverged]), ("did not diverge", ended[~diverged])):
        if len(runs) < MIN_RUNS or runs["curve"].nunique() < 2:
            return (
                f"needs at least {MIN_RUNS} runs from two curves that were evaluated in the first {OBSERVED_SHARE:.0%} "
                f"of their steps and {outcome}; there are {len(runs)} from {runs['curve'].nunique()}"
            )
    return ""


def _model() -> Pipeline:
    from sklearn.impute import SimpleImputer  # imported here, because importing scikit-learn takes a second
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(
        SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler(), LogisticRegression()
    )


def _predict_held_out(x: pd.DataFrame, diverged: Booleans, groups: pd.Series[Any]) -> npt.NDArray[np.float64]:
    """The probability of each run, predicted by a model fitted to all other groups."""
    from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict

    probabilities = cross_val_predict(
        _model(), x, diverged, groups=groups, cv=LeaveOneGroupOut(), method="predict_proba"
    )
    return np.asarray(probabilities[:, 1], dtype=np.float64)


def _precision_threshold(p: npt.NDArray[np.float64], diverged: Booleans) -> float:
    """The smallest threshold with a precision of at least ``TARGET_PRECISION``; 1 if none has."""
    return next((float(t) for t in np.unique(p) if diverged[p >= t].mean() >= TARGET_PRECISION), 1.0)


def _score(rule: str, ended: pd.DataFrame, stops: Booleans, total: float) -> Score:
    diverged = (ended["state"] == "diverged").to_numpy(dtype=bool)
    later = ended["seconds"] * (1 - OBSERVED_SHARE * ended["steps"] / ended["taken"])
    return Score(
        rule=rule,
        caught=int((stops & diverged).sum()),
        missed=tuple(ended["label"][~stops & diverged]),
        false_alarms=tuple(ended["label"][stops & ~diverged]),
        saved=float(later[stops & diverged].sum()) / total,
    )
