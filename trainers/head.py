"""From hidden states to losses: logits in the named precision, cross-entropy, and the method's penalty.

The logits are by far the largest tensor of a small model, so that they never exist as a whole: one chunk of tokens
after the other goes through logits, softmax and, as these are there anyway, on to the gradients of h and E. The
backward pass only scales what the forward pass formed.

bfloat16 logits are what makes the baseline break at high learning rates, so that their precision is explicit here
and nowhere else.

Legend: B sequences, T tokens a sequence, N all tokens, C tokens of a chunk, R of a block of it,
    V vocabulary with padding, D model width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from trainers import methods
from trainers.matmul import product, serves, weight_product
from trainers.model import GPT

Precision = Literal["float32", "bfloat16"]
CHUNK_BYTES = 128 * 2**20
"""Float32 logits of one chunk, at most; two such buffers are held. With a vocabulary of 50,304 it is 667 tokens:
below 500 the matrix products slow down, as each chunk reads E and the gradient of E once more."""
BLOCK_BYTES = 4 * 2**20
"""Of a chunk's logits that a processor maps and differentiates at once: its caches keep them from pass to pass."""


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

    def zero_gradient(self) -> Tensor:
        """Zeros ``(V, D)`` for ``backward`` to add E's gradient to, laid out as its products come."""
        V, D = self.E_VD.shape
        zeros = self.logits_CV.new_zeros
        return zeros(D, V).T if serves(self.logits_CV, self.E_VD) else zeros(V, D)

    def backward(self, grad_CV: Tensor, h_CD: Tensor, grad_E_VD: Tensor) -> Tensor:
        """The gradient of h, ``(C, D)``; that of E is added to ``grad_E_VD``. Takes the memory of ``grad_CV``."""
        if self.rounded_CV is not None:
            rounded_CV = self.rounded_CV[: len(h_CD)].copy_(grad_CV)
            if self.E_VD.dtype == torch.bfloat16:
                grad_E_VD.add_(rounded_CV.T @ h_CD.bfloat16())
                return rounded_CV @ self.E_VD
            grad_CV.copy_(rounded_CV)
        h_CD = h_CD.type_as(grad_CV)
        if serves(grad_CV, self.E_VD):
            grad_E_VD.add_(weight_product(grad_CV, h_CD))
        else:
            grad_E_VD.addmm_(grad_CV.T, h_CD)
        return product(grad_CV, self.E_VD.T)


class Slopes(NamedTuple):
    """Derivatives of the mean penalty; None by what the penalty does not depend on."""

    log_z_R: Tensor | None = None
    max_logit_R: Tensor | None = None
    mu_D: Tensor | None = None


def penalties(
    method: str, gamma: Tensor, log_z_R: Tensor, max_logit_R: Tensor, mu_D: Tensor, N: int
) -> tuple[Tensor, Slopes]:
    """The penalties of some rows, ``(R,)``, and what their tokens add to the slopes of the mean over ``N`` tokens.

    By autograd on these small tensors, so that the function of a method is all that there is to write.
    """
    inputs = [tensor.detach().requires_grad_() for tensor in (log_z_R, max_logit_R, mu_D)]
    with torch.enable_grad():
        penalty_R = methods.PENALTIES[method](gamma, *inputs).expand_as(log_z_R)
        slopes = torch.autograd.grad(penalty_R.sum() / N, inputs, allow_unused=True)
    return penalty_R.detach(), Slopes(*slopes)


