"""From hidden states to losses: logits in the named precision, cross-entropy, and the method's penalty.

The logits are by far the largest tensor of a small model, so they never exist as a whole: one chunk of tokens after the
other goes through logits and softmax and, since these are there anyway, on to the gradients of h and E. The backward
pass only scales what the forward pass formed.

A chunk is written twice. ``chunk`` is one function from hidden states to losses and both gradients, without buffers,
for ``torch.compile``: accelerators, and small steps of processors (``trainers.fused``). ``in_blocks`` is eager and
works in place, block by block, which is faster on a processor. Tests compare the two.

bfloat16 logits are what makes the baseline break at high learning rates, so that their precision is explicit here
and nowhere else.

Legend: B sequences, T tokens a sequence, N all tokens, C tokens of a chunk, R of a block of it,
    V vocabulary with padding, D model width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
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
OPTIONS: dict[str, str | int | bool | Callable[..., Any]] = {"emulate_precision_casts": True}
"""Of the compiler. It would drop a rounding to bfloat16 and back as if it were nothing; here it is the experiment."""
ACCELERATOR_CHUNK = 8192
"""Tokens of a chunk on an accelerator, at most. An H200 takes a seventh longer by 2,048, and a twentieth less by
32,768, which need four times the memory."""
CHUNK_SHARE = 0.05
"""Of an accelerator's memory, for the logits of a chunk and their gradients, both in 16 bits."""
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

    def __init__(self, E_VD: Tensor, logits_dtype: Precision, narrow: bool, C: int) -> None:
        """
        Args:
            narrow: whether the products have bfloat16 operands.
        """
        V = E_VD.shape[0]
        rounds = logits_dtype == "bfloat16"
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

    log_z_C: Tensor | None = None
    max_logit_C: Tensor | None = None
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
    if slopes.log_z_C is not None:
        weight_R1 += slopes.log_z_C[:, None]
    grad_RV = p_RV.mul_(weight_R1).scatter_add_(1, targets_R1, grad_ce_R1)
    if slopes.max_logit_C is not None:
        grad_RV.scatter_add_(1, logits_RV.argmax(dim=-1, keepdim=True), slopes.max_logit_C[:, None])
    return grad_RV


class Chunk(NamedTuple):
    """The losses of some tokens, and what they add to the gradients of the objective."""

    cross_entropy: Tensor
    """Sum over the tokens; as the next."""
    penalty: Tensor
    grad_h_CD: Tensor
    grad_E_VD: Tensor
    """In float32, without what comes through mu."""
    grad_mu_D: Tensor | None
    """Where the penalty depends on mu."""


def chunk(
    h_CD: Tensor,
    E_VD: Tensor,
    targets_C: Tensor,
    mu_D: Tensor,
    strength: Tensor,
    *,
    method: str,
    inputs: tuple[bool, bool, bool],
    N: int,
    rounds: bool,
) -> Chunk:
    """Of ``C`` tokens out of ``N`` over which the objective is a mean.

    Args:
        E_VD: of the type in which the products are computed.
        mu_D: the mean row of E.
        inputs: those of the method's penalty, by ``inputs_of``.
        rounds: whether the logits and their gradients are rounded to bfloat16.
    """

    def rounded(x: Tensor) -> Tensor:
        return x.to(torch.bfloat16).to(mu_D.dtype) if rounds else x.to(mu_D.dtype)

    h_CD = h_CD.type_as(E_VD)
    logits_CV = rounded(product(h_CD, E_VD))
    vjp = None
    if cap := methods.LOGITS_MAPS.get(method):
        logits_CV, vjp = cap(strength, logits_CV)
    max_logit_C = logits_CV.amax(dim=-1)
    exp_CV = (logits_CV - max_logit_C[:, None]).exp()
    Z_C = exp_CV.sum(dim=-1)
    log_z_C = max_logit_C + Z_C.log()
    ce_C = log_z_C - logits_CV.gather(1, targets_C[:, None]).squeeze(1)
    penalty_C, slopes = torch.zeros_like(ce_C), Slopes()
    if penalty := methods.PENALTIES.get(method):
        values_C, by_inputs = torch.func.vjp(penalty, strength, log_z_C, max_logit_C, mu_D)[:2]
        penalty_C = values_C.expand_as(log_z_C)
        by_input = by_inputs(torch.full_like(values_C, len(penalty_C) / (N * values_C.numel())))[1:]
        # Zeros of what it does not depend on; the largest logits would be looked for, for nothing.
        slopes = Slopes(*(slope if used else None for slope, used in zip(by_input, inputs, strict=True)))
    # As ``by_logits``, by comparison instead of by scattering, which a compiler does in the same pass.
    column_V = torch.arange(len(E_VD), device=E_VD.device)
    weight_C = 1 / N if slopes.log_z_C is None else 1 / N + slopes.log_z_C
    grad_CV = exp_CV * (weight_C / Z_C)[:, None] - torch.where(column_V == targets_C[:, None], 1 / N, 0.0)
    if slopes.max_logit_C is not None:
        largest_C1 = logits_CV.argmax(dim=-1, keepdim=True)
        grad_CV = grad_CV + torch.where(column_V == largest_C1, slopes.max_logit_C[:, None], 0.0)
    grad_CV = rounded(grad_CV if vjp is None else vjp(grad_CV)).type_as(E_VD)
    grad_h_CD, grad_E_VD = product(grad_CV, E_VD.T), accumulable(grad_CV, h_CD)
    return Chunk(ce_C.sum(), penalty_C.sum(), grad_h_CD, grad_E_VD, slopes.mu_D)


