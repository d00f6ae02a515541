"""From hidden states to losses: logits in the named precision, cross-entropy, and the method's penalty.

The logits are by far the largest tensor of a small model, so that they never exist as a whole: one chunk of tokens
after the other goes through logits, softmax and, as these are there anyway, on to the gradients of h and E. The
backward pass only scales what the forward pass formed.

bfloat16 logits are what makes the baseline break at high learning rates, so that their precision is explicit here
and nowhere else.

Legend: B sequences, T tokens a sequence, N all tokens, C tokens of a chunk, V vocabulary with padding, D model width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from trainers import methods
from trainers.matmul import product, serves
from trainers.model import GPT

Precision = Literal["float32", "bfloat16"]
CHUNK_BYTES = 128 * 2**20
"""Float32 logits of one chunk, at most; two such buffers are held. With a vocabulary of 50,304 it is 667 tokens:
below 500 the matrix products slow down, as each chunk reads E and the gradient of E once more."""


class Losses(NamedTuple):
    objective: Tensor
    """What is minimised: cross-entropy and the method's penalty."""
    cross_entropy: Tensor
    """What is reported: the plain mean cross-entropy over tokens (with the cap for soft-cap), detached."""


class Projection:
    """``h Eᵀ`` in the named precision, and the way back, for at most ``C`` tokens at once.

    float32: computed in float32 (the type of E), whatever autocast is on. bfloat16: rounded to it, and the gradient
    too; under autocast the matrix products have bfloat16 operands, without it they are float32. What comes out, and
    the sum of E's gradient over the chunks, is float32.
    """

    def __init__(self, E_VD: Tensor, logits_dtype: Precision, C: int) -> None:
        V = E_VD.shape[0]
        rounds = logits_dtype == "bfloat16"
        narrow = rounds and torch.is_autocast_enabled(E_VD.device.type)
        self.E_VD = E_VD.to(torch.bfloat16) if narrow else E_VD
        # Buffers for all chunks: a processor takes longer to map 100 MB of fresh memory than to fill it.
        self.logits_CV = E_VD.new_empty(C, V)
        self.rounded_CV = E_VD.new_empty(C, V, dtype=torch.bfloat16) if rounds else None

    def logits(self, h_CD: Tensor) -> Tensor:
        """``(C, V)``, in memory that the next call takes again."""
        logits_CV = self.logits_CV[: len(h_CD)]
        if self.rounded_CV is not None and self.E_VD.dtype == torch.bfloat16:
            return logits_CV.copy_(torch.mm(h_CD.bfloat16(), self.E_VD.T, out=self.rounded_CV[: len(h_CD)]))
        h_CD = h_CD.type_as(self.E_VD)
        if serves(h_CD, self.E_VD):
            logits_CV = product(h_CD, self.E_VD)
        else:
            torch.mm(h_CD, self.E_VD.T, out=logits_CV)
        if self.rounded_CV is not None:
            logits_CV.copy_(self.rounded_CV[: len(h_CD)].copy_(logits_CV))
        return logits_CV

    def backward(self, grad_CV: Tensor, h_CD: Tensor, grad_E_VD: Tensor) -> Tensor:
        """The gradient of h, ``(C, D)``; that of E is added to ``grad_E_VD``. Takes the memory of ``grad_CV``."""
        if self.rounded_CV is not None:
            rounded_CV = self.rounded_CV[: len(h_CD)].copy_(grad_CV)
            if self.E_VD.dtype == torch.bfloat16:
                grad_E_VD.add_(rounded_CV.T @ h_CD.bfloat16())
                return rounded_CV @ self.E_VD
            grad_CV.copy_(rounded_CV)
        grad_E_VD.addmm_(grad_CV.T, h_CD.type_as(grad_CV))
        return product(grad_CV, self.E_VD.T)


class Slopes(NamedTuple):
    """Derivatives of the mean penalty; None by what the penalty does not depend on."""

    log_z_C: Tensor | None = None
    max_logit_C: Tensor | None = None
    mu_D: Tensor | None = None


def penalties(
    method: str, gamma: Tensor, log_z_C: Tensor, max_logit_C: Tensor, mu_D: Tensor, N: int
) -> tuple[Tensor, Slopes]:
    """A chunk's penalties ``(C,)``, and what its tokens add to the slopes of the mean over ``N`` tokens.

    By autograd on these small tensors, so that the function of a method is all that there is to write.
    """
    inputs = [tensor.detach().requires_grad_() for tensor in (log_z_C, max_logit_C, mu_D)]
    with torch.enable_grad():
        penalty_C = methods.PENALTIES[method](gamma, *inputs).expand_as(log_z_C)
        slopes = torch.autograd.grad(penalty_C.sum() / N, inputs, allow_unused=True)
    return penalty_C.detach(), Slopes(*slopes)


