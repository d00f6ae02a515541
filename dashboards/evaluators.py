"""Hyperparameter importance for the final loss, estimated by Optuna's evaluators.

A module of its own, because importing Optuna and scikit-learn takes a second; without pandas, which takes half of one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.importance import (
    BaseImportanceEvaluator,
    MeanDecreaseImpurityImportanceEvaluator,
    PedAnovaImportanceEvaluator,
    get_param_importances,
)
from optuna.trial import TrialState, create_trial

EVALUATORS: dict[str, Callable[[int], BaseImportanceEvaluator]] = {
    "random forest": lambda seed: MeanDecreaseImpurityImportanceEvaluator(n_trees=8, seed=seed),
    "PED-ANOVA": lambda seed: PedAnovaImportanceEvaluator(),
}
"""The mean decrease in impurity of a random forest tells what moves the loss anywhere; PED-ANOVA tells what matters for
being among the best (arXiv 2304.10255). fANOVA takes some 50 times as long and agrees with the forest."""


def importance_shares(
    columns: Mapping[str, npt.NDArray[Any]],
    losses: npt.NDArray[np.float64],
    *,
    max_cells: int,
    repetitions: int,
    sample_share: float,
) -> dict[str, dict[str, list[float]]]:
    """Importance by evaluator and hyperparameter, one value per repetition.

    Args:
        columns: by hyperparameter, its value in each cell.
        losses: shape ``(cell,)``.
        max_cells: if there are more cells, a random sample of this size is used.
        sample_share: the share of the used cells that each repetition draws.
    """
    space = {name: _distribution(name, values) for name, values in columns.items()}
    used = np.arange(losses.size)
    if losses.size > max_cells:
        used = np.random.RandomState(0).choice(losses.size, max_cells, replace=False)
    values = [
        (column if isinstance(space[name], FloatDistribution) else column.astype(str))[used].tolist()
        for name, column in columns.items()
    ]
    trials = [
        create_trial(params=dict(zip(space, params, strict=True)), distributions=space, value=loss)
        for *params, loss in zip(*values, losses[used].tolist(), strict=True)
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


def _distribution(name: str, values: npt.NDArray[Any]) -> BaseDistribution:
    """The distribution of a column. Seeds are floats, because Optuna compares categories one by one at every trial."""
    if values.dtype.kind in "biuf":
        low, high = float(values.min()), float(values.max())
        return FloatDistribution(low, high, log=low > 0 and name != "seed")
    return CategoricalDistribution(sorted(set(values.astype(str).tolist())))


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
