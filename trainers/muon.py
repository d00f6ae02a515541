"""Muon, as ``torch.optim.Muon`` with its defaults: momentum, made orthogonal by Newton-Schulz iterations.

It takes the steps of torch's class as tensor arithmetic that never reads a value on the host, for all matrices that are
stacked in one weight. https://kellerjordan.github.io/posts/muon/

Legend: P matrices in one weight, O outputs of each of them, I inputs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
EPS = 1e-7
"""The smallest norm that a matrix is divided by."""


def orthogonalize(update_POI: Tensor) -> Tensor:
    """Returns about ``U Vᵀ`` of the singular value decomposition of each matrix, in bfloat16. The singular values of
    the result are between 0.7 and 1.2; those far below the largest one of the matrix stay smaller."""
    a, b, c = COEFFICIENTS
    x = update_POI.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp(min=EPS)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def shape_factor(update_POI: Tensor) -> float:
    """Returns the factor on the learning rate, ``sqrt(max(1, O / I))``, which torch calls "original"."""
    O, I = update_POI.shape[-2:]  # noqa: E741
    return math.sqrt(max(1.0, O / I))


def update(gradient_POI: Tensor, momentum_POI: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the step to take times the learning rate, towards lower loss if subtracted, and the new momentum."""
    momentum_POI = momentum_POI.lerp(gradient_POI, 1 - MOMENTUM)
    step_POI = orthogonalize(gradient_POI.lerp(momentum_POI, MOMENTUM))
    return step_POI.type_as(gradient_POI) * shape_factor(step_POI), momentum_POI
