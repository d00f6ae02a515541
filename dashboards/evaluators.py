"""Hyperparameter importance for the final loss, estimated by Optuna's evaluators.

A module of its own, because importing Optuna and scikit-learn takes a second.
"""

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
from pandas.api.types import is_numeric_dtype

EVALUATORS: dict[str, Callable[[int], BaseImportanceEvaluator]] = {
    "random forest": lambda seed: MeanDecreaseImpurityImportanceEvaluator(n_trees=8, seed=seed),
    "PED-ANOVA": lambda seed: PedAnovaImportanceEvaluator(),
}
"""The mean decrease in impurity of a random forest tells what moves the loss anywhere; PED-ANOVA tells what matters for
being among the best (arXiv 2304.10255). fANOVA takes some 50 times as long and agrees with the forest."""


def importance_shares(
    cells: pd.DataFrame, names: Sequence[str], *, max_cells: int, repetitions: int, sample_share: float
) -> dict[str, dict[str, list[float]]]:
    """Importance of the hyperparameters ``names`` by evaluator and hyperparameter, one value per repetition.

    ``cells`` has the columns ``names`` and ``loss``. If there are more than ``max_cells``, a random sample of that size
    is used; each repetition draws ``sample_share`` of it.
    """
    space = {name: _distribution(cells[name]) for name in names}
    used = cells if len(cells) <= max_cells else cells.sample(max_cells, random_state=0)
    trials = [
        create_trial(
            params={key: row[key] if isinstance(space[key], FloatDistribution) else str(row[key]) for key in space},
            distributions=space,
            value=row["loss"],
        )
        for row in used.to_dict("records")
    ]
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # Optuna logs a line per study otherwise
    storage = optuna.storages.InMemoryStorage()
    whole = optuna.create_study(storage=storage)
    whole.add_trials(trials)
    rng = np.random.default_rng(0)
    shares: dict[str, dict[str, list[float]]] = {name: {key: [] for key in space} for name in EVALUATORS}
    for repetition in range(repetitions):
        sample = rng.choice(len(trials), size=int(np.ceil(sample_share * len(trials))), replace=False)
        study = _StudySubset(whole.study_name, storage, sample)
        for name, make in EVALUATORS.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                # Sorted, as Optuna sorts the distributions: a forest assigns shares by the order of the names given.
                importances = get_param_importances(study, evaluator=make(repetition), params=sorted(space))
            for key, share in importances.items():
                shares[name][key].append(float(share))
    return shares


def _distribution(values: pd.Series) -> BaseDistribution:
    """The distribution of a column. Seeds are floats, because Optuna compares categories one by one at every trial."""
    if values.name == "seed":
        return FloatDistribution(float(values.min()), float(values.max()))
    if is_numeric_dtype(values):
        return FloatDistribution(float(values.min()), float(values.max()), log=bool(values.min() > 0))
    return CategoricalDistribution(sorted(str(value) for value in values.unique()))


class _StudySubset(optuna.Study):
    """Some trials of a study, as a study. Adding them to a new study would copy each, slower than any evaluator."""

    def __init__(self, name: str, storage: optuna.storages.BaseStorage, sample: Iterable[int]) -> None:
        super().__init__(name, storage)
        self._sample = list(sample)

    def get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[optuna.trial.FrozenTrial]:
        trials = super().get_trials(deepcopy, states)
        return [trials[i] for i in self._sample]