def kind_of_chunk(method: str, logits_dtype: Precision) -> dict[str, Any]:
    """The arguments of ``chunk`` that are the same for every step of a kind, but for ``N``."""
    return {"method": method, "inputs": inputs_of(method), "rounds": logits_dtype == "bfloat16"}


def inputs_of(method: str) -> tuple[bool, bool, bool]:
    """Whether the penalty of a method depends on log Z, on the largest logit, and on mu; False where it has none."""
    penalty = methods.PENALTIES.get(method)
    return _inputs_of(penalty) if penalty else (False, False, False)


@cache
def _inputs_of(penalty: methods.Penalty) -> tuple[bool, bool, bool]:
    gamma, *inputs = (torch.ones(size, requires_grad=True) for size in ((), (1,), (1,), (1,)))
    with torch.enable_grad():
        slopes = torch.autograd.grad(penalty(gamma, *inputs).sum(), inputs, allow_unused=True)
    log_z, max_logit, mu = (slope is not None for slope in slopes)
    return log_z, max_logit, mu


def accumulable(grad_CV: Tensor, h_CD: Tensor) -> Tensor:
    """``gradᵀ h`` in float32 (or wider), ``(V, D)``: on an accelerator of bfloat16 operands without a rounding."""
    if grad_CV.dtype == torch.bfloat16:
        if grad_CV.device.type == "cuda":
            return torch.mm(grad_CV.T, h_CD, out_dtype=torch.float32)
        return (grad_CV.T @ h_CD).float()
    return weight_product(grad_CV, h_CD)


ChunkFunction = Callable[..., Chunk]
"""``chunk``, or its compiled form."""


class Formed(NamedTuple):
    """Losses, and the gradients of the objective by h and E where they were asked for."""

    objective: Tensor
    cross_entropy: Tensor
    grad_h_ND: Tensor | None
    grad_E_VD: Tensor | None


@torch.no_grad()
def in_blocks(
    h_ND: Tensor,
    E_VD: Tensor,
    targets_N: Tensor,
    projection: Projection,
    method: str,
    strength: Tensor,
    form_gradients: bool,
) -> Formed:
    """A chunk of the projection's size after the other, in place, a block of its rows at a time."""
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

    cross_entropy, objective = ce_N.mean(), (ce_N + penalty_N).mean()
    if not form_gradients:
        return Formed(objective, cross_entropy, None, None)
    return Formed(objective, cross_entropy, grad_h_ND, grad_E_VD.add_(grad_mu_D / V) if penalized else grad_E_VD)


@torch.no_grad()
def in_chunks(
    h_ND: Tensor,
    E_VD: Tensor,
    targets_N: Tensor,
    chunk: ChunkFunction,
    method: str,
    strength: Tensor,
    logits_dtype: Precision,
    narrow: bool,
    at_once: int,
) -> Formed:
    """One call of ``chunk`` for each ``at_once`` tokens.

    Args:
        narrow: whether the products have bfloat16 operands.
    """
    N, mu_D = len(h_ND), E_VD.mean(dim=0)
    C = even(N, at_once)
    projected_VD = E_VD.to(torch.bfloat16) if narrow else E_VD
    grad_h_ND, grad_E_VD = torch.empty_like(h_ND), torch.zeros_like(E_VD)
    cross_entropy, penalty, grad_mu_D = E_VD.new_zeros(()), E_VD.new_zeros(()), torch.zeros_like(mu_D)
    kind = kind_of_chunk(method, logits_dtype)
    for start in range(0, N, C):
        part = slice(start, start + C)
        found = chunk(h_ND[part], projected_VD, targets_N[part], mu_D, strength, N=N, **kind)
        cross_entropy += found.cross_entropy
        penalty += found.penalty
        grad_h_ND[part] = found.grad_h_CD
        grad_E_VD += found.grad_E_VD
        if found.grad_mu_D is not None:
            grad_mu_D += found.grad_mu_D
    if found.grad_mu_D is not None:
        grad_E_VD += grad_mu_D / len(E_VD)
    return Formed((cross_entropy + penalty) / N, cross_entropy / N, grad_h_ND, grad_E_VD)