def by_logits(p_RV: Tensor, logits_RV: Tensor, targets_R1: Tensor, slopes: Slopes, N: int) -> Tensor:
    """The derivative of the objective, a mean over ``N`` tokens, by the logits of some rows, in the memory of p."""
    # d ce is p - onehot(target), d log_z is p, d max_logit is onehot(argmax).
    weight_R1 = p_RV.new_full((len(p_RV), 1), 1 / N)
    grad_ce_R1 = -weight_R1
    if slopes.log_z_R is not None:
        weight_R1 += slopes.log_z_R[:, None]
    grad_RV = p_RV.mul_(weight_R1).scatter_add_(1, targets_R1, grad_ce_R1)
    if slopes.max_logit_R is not None:
        grad_RV.scatter_add_(1, logits_RV.argmax(dim=-1, keepdim=True), slopes.max_logit_R[:, None])
    return grad_RV


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
        # Without a map there are too few passes over the logits for blocks to pay.
        R = max(1, min(C, BLOCK_BYTES // (4 * V))) if cap and h_ND.device.type == "cpu" else C
        buffer_RV = projection.logits_CV.new_empty(R, V)
        ce_N, penalty_N = E_VD.new_empty(N), E_VD.new_zeros(N)
        mu_D = E_VD.mean(dim=0) if penalized else E_VD.new_empty(0)
        if form_gradients:
            grad_h_ND, grad_mu_D = torch.zeros_like(h_ND), torch.zeros_like(mu_D)
            grad_E_VD = projection.zero_gradient()

        for start in range(0, N, C):
            chunk = slice(start, start + C)
            h_CD = h_ND[chunk]
            grad_CV = logits_CV = projection.logits(h_CD)
            by_rows = (torch.split(x, R) for x in (logits_CV, targets_N[chunk, None], ce_N[chunk], penalty_N[chunk]))
            for rows_RV, targets_R1, ce_R, penalty_R in zip(*by_rows, strict=True):
                logits_RV, vjp = cap(strength, rows_RV) if cap else (rows_RV, None)
                max_logit_R = logits_RV.amax(dim=-1)
                p_RV = torch.softmax(logits_RV, dim=-1, out=buffer_RV[: len(logits_RV)])
                # The largest p is 1 / sum(exp(logit - largest logit)), between 1/V and 1: its log is precise.
                log_z_R = max_logit_R - p_RV.amax(dim=-1).log()
                torch.sub(log_z_R, logits_RV.gather(1, targets_R1).squeeze(1), out=ce_R)
                slopes = Slopes()
                if penalized:
                    values_R, slopes = penalties(method, strength, log_z_R, max_logit_R, mu_D, N)
                    penalty_R.copy_(values_R)
                if not form_gradients:
                    continue
                grad_RV = by_logits(p_RV, logits_RV, targets_R1, slopes, N)
                if slopes.mu_D is not None:
                    grad_mu_D += slopes.mu_D
                if vjp:
                    rows_RV.copy_(vjp(grad_RV))  # copies nothing where a map gives it in this memory
                else:
                    grad_CV = grad_RV  # there is one block
            if form_gradients:
                grad_h_ND[chunk] = projection.backward(grad_CV, h_CD, grad_E_VD)

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


class Differentiated(NamedTuple):
    losses: Losses
    grad_h_ND: Tensor
    grad_E_VD: Tensor
    """Of the objective, the mean over the N tokens."""


def differentiated(
    h_ND: Tensor, E_VD: Tensor, targets_N: Tensor, method: str, strength: Tensor, logits_dtype: Precision
) -> Differentiated:
    """What ``ChunkedLosses`` computes, for few tokens: all logits at once, in float32, without buffers, so that it can
    be compiled into a step."""

    def rounded(x: Tensor) -> Tensor:
        return x.to(torch.bfloat16).to(x.dtype) if logits_dtype == "bfloat16" else x

    N, targets_N1 = len(h_ND), targets_N[:, None]
    logits_NV = rounded(product(h_ND, E_VD))
    vjp = None
    if cap := methods.LOGITS_MAPS.get(method):
        logits_NV, vjp = cap(strength, logits_NV)
    max_logit_N = logits_NV.amax(dim=-1)
    exp_NV = (logits_NV - max_logit_N[:, None]).exp()
    Z_N = exp_NV.sum(dim=-1)
    log_z_N = max_logit_N + Z_N.log()
    ce_N = log_z_N - logits_NV.gather(1, targets_N1).squeeze(1)
    penalty_N, slopes, mu_D = torch.zeros_like(ce_N), Slopes(), E_VD.mean(dim=0)
    if penalty := methods.PENALTIES.get(method):
        values_N, by_inputs = torch.func.vjp(penalty, strength, log_z_N, max_logit_N, mu_D)[:2]
        penalty_N = values_N.expand_as(log_z_N)
        slopes = Slopes(*by_inputs(torch.full_like(values_N, len(penalty_N) / (N * values_N.numel())))[1:])
    grad_NV = by_logits(exp_NV / Z_N[:, None], logits_NV, targets_N1, slopes, N)
    grad_NV = rounded(vjp(grad_NV) if vjp else grad_NV)
    grad_E_VD = weight_product(grad_NV, h_ND)
    if slopes.mu_D is not None:
        grad_E_VD = grad_E_VD + slopes.mu_D / len(E_VD)
    return Differentiated(Losses((ce_N + penalty_N).mean(), ce_N.mean()), product(grad_NV, E_VD.T), grad_E_VD)


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
