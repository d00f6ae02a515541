"""Geometry of an embedding matrix: the measures of arXiv 2601.02031, computed from the weights alone.

The definitions are those of a run's diagnostics (``trainers.diagnostics``), in float64 and without torch.

Legend: V rows, one per token; D model width; R rows of a block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

Float64 = NDArray[np.float64]
BLOCK_ROWS = 4096
"""Rows converted to float64 at a time: 49 MB at a width of 1,504."""
BINS = 60
"""Default number of bins of a histogram."""
MEASURES = (
    "b_ratio",
    "mu_norm",
    "ratio_norm",
    "e_mu_min",
    "e_mu_max",
    "isotropy",
    "row_norm_min",
    "row_norm_mean",
    "row_norm_max",
    "singular_min",
    "singular_max",
)
"""The measures of a matrix. ``e_mu`` is the dot product of a row with mu, the mean row."""


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """The measures of a matrix, all NaN if an element is not finite."""

    measures: dict[str, float]
    """Values by name, with the keys ``MEASURES``."""
    e_mu_V: Float64
    """Dot product of each row with mu."""
    row_norm_V: Float64
    singular_D: Float64
    """Singular values in descending order."""


def measure_embedding(E_VD: NDArray[np.floating]) -> Embedding:
    if not np.isfinite(E_VD).all():
        nothing = np.full(0, math.nan)
        measures = dict.fromkeys(MEASURES, math.nan)
        return Embedding(measures=measures, e_mu_V=nothing, row_norm_V=nothing, singular_D=nothing)
    mu_D = E_VD.mean(axis=0, dtype=np.float64)
    e_mu_V = np.concatenate([E_RD @ mu_D for E_RD in _blocks(E_VD)])
    row_norm_V = np.concatenate([np.linalg.norm(E_RD, axis=1) for E_RD in _blocks(E_VD)])
    squares_D, eigenvectors_DD = np.linalg.eigh(sum(E_RD.T @ E_RD for E_RD in _blocks(E_VD)))
    singular_D = np.sqrt(np.maximum(squares_D[::-1], 0.0))
    mu_norm, row_norm = float(np.linalg.norm(mu_D)), float(row_norm_V.mean())
    measures = {
        "b_ratio": b_ratio(e_mu_V, mu_norm**2),
        "mu_norm": mu_norm,
        "ratio_norm": mu_norm / row_norm if row_norm else math.nan,
        "e_mu_min": float(e_mu_V.min()),
        "e_mu_max": float(e_mu_V.max()),
        "isotropy": isotropy(E_VD, eigenvectors_DD),
        "row_norm_min": float(row_norm_V.min()),
        "row_norm_mean": row_norm,
        "row_norm_max": float(row_norm_V.max()),
        "singular_min": float(singular_D[-1]),
        "singular_max": float(singular_D[0]),
    }
    return Embedding(measures=measures, e_mu_V=e_mu_V, row_norm_V=row_norm_V, singular_D=singular_D)


def b_ratio(e_mu_V: Float64, mu_square: float) -> float:
    """``max(|mu|² - min a, max a - |mu|²) / max(-min a, max a)``, ``a_i = e_i . mu``: arXiv 2601.02031.

    This is the bound on the logits along mu after centering, divided by the bound before; below 1, centering tightens
    the bound.
    """
    low, high = float(e_mu_V.min()), float(e_mu_V.max())
    before = max(-low, high)
    return max(mu_square - low, high - mu_square) / before if before else math.nan


def isotropy(E_VD: NDArray[np.floating], eigenvectors_DD: Float64) -> float:
    """``min Z(c) / max Z(c)``, ``Z(c) = sum_i exp(e_i . c)``, over the unit eigenvectors c of ``EᵀE``; 1 is isotropic.

    Equation 2 of Mu & Viswanath, 2018, in log space. Each eigenvector gets the sign with the larger Z.
    """
    log_z_D = np.full(eigenvectors_DD.shape[1], -math.inf)
    minus_log_z_D = log_z_D.copy()
    for E_RD in _blocks(E_VD):
        along_RD = E_RD @ eigenvectors_DD
        log_z_D = np.logaddexp(log_z_D, logsumexp(along_RD, axis=0))
        minus_log_z_D = np.logaddexp(minus_log_z_D, logsumexp(-along_RD, axis=0))
    log_z_D = np.maximum(log_z_D, minus_log_z_D)
    return math.exp(log_z_D.min() - log_z_D.max())


def histogram(values: Float64, bins: int = BINS) -> Iterator[tuple[float, float, int]]:
    """Lower bound, upper bound and count of ``bins`` bins of equal width; a single bin if all values are equal."""
    if not len(values):
        return
    low, high = float(values.min()), float(values.max())
    if low == high:
        yield low, high, len(values)
        return
    counts, edges = np.histogram(values, bins, (low, high))
    yield from zip(edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), strict=True)


def _blocks(E_VD: NDArray[np.floating]) -> Iterator[Float64]:
    for start in range(0, len(E_VD), BLOCK_ROWS):
        yield E_VD[start : start + BLOCK_ROWS].astype(np.float64)
