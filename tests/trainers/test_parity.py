"""Our engine against the recorded steps and the initial values of the published code."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from benchmarks.parity import (
    V_PUBLISHED,
    Differences,
    Recording,
    drawn,
    matrices,
    published_stds,
    replay_all,
    table,
)
from dashboards import published
from search_spaces.scales import SCALES
from search_spaces.training_spec import ModelSpec
from trainers.model import GPT
from trainers.optimizer import lr_at

RECORDING = Recording()
RUNS = {run.name: run for run in RECORDING.runs}
TOLERANCE = 1e-5
"""Relative; rounding alone causes less than 1e-6."""
PUBLISHED_16M = {
    "attention.qkv": 0.0473,
    "attention.proj": 0.0058,
    "mlp.gate": 0.0449,
    "mlp.up": 0.0449,
    "mlp.fc2": 0.0449,
    "E": 0.0063,
    "embedding": 0.0668,
}
"""From the published code and its checkpoints."""


@pytest.fixture(scope="module")
def found() -> dict[str, Differences]:
    torch.set_num_threads(1)
    return replay_all(RECORDING)


def test_the_recording_covers_every_method_tied_or_not_with_and_without_decay() -> None:
    kinds = {
        (run.cell.method, run.cell.gamma, run.cell.model.tied, run.cell.training.weight_decay) for run in RUNS.values()
    }
    methods = [("baseline", None), ("mu-centering", None)]
    methods += [(name, gamma) for name in ("z-loss", "mu-loss") for gamma in (1e-4, 0.1)]
    assert kinds == {(*method, tied, decay) for method in methods for tied in (False, True) for decay in (0.0, 1e-4)}


@pytest.mark.parametrize("name", RUNS)
def test_steps_match_the_published_code(name: str, found: dict[str, Differences]) -> None:
    assert max(found[name]) <= TOLERANCE, f"{name} no longer matches the published code:\n{table(found)}"


def test_learning_rates_match_the_published_code() -> None:
    for run in RUNS.values():
        lrs = [lr_at(step, run.cell.training, run.cell.lr) for step in range(run.cell.training.steps)]
        assert lrs == pytest.approx(RECORDING.lrs, rel=1e-12)


def assert_drawn(name: str, matrix: Tensor, std: float) -> None:
    """Asserts that mean and standard deviation are within five standard errors of a normal sample's."""
    n = matrix.numel()
    assert abs(float(matrix.mean())) < 5 * std / math.sqrt(n), name
    assert float(matrix.std()) == pytest.approx(std, rel=5 / math.sqrt(2 * n)), name


def test_formulas_of_the_initial_values_give_the_published_figures() -> None:
    for name, std in published_stds(SCALES["16M"], V_PUBLISHED, tied=False).items():
        assert std == pytest.approx(PUBLISHED_16M[name], abs=1e-4), name


@pytest.mark.parametrize("tied", [False, True])
def test_the_recorded_weights_were_drawn_by_these_formulas(tied: bool) -> None:
    """The formulas have to explain the published code's own initial values."""
    model = GPT(SCALES["tiny"], ModelSpec(tied=tied), RECORDING.meta["V"], T=1)
    model.load_state_dict(RECORDING.weights(tied))
    stds = published_stds(SCALES["tiny"], RECORDING.meta["V"], tied)
    for name, matrix in matrices(model):
        assert_drawn(name, matrix, stds[name])


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("scale", ["tiny", *published.SCALES])
def test_initial_values_are_drawn_as_published(scale: str, tied: bool) -> None:
    model = drawn(SCALES[scale], tied)
    stds = published_stds(SCALES[scale], V_PUBLISHED, tied)
    for name, matrix in matrices(model):
        assert_drawn(name, matrix, stds[name])
    assert all(bool((p == 1).all()) for p in model.parameters() if p.dim() == 1)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("scale", SCALES)
def test_initial_standard_deviations_at_every_scale(scale: str, tied: bool) -> None:
    """The models are on the meta device, because the large ones would need too much memory. Every scale is drawn the
    same way."""
    with torch.device("meta"):
        model = GPT(SCALES[scale], ModelSpec(tied=tied), V_PUBLISHED, T=1)
    asked_for = sorted((tuple(matrix.shape), std) for matrix, std in model._initial_stds())
    stds = published_stds(SCALES[scale], V_PUBLISHED, tied)
    wanted = sorted((tuple(matrix.shape), stds[name]) for name, matrix in matrices(model))
    assert [shape for shape, _ in asked_for] == [shape for shape, _ in wanted], "expected every matrix once"
    assert [std for _, std in asked_for] == pytest.approx([std for _, std in wanted])
