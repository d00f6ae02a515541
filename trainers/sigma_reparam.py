"""Linear layers whose matrix is ``gamma W / sigma(W)``: arXiv 2303.06296, equation 3.

Legend: P matrices in one weight, O outputs of each of them, I inputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.matmul import linear


class SigmaLinear(nn.Linear):
    """``P`` matrices of ``(outputs / P, I)``, each with its own largest singular value sigma and learned gamma.

    Q, K and V are separate matrices, and so are gate and up: the paper's bound on the entropy of attention uses
    sigma(W_Q) and sigma(W_K). ``v_PI`` holds the current estimate of the right singular vectors. It is updated by one
    power iteration after each optimizer step and never in a forward pass, so that all micro batches, evaluations and
    ranks see the same sigma. It is part of a checkpoint.
    """

    v_PI: Tensor

    def __init__(self, inputs: int, outputs: int, P: int = 1) -> None:
        super().__init__(inputs, outputs, bias=False)
        self.gamma = nn.Parameter(torch.ones(P))
        self.register_buffer("v_PI", torch.zeros(P, inputs))

    def reset_parameters(self) -> None:
        """Does nothing: torch's constructor calls it, but the model initializes the values."""

    @property
    def weight_POI(self) -> Tensor:
        return self.weight.view(len(self.gamma), -1, self.in_features)

    def forward(self, input: Tensor) -> Tensor:
        # |W v| equals u W v for u = W v / |W v|, and so does its gradient in W if u and v are held constant.
        with torch.autocast(input.device.type, enabled=False):
            sigma_P = torch.linalg.vector_norm(self.weight_POI @ self.v_PI[:, :, None], dim=(1, 2))
            W_POI = self.weight_POI * (self.gamma / sigma_P)[:, None, None]
        return linear(input, W_POI.flatten(0, 1))

    @torch.no_grad()
    def init_singular_vectors(self) -> None:
        """Computes the exact singular vectors of the current weights."""
        rows_PII = torch.linalg.svd(self.weight_POI, full_matrices=False).Vh
        self.v_PI.copy_(rows_PII[:, 0])

    @torch.no_grad()
    def power_iteration(self) -> None:
        W_POI = self.weight_POI
        v_PI1 = W_POI.transpose(1, 2) @ (W_POI @ self.v_PI[:, :, None])
        self.v_PI.copy_(F.normalize(v_PI1.squeeze(-1), dim=-1))
