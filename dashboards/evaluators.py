"""Importance of hyperparameters for the final loss, by Optuna's evaluators."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Container, Iterable, Sequence

import numpy as np
import optuna
import pandas as pd
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.importance import (
    BaseImportanceEvaluator,
    MeanDecreaseImpurityImportanceEvaluator,
    PedAnovaImportanceEvaluator,
    get_param_importances,
)
from optuna.trial import TrialState, create_trial

from dashboards.importance import MOST, REPETITIONS, SHARE

EVALUATORS: dict[str, Callable[[int], BaseImportanceEvaluator]] = {
    "random forest": lambda seed: MeanDecreaseImpurityImportanceEvaluator(n_trees=8, seed=seed),
    "PED-ANOVA": lambda seed: PedAnovaImportanceEvaluator(),
}
"""A random forest's mean decrease of impurity says what moves the loss anywhere; PED-ANOVA what it takes to be among
the best (arXiv 2304.10255). fANOVA takes some 50 times as long for what the forest says."""


def repeated(cells: pd.DataFrame, names: Sequence[str]) -> dict[str, dict[str, list[float]]]:
    """By evaluator and hyperparameter of these columns, a value a repetition."""
    space = {name: _distribution(cells[name]) for name in names}
    looked_at = cells if len(cells) <= MOST else cells.sample(MOST, random_state=0)
    trials = [
        create_trial(
            params={key: row[key] if isinstance(space[key], FloatDistribution) else str(row[key]) for key in space},
            distributions=space,
            value=row["loss"],
        )
        for row in looked_at.to_dict("records")
    ]
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # else a line a study
    storage = optuna.storages.InMemoryStorage()
    whole = optuna.create_study(storage=storage)
    whole.add_trials(trials)
    rng = np.random.default_rng(0)
    found: dict[str, dict[str, list[float]]] = {name: {key: [] for key in space} for name in EVALUATORS}
    for repetition in range(REPETITIONS):
        drawn = rng.choice(len(trials), size=int(np.ceil(SHARE * len(trials))), replace=False)
        study = _Drawn(whole.study_name, storage, drawn)
        for name, make in EVALUATORS.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                # Sorted, as Optuna sorts the distributions: a forest's shares go by the order of the names given.
                shares = get_param_importances(study, evaluator=make(repetition), params=sorted(space))
            for key, share in shares.items():
                found[name][key].append(float(share))
    return found


def _distribution(values: pd.Series) -> BaseDistribution:
    """Seeds are numbers too: Optuna compares the choices of a category one by one, at every trial."""
    if values.name in ("lr", "gamma"):
        return FloatDistribution(float(values.min()), float(values.max()), log=bool(values.min() > 0))
    if values.name == "seed":
        return FloatDistribution(float(values.min()), float(values.max()))
    return CategoricalDistribution(sorted(str(value) for value in values.unique()))


class _Drawn(optuna.Study):
    """Some trials of a study, as a study: adding them to another copies each, which takes longer than an evaluator."""

    def __init__(self, name: str, storage: optuna.storages.BaseStorage, drawn: Iterable[int]) -> None:
        super().__init__(name, storage)
        self._drawn = list(drawn)

    def get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[optuna.trial.FrozenTrial]:
        every = super().get_trials(deepcopy, states)
        return [every[i] for i in self._drawn]
