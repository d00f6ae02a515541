"""From hidden states to losses: logits in the named precision, cross-entropy, and the method's penalty.

bfloat16 logits are what makes the baseline break at high learning rates, so that their precision is explicit here
and nowhere else.

Legend: B sequences, T tokens a sequence, V vocabulary with padding, D model width.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers import methods
from trainers.model import GPT

Precision = Literal["float32", "bfloat16"]


class Losses(NamedTuple):
    objective: Tensor
    """What is minimised: cross-entropy and the method's penalty."""
    cross_entropy: Tensor
    """What is reported: the plain mean cross-entropy over tokens (with the cap for soft-cap), detached."""


def logits(h_BTD: Tensor, E_VD: Tensor, logits_dtype: Precision) -> Tensor:
    """``h Eᵀ`` as float32 values, ``(B, T, V)``.

    float32: computed in float32, whatever autocast is on. bfloat16: rounded to it, and the gradient too; autocast
    computes it so, and without autocast the float32 product is rounded on both ways.
    """
    if logits_dtype == "float32":
        with torch.autocast(h_BTD.device.type, enabled=False):
            return F.linear(h_BTD.float(), E_VD.float())
    return F.linear(h_BTD, E_VD).to(torch.bfloat16).float()


class CrossEntropy(torch.autograd.Function):
    """``(logits_NV, targets_N) -> (ce_N, log_z_N)`` and their exact gradient, for one backward pass.

    Four passes over the logits in all. Autograd's own logsumexp and gather take about fifteen, and on a processor
    with a small model those passes cost as much as the matrix products.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, logits_NV: Tensor, targets_N: Tensor
    ) -> tuple[Tensor, Tensor]:
        p_NV = torch.softmax(logits_NV, dim=-1)
        # The largest p is 1 / sum(exp(logit - largest logit)), between 1/V and 1: no precision is lost in its log.
        log_z_N = logits_NV.amax(dim=-1) - p_NV.amax(dim=-1).log()
        ce_N = log_z_N - logits_NV.gather(1, targets_N[:, None]).squeeze(1)
        ctx.save_for_backward(p_NV, targets_N)
        return ce_N, log_z_N

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        """d ce / d logits is ``p - onehot``, d log_z / d logits is ``p``; in the memory of p, which is freed anyway."""
        p_NV, targets_N = ctx.saved_tensors  # type: ignore[attr-defined]
        grad_ce_N, grad_log_z_N = grads
        grad_NV = p_NV.mul_((grad_ce_N + grad_log_z_N)[:, None])
        return grad_NV.scatter_add_(1, targets_N[:, None], -grad_ce_N[:, None]), None


def losses(
    h_BTD: Tensor, E_VD: Tensor, targets_BT: Tensor, method: str, strength: Tensor, logits_dtype: Precision
) -> Losses:
    """The losses of one (micro) batch, each a scalar mean over its tokens.

    Args:
        strength: scalar tensor; the method's gamma or c, ignored by a method without one. A penalty at strength 0
            leaves the baseline's values and gradients bit for bit.
    """
    logits_BTV = logits(h_BTD, E_VD, logits_dtype)
    with torch.autocast(h_BTD.device.type, enabled=False):
        if cap := methods.LOGITS_MAPS.get(method):
            logits_BTV = cap(strength, logits_BTV)
        ce_N, log_z_N = CrossEntropy.apply(logits_BTV.flatten(0, 1), targets_BT.flatten())  # type: ignore[no-untyped-call]
        ce = ce_N.mean()
        objective = ce
        if penalty := methods.PENALTIES.get(method):
            objective = ce + penalty(strength, logits_BTV, log_z_N.view_as(targets_BT), E_VD)
        return Losses(objective, ce.detach())


class Objective(nn.Module):
    """Model and head as the one module that DDP wraps: ``(B, T + 1)`` tokens to ``Losses``."""

    def __init__(self, model: GPT, precision: Precision, logits_dtype: Precision) -> None:
        super().__init__()
        self.model = model
        self.precision, self.logits_dtype = precision, logits_dtype
        self.compute = self.eager

    def forward(self, tokens_BU: Tensor, method: str, strength: Tensor) -> Losses:
        return self.compute(tokens_BU, method, strength)

    def eager(self, tokens_BU: Tensor, method: str, strength: Tensor) -> Losses:
        inputs_BT, targets_BT = tokens_BU[:, :-1], tokens_BU[:, 1:]
        with torch.autocast(tokens_BU.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            h_BTD = self.model(inputs_BT)
            return losses(h_BTD, self.model.E_VD, targets_BT, method, strength, self.logits_dtype)