class WithGradients(torch.autograd.Function):
    """``(h_ND, E_VD) -> (objective, cross_entropy)``, of which the gradients are formed, for one backward pass."""

    @staticmethod
    def forward(ctx: Any, h_ND: Tensor, E_VD: Tensor, formed: Formed) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(formed.grad_h_ND, formed.grad_E_VD)
        ctx.mark_non_differentiable(formed.cross_entropy)
        return formed.objective, formed.cross_entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """In the memory of what was formed, which is freed anyway; a second pass raises."""
        grad_h_ND, grad_E_VD = ctx.saved_tensors
        return grad_h_ND.mul_(grads[0]), grad_E_VD.mul_(grads[0]), None


@torch.no_grad()
def logits(h_BTD: Tensor, E_VD: Tensor, method: str, strength: Tensor, logits_dtype: Precision) -> Tensor:
    """The logits that the loss sees, ``(B, T, V)`` in float32, all at once and without a gradient: for a look."""
    B, T = h_BTD.shape[:2]
    narrow = narrows(E_VD, logits_dtype)
    logits_NV = Projection(E_VD, logits_dtype, narrow, B * T).logits(h_BTD.flatten(0, 1))
    if cap := methods.LOGITS_MAPS.get(method):
        logits_NV, _ = cap(strength, logits_NV)
    return logits_NV.view(B, T, -1)


def losses(
    h_BTD: Tensor,
    E_VD: Tensor,
    targets_BT: Tensor,
    method: str,
    strength: Tensor,
    logits_dtype: Precision,
    chunk: ChunkFunction | None = None,
    at_once: int | None = None,
) -> Losses:
    """The losses of one (micro) batch, each a scalar mean over its tokens.

    Args:
        strength: scalar tensor; the method's gamma or c, ignored by a method without one. A penalty at strength 0
            leaves the baseline's values and gradients bit for bit.
        chunk: forms losses and gradients of ``at_once`` tokens; by default they are formed in blocks, as a processor
            likes it.
    """
    h_ND, targets_N = h_BTD.flatten(0, 1), targets_BT.flatten()
    form_gradients = torch.is_grad_enabled() and (h_BTD.requires_grad or E_VD.requires_grad)
    narrow = narrows(E_VD, logits_dtype)
    with torch.autocast(h_BTD.device.type, enabled=False):
        if chunk and form_gradients:
            at_once = at_once or ACCELERATOR_CHUNK
            formed = in_chunks(h_ND, E_VD, targets_N, chunk, method, strength, logits_dtype, narrow, at_once)
        else:
            C = even(len(h_ND), CHUNK_BYTES // (4 * len(E_VD)))
            projection = Projection(E_VD, logits_dtype, narrow, C)
            formed = in_blocks(h_ND, E_VD, targets_N, projection, method, strength, form_gradients)
        if not form_gradients:
            return Losses(formed.objective, formed.cross_entropy)
        return Losses(*WithGradients.apply(h_ND, E_VD, formed))  # type: ignore[no-untyped-call]


def narrows(E_VD: Tensor, logits_dtype: Precision) -> bool:
    """Whether the products of the head have bfloat16 operands: those of bfloat16 logits under autocast."""
    return logits_dtype == "bfloat16" and torch.is_autocast_enabled(E_VD.device.type)


def fitting(V: int, room_bytes: float) -> int:
    """Tokens of a chunk on an accelerator of so much memory."""
    return max(1, min(ACCELERATOR_CHUNK, int(CHUNK_SHARE * room_bytes) // (4 * V)))


def even(N: int, most: int) -> int:
    """The size of chunks as equal as they can be, of at most ``most`` of ``N`` tokens."""
    return -(-N // -(-N // max(1, most)))


class Objective(nn.Module):
    """Model and head as the one module that DDP wraps: ``(B, T + 1)`` tokens to ``Losses``."""

    def __init__(self, model: GPT, precision: Literal["float32", "tf32", "bfloat16"], logits_dtype: Precision) -> None:
        super().__init__()
        self.model = model
        self.precision, self.logits_dtype = precision, logits_dtype
        self.body: Callable[[Tensor], Tensor] = model.forward
        """The model's forward pass in training, or its compiled form."""
        self.chunk: ChunkFunction | None = None
        """``head.chunk`` compiled, where that is faster than the eager head."""
        self.at_once = ACCELERATOR_CHUNK
        """Tokens that it is given."""

    def forward(self, tokens_BU: Tensor, method: str, strength: Tensor) -> Losses:
        return self._losses(self.body, self.chunk, tokens_BU, method, strength)

    def eager(self, tokens_BU: Tensor, method: str, strength: Tensor) -> Losses:
        return self._losses(self.model, None, tokens_BU, method, strength)

    def _losses(
        self,
        body: Callable[[Tensor], Tensor],
        chunk: ChunkFunction | None,
        tokens_BU: Tensor,
        method: str,
        strength: Tensor,
    ) -> Losses:
        inputs_BT, targets_BT = tokens_BU[:, :-1], tokens_BU[:, 1:]
        with torch.autocast(tokens_BU.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            h_BTD, E_VD = body(inputs_BT), self.model.E_VD
            return losses(h_BTD, E_VD, targets_BT, method, strength, self.logits_dtype, chunk, self.at_once)
