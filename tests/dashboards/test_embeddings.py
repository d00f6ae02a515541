"""The geometry of an embedding matrix, compared with its definitions, the output of the published code, and a run's
diagnostics."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dashboards import embeddings
from dashboards.embeddings import MEASURES, b_ratio, histogram, measure_embedding
from trainers import diagnostics


def matrix(seed: int, V: int = 50, D: int = 7, shift: float = 0.0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.normal(size=(V, D)) + shift * random.normal(size=D)).astype(np.float32)


@settings(max_examples=30)
@given(st.integers(0, 1000), st.integers(2, 60), st.integers(1, 12), st.sampled_from([0.0, 0.3, 5.0, 60.0]))
def test_the_measures_match_the_diagnostics_of_a_run(seed: int, V: int, D: int, shift: float) -> None:
    E_VD = matrix(seed, V, D, shift)
    found = measure_embedding(E_VD).measures
    assert tuple(found) == MEASURES
    of_run = {name: float(value) for name, value in diagnostics.embedding(torch.from_numpy(E_VD).double()).items()}
    of_run["b_ratio"] = float(diagnostics.b_ratio(torch.from_numpy(E_VD).double()))
    for name, value in of_run.items():
        assert found[name] == pytest.approx(value, rel=1e-6, abs=1e-7), name


def test_the_values_of_each_row(monkeypatch: pytest.MonkeyPatch) -> None:
    E_VD = matrix(1, shift=2.0)
    found = measure_embedding(E_VD)
    mu_D = E_VD.astype(float).mean(axis=0)
    np.testing.assert_allclose(found.e_mu_V, E_VD.astype(float) @ mu_D, rtol=1e-12)
    np.testing.assert_allclose(found.row_norm_V, np.linalg.norm(E_VD.astype(float), axis=1))
    np.testing.assert_allclose(found.singular_D, np.linalg.svd(E_VD.astype(float), compute_uv=False))
    monkeypatch.setattr(embeddings, "BLOCK_ROWS", 8)  # 50 rows in seven chunks
    in_parts = measure_embedding(E_VD)
    assert in_parts.measures == pytest.approx(found.measures, rel=1e-9)
    np.testing.assert_allclose(in_parts.e_mu_V, found.e_mu_V, rtol=1e-12)


def test_the_b_ratio_of_the_published_checkpoint() -> None:
    """The published notebook prints these values for 16M baseline at a learning rate of 1e-3: smallest and largest dot
    product, |mu|² and B-ratio."""
    assert b_ratio(np.array([-2.9141207, 9.550041]), 4.894086) == pytest.approx(0.818, abs=5e-4)


def test_the_isotropy_of_shifted_rows_does_not_overflow() -> None:
    assert 0 <= measure_embedding(matrix(0, shift=500.0)).measures["isotropy"] < 1e-200


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_measures_of_a_non_finite_matrix_are_nan(bad: float) -> None:
    E_VD = matrix(0)
    E_VD[3, 2] = bad
    found = measure_embedding(E_VD)
    assert all(math.isnan(value) for value in found.measures.values())
    assert len(found.e_mu_V) == len(found.row_norm_V) == len(found.singular_D) == 0


def test_the_ratios_of_a_zero_matrix_are_nan() -> None:
    found = measure_embedding(np.zeros((5, 3), dtype=np.float32)).measures
    assert math.isnan(found["b_ratio"])
    assert math.isnan(found["ratio_norm"])
    assert found["isotropy"] == 1.0


@settings(max_examples=50)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200), st.integers(1, 80))
def test_a_histogram_counts_every_value_once(values: list[float], bins: int) -> None:
    found = list(histogram(np.array(values), bins))
    assert sum(rows for _, _, rows in found) == len(values)
    assert found[0][0] == min(values)
    assert found[-1][1] == max(values)
    assert all(before[1] == after[0] for before, after in pairwise(found))
    assert len(found) == (bins if min(values) < max(values) else 1)


def test_a_histogram_of_nothing_is_empty() -> None:
    assert not list(histogram(np.empty(0)))
