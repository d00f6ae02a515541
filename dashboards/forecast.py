"""Which runs end diverged, told from the norms and logits of their first fifth.

A logistic regression on three numbers a run, scored on curves that it was not fitted to, beside two simpler rules.
Outputs of linear layers of more than twice the norm of a run that converges announce divergence: arXiv 2410.16682.
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

SEEN = 0.2
"""Share of a run's steps that a forecast may look at."""
PRECISION = 0.9
"""What the cautious threshold is chosen for."""
NEEDED = 5
"""Runs that it takes of each outcome."""
LAYERS = ("qkv_norm/", "proj_norm/", "fc1_norm/", "fc2_norm/")
LOOKED_AT = ("val_loss", "logits_mean", "attention_logit_max")
FEATURES = ("norm_growth", "attention_logit_max", "logits_drift")
"""Mean log growth of the layers' output norms since the start; the largest attention logit, and how far the mean logit
went, by their inverse hyperbolic sine, a logarithm that knows zero and signs.

Largest logit, loss and gradient norm are left out: the method bounds or scales them (soft-cap, z-loss), so that they
mislead on a method that the model was not fitted to. On 113 runs of the tiny scale, 34 of them diverged, precision
and recall on unseen curves were 0.80 and 0.35 with them and the spike score, 0.84 and 0.79 without.
"""
COLUMNS = ("cell", "label", "curve", "lr", "state", "steps", "taken", "seconds", "loss", *FEATURES)
"""Of a table of beginnings: ``curve`` is shared by the runs of one model and method; ``steps`` were planned,
``taken`` were trained, in ``seconds``; ``loss`` is the validation loss less the one at the start."""

Booleans = npt.NDArray[np.bool_]