class ChunkedLosses(torch.autograd.Function):
    """``(h_ND, E_VD, targets_N) -> (objective, cross_entropy)``, means over the tokens, for one backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        h_ND: Tensor,
        E_VD: Tensor,
        targets_N: Tensor,
        projection: Projection,
        method: str,
        strength: Tensor,
        form_gradients: bool,
    ) -> tuple[Tensor, Tensor]:
        N, (C, V) = len(h_ND), projection.logits_CV.shape
        cap, penalized = methods.LOGITS_MAPS.get(method), method in methods.PENALTIES
        buffer_CV = torch.empty_like(projection.logits_CV)
        ce_N, penalty_N = E_VD.new_empty(N), E_VD.new_zeros(N)
        mu_D = E_VD.mean(dim=0) if penalized else E_VD.new_empty(0)
        if form_gradients:
            grad_h_ND, grad_E_VD, grad_mu_D = (torch.zeros_like(x) for x in (h_ND, E_VD, mu_D))

        for start in range(0, N, C):
            chunk = slice(start, start + C)
            h_CD, targets_C1 = h_ND[chunk], targets_N[chunk, None]
            logits_CV = projection.logits(h_CD)
            if cap:
                logits_CV, vjp = cap(strength, logits_CV)
            max_logit_C = logits_CV.amax(dim=-1)
            p_CV = torch.softmax(logits_CV, dim=-1, out=buffer_CV[: len(h_CD)])
            # The largest p is 1 / sum(exp(logit - largest logit)), between 1/V and 1: no precision is lost in its log.
            log_z_C = max_logit_C - p_CV.amax(dim=-1).log()
            ce_N[chunk] = log_z_C - logits_CV.gather(1, targets_C1).squeeze(1)
            slopes = Slopes()
            if penalized:
                penalty_N[chunk], slopes = penalties(method, strength, log_z_C, max_logit_C, mu_D, N)
            if not form_gradients:
                continue
            # By the logits: d ce is p - onehot(target), d log_z is p, d max_logit is onehot(argmax).
            weight_C = torch.full_like(log_z_C, 1 / N)
            grad_ce_C1 = -weight_C[:, None]
            if slopes.log_z_C is not None:
                weight_C += slopes.log_z_C
            grad_CV = p_CV.mul_(weight_C[:, None]).scatter_add_(1, targets_C1, grad_ce_C1)
            if slopes.max_logit_C is not None:
                grad_CV.scatter_add_(1, logits_CV.argmax(dim=-1, keepdim=True), slopes.max_logit_C[:, None])
            if slopes.mu_D is not None:
                grad_mu_D += slopes.mu_D
            grad_h_ND[chunk] = projection.backward(vjp(grad_CV) if cap else grad_CV, h_CD, grad_E_VD)

        if form_gradients:
            ctx.save_for_backward(grad_h_ND, grad_E_VD.add_(grad_mu_D / V) if penalized else grad_E_VD)
        cross_entropy, objective = ce_N.mean(), (ce_N + penalty_N).mean()
        ctx.mark_non_differentiable(cross_entropy)
        return objective, cross_entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """In the memory of what was formed, which is freed anyway; a second pass raises."""
        grad_h_ND, grad_E_VD = ctx.saved_tensors
        return grad_h_ND.mul_(grads[0]), grad_E_VD.mul_(grads[0]), None, None, None, None, None


@torch.no_grad()
def logits(h_BTD: Tensor, E_VD: Tensor, method: str, strength: Tensor, logits_dtype: Precision) -> Tensor:
    """The logits that the loss sees, ``(B, T, V)`` in float32, all at once and without a gradient: for a look."""
    B, T = h_BTD.shape[:2]
    logits_NV = Projection(E_VD, logits_dtype, B * T).logits(h_BTD.flatten(0, 1))
    if cap := methods.LOGITS_MAPS.get(method):
        logits_NV, _ = cap(strength, logits_NV)
    return logits_NV.view(B, T, -1)


def losses(
    h_BTD: Tensor, E_VD: Tensor, targets_BT: Tensor, method: str, strength: Tensor, logits_dtype: Precision
) -> Losses:
    """The losses of one (micro) batch, each a scalar mean over its tokens.

    Args:
        strength: scalar tensor; the method's gamma or c, ignored by a method without one. A penalty at strength 0
            leaves the baseline's values and gradients bit for bit.
    """
    h_ND, targets_N = h_BTD.flatten(0, 1), targets_BT.flatten()
    chunks = -(-h_ND.shape[0] * E_VD.shape[0] * 4 // CHUNK_BYTES)
    projection = Projection(E_VD, logits_dtype, -(-h_ND.shape[0] // chunks))
    form_gradients = torch.is_grad_enabled() and (h_BTD.requires_grad or E_VD.requires_grad)
    with torch.autocast(h_BTD.device.type, enabled=False):
        found = ChunkedLosses.apply(h_ND, E_VD, targets_N, projection, method, strength, form_gradients)  # type: ignore[no-untyped-call]
    return Losses(*found)


class Objective(nn.Module):
    """Model and head as the one module that DDP wraps: ``(B, T + 1)`` tokens to ``Losses``."""

    def __init__(self, model: GPT, precision: Precision, logits_dtype: Precision) -> None:
        super().__init__()
        self.model = model
        self.precision, self.logits_dtype = precision, logits_dtype
        self.body: Callable[[Tensor], Tensor] = model.forward
        """The model's forward pass in training, or its compiled form. The head stays eager: its time is in matrix
        products, and so one compilation serves all methods."""

    def forward(self, tokens_BU: Tensor, method: str, strength: Tensor) -> Losses:
        return self._losses(self.body, tokens_BU, method, strength)

    def eager(self, tokens_BU: Tensor, method: str, strength: Tensor) -> Losses:
        return self._losses(self.model, tokens_BU, method, strength)

    def _losses(self, body: Callable[[Tensor], Tensor], tokens_BU: Tensor, method: str, strength: Tensor) -> Losses:
        inputs_BT, targets_BT = tokens_BU[:, :-1], tokens_BU[:, 1:]
        with torch.autocast(tokens_BU.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            return losses(body(inputs_BT), self.model.E_VD, targets_BT, method, strength, self.logits_dtype)