def beginning(rows: Sequence[Row], steps: int) -> dict[str, float]:
    """``loss`` and ``FEATURES`` of a run of ``steps`` steps from its rows up to ``SEEN``, NaN where a row lacks them.

    Nothing where no evaluation lies between the start and there.
    """
    seen = bisect_right(rows, SEEN * steps, key=lambda row: row.step)
    if seen < 2:
        return {}
    first, last = rows[0].metrics, rows[seen - 1].metrics
    # A layer that starts at zero has no growth.
    norms = [name for name in last if name.startswith(LAYERS) and min(first.get(name, 0.0), last[name]) > 0]
    value, start = ({name: row.get(name, math.nan) for name in LOOKED_AT} for row in (last, first))
    found = {
        "loss": value["val_loss"] - start["val_loss"],
        "norm_growth": float(np.mean([math.log(last[name] / first[name]) for name in norms])) if norms else math.nan,
        "attention_logit_max": math.asinh(value["attention_logit_max"]),
        "logits_drift": math.asinh(abs(value["logits_mean"] - start["logits_mean"])),
    }
    return {name: float(number) for name, number in found.items()}


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a rule would have done to runs whose end is known."""

    rule: str
    caught: int
    """Runs that it would have stopped and that diverged."""
    missed: tuple[str, ...]
    """Runs that diverged all the same, by label."""
    false_alarms: tuple[str, ...]
    """Runs that it would have stopped wrongly, by label."""
    saved: float
    """Share of all training time that stopping the caught ones after ``SEEN`` would have saved."""

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
    """Probabilities of runs, and what they are worth."""

    runs: pd.DataFrame
    """Runs that could be forecast, with their ``probability`` to end diverged. A run that ended has it from a model
    that saw no run of its curve, one that still trains from all that ended. NaN where there is no model."""
    known: int
    """Runs that diverged before there was anything to forecast."""
    unseen: int
    """Runs without an evaluation in time."""
    scores: tuple[Score, ...]
    """The forecast first, then the rules; empty without a forecast."""
    reason: str = ""
    """Why there is no forecast."""

    @property
    def ended(self) -> pd.DataFrame:
        return self.runs[self.runs["state"] != "running"]


def forecast(runs: pd.DataFrame) -> Forecast:
    """The forecast of runs that finished, diverged or still train, a table with ``COLUMNS``.

    The features of a run without an evaluation in time are all NaN.
    """
    known = (runs["state"] == "diverged") & (runs["taken"] <= SEEN * runs["steps"])
    seen = runs[list(FEATURES)].notna().any(axis=1)
    judged = runs[seen & ~known].assign(probability=math.nan).reset_index(drop=True)
    counts: dict[str, Any] = {"known": int(known.sum()), "unseen": int((~seen & ~known).sum())}
    ends = judged["state"] != "running"
    ended = judged[ends]
    diverged = (ended["state"] == "diverged").to_numpy(dtype=bool)
    if reason := _too_little(ended, diverged):
        return Forecast(runs=judged, scores=(), reason=reason, **counts)

    judged.loc[ends, "probability"] = _held_out(ended[list(FEATURES)], diverged, ended["curve"])
    if not ends.all():
        model = _model().fit(ended[list(FEATURES)], diverged)
        judged.loc[~ends, "probability"] = model.predict_proba(judged.loc[~ends, list(FEATURES)])[:, 1]
    p = judged.loc[ends, "probability"].to_numpy(dtype=float)
    by_lr = _held_out(ended[["lr"]].map(math.log), diverged, ended["curve"])
    cautious = _cautious(p, diverged)
    rules = {
        "forecast, p >= 0.5": p >= 0.5,
        f"forecast, p >= {cautious:.2f}, chosen here": p >= cautious,
        "learning rate alone": by_lr >= 0.5,
        "loss above its start": ended["loss"].to_numpy(dtype=float) > 0,
    }
    total = float(runs.loc[runs["state"] != "running", "seconds"].sum())
    return Forecast(
        runs=judged, scores=tuple(_score(rule, ended, stops, total) for rule, stops in rules.items()), **counts
    )


def _too_little(ended: pd.DataFrame, diverged: Booleans) -> str:
    """Why these runs teach nothing; an empty string if they do. Without any one curve both outcomes must be left."""
    for outcome, runs in (("diverged after it", ended[diverged]), ("did not diverge", ended[~diverged])):
        if len(runs) < NEEDED or runs["curve"].nunique() < 2:
            return (
                f"needs at least {NEEDED} runs of two curves that were evaluated in the first {SEEN:.0%} of their "
                f"steps and {outcome}, here are {len(runs)} of {runs['curve'].nunique()}"
            )
    return ""


def _model() -> Pipeline:
    from sklearn.impute import SimpleImputer  # a second to import: only where there are enough runs
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(
        SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler(), LogisticRegression()
    )


def _held_out(x: pd.DataFrame, diverged: Booleans, groups: pd.Series[Any]) -> npt.NDArray[np.float64]:
    """Probability of each run from a model fitted to all other groups."""
    from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict

    found = cross_val_predict(_model(), x, diverged, groups=groups, cv=LeaveOneGroupOut(), method="predict_proba")
    return np.asarray(found[:, 1], dtype=np.float64)


def _cautious(p: npt.NDArray[np.float64], diverged: Booleans) -> float:
    """The smallest threshold of a precision of ``PRECISION``; 1 if there is none."""
    return next((float(t) for t in np.unique(p) if diverged[p >= t].mean() >= PRECISION), 1.0)


def _score(rule: str, ended: pd.DataFrame, stops: Booleans, total: float) -> Score:
    diverged = (ended["state"] == "diverged").to_numpy(dtype=bool)
    later = ended["seconds"] * (1 - SEEN * ended["steps"] / ended["taken"])
    return Score(
        rule=rule,
        caught=int((stops & diverged).sum()),
        missed=tuple(ended["label"][~stops & diverged]),
        false_alarms=tuple(ended["label"][stops & ~diverged]),
        saved=float(later[stops & diverged].sum()) / total,
    )
