"""From hidden states to losses: logits, cross-entropy, the method's penalty, and their gradients.

The logits are by far the largest tensor of a small model, so they never exist as a whole. Each chunk of tokens goes
through logits and softmax and, because both are in memory at that point, on to the gradients of h and E. The backward
pass only scales gradients that the forward pass computed.

There are two implementations of a chunk. ``compute_chunk`` is a pure function from hidden states to losses and both
gradients, for ``torch.compile``: on accelerators, and for small steps on a CPU (``trainers.fused``).
``losses_in_blocks`` is eager and works in place, block by block, which is faster on a CPU. Tests compare the two.

Legend: B sequences, T tokens a sequence, N all tokens, C tokens of a chunk, R rows (tokens) of a block of it,
    V vocabulary with padding, D model width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from trainers import methods
from trainers.matmul import product, weight_grad
from trainers.model import GPT
from trainers.projection import Precision, Projection, uses_bfloat16_operands

CHUNK_BYTES = 128 * 2**20
"""Maximum size of a chunk's float32 logits; two such buffers are allocated. With a vocabulary of 50,304 a chunk has 667
tokens. Below 500 the matrix products slow down, because each chunk reads E and its gradient again."""
COMPILE_OPTIONS: dict[str, str | int | bool | Callable[..., Any]] = {"emulate_precision_casts": True}
"""By default the compiler removes a cast to bfloat16 and back; here that rounding is the experiment."""
MAX_CHUNK_TOKENS = 8192
"""Tokens of a chunk on an accelerator. An H200 takes a seventh longer with 2,048, and a twentieth less with 32,768,
which needs four times the memory."""
CHUNK_SHARE = 0.05
"""Maximum share of an accelerator's memory for a chunk's logits and their gradients, both in 16 bits."""
BLOCK_BYTES = 4 * 2**20
"""Size of the block of logits that a CPU maps and differentiates at a time, so that it stays in cache."""


class Losses(NamedTuple):
    objective: Tensor
    """The minimized loss: cross-entropy and the method's penalty."""
    cross_entropy: Tensor
    """The reported loss: the plain mean cross-entropy over tokens (of capped logits for soft-cap), detached."""


class Slopes(NamedTuple):
    """Derivatives of the mean penalty; None for an input that the penalty does not depend on."""

    log_z_C: Tensor | None = None
    max_logit_C: Tensor | None = None
    mu_D: Tensor | None = None


def penalties_and_slopes(
    method: str, gamma: Tensor, log_z_R: Tensor, max_logit_R: Tensor, mu_D: Tensor, N: int
) -> tuple[Tensor, Slopes]:
    """Returns the penalty of each row, ``(R,)``, and the rows' part of the derivatives of the mean over ``N`` tokens.

    Autograd differentiates these small tensors, so that a method only has to define its penalty.
    """
    inputs = [tensor.detach().requires_grad_() for tensor in (log_z_R, max_logit_R, mu_D)]
    with torch.enable_grad():
        penalty_R = methods.PENALTIES[method](gamma, *inputs).expand_as(log_z_R)
        slopes = torch.autograd.grad(penalty_R.sum() / N, inputs, allow_unused=True)
    return penalty_R.detach(), Slopes(*slopes)


def logits_gradient(p_RV: Tensor, logits_RV: Tensor, targets_R1: Tensor, slopes: Slopes, N: int) -> Tensor:
    """Returns the gradient of the objective, a mean over ``N`` tokens, in the logits of some rows. Overwrites p."""
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
    """The losses of some tokens, and their contribution to the gradients of the objective."""

    cross_entropy: Tensor
    """Sum over the tokens."""
    penalty: Tensor
    """Sum over the tokens."""
    grad_h_CD: Tensor
    grad_E_VD: Tensor
    """In float32, without the part that flows through mu."""
    grad_mu_D: Tensor | None
    """None if the penalty does not depend on mu."""


def compute_chunk(
    h_CD: Tensor,
    E_VD: Tensor,
    targets_C: Tensor,
    mu_D: Tensor,
    gamma: Tensor,
    *,
    method: str,
    inputs: tuple[bool, bool, bool],
    N: int,
    rounds_logits: bool,
) -> Chunk:
    """Computes ``C`` of the ``N`` tokens over which the objective is a mean.

    Args:
        E_VD: in the dtype in which the products are computed.
        mu_D: the mean row of E.
        inputs: the inputs that the method's penalty depends on, from ``penalty_inputs``.
        rounds_logits: whether the logits and their gradients are rounded to bfloat16.
    """

    def rounded(x: Tensor) -> Tensor:
        return x.to(torch.bfloat16).to(mu_D.dtype) if rounds_logits else x.to(mu_D.dtype)

    h_CD = h_CD.type_as(E_VD)
    logits_CV = rounded(product(h_CD, E_VD))
    vjp = None
    if cap := methods.LOGITS_MAPS.get(method):
        logits_CV, vjp = cap(gamma, logits_CV)
    max_logit_C = logits_CV.amax(dim=-1)
    exp_CV = (logits_CV - max_logit_C[:, None]).exp()
    Z_C = exp_CV.sum(dim=-1)
    log_z_C = max_logit_C + Z_C.log()
    ce_C = log_z_C - logits_CV.gather(1, targets_C[:, None]).squeeze(1)
    penalty_C, slopes = torch.zeros_like(ce_C), Slopes()
    if penalty := methods.PENALTIES.get(method):
        values_C, penalty_vjp = torch.func.vjp(penalty, gamma, log_z_C, max_logit_C, mu_D)[:2]
        penalty_C = values_C.expand_as(log_z_C)
        derivatives = penalty_vjp(torch.full_like(values_C, len(penalty_C) / (N * values_C.numel())))[1:]
        # For an unused input vjp returns zeros; None saves the search for the largest logit below.
        slopes = Slopes(*(slope if used else None for slope, used in zip(derivatives, inputs, strict=True)))
    # Same as ``logits_gradient``, but with comparisons in place of scatters, which the compiler fuses into one pass.
    column_V = torch.arange(len(E_VD), device=E_VD.device)
    weight_C = 1 / N if slopes.log_z_C is None else 1 / N + slopes.log_z_C
    grad_CV = exp_CV * (weight_C / Z_C)[:, None] - torch.where(column_V == targets_C[:, None], 1 / N, 0.0)
    if slopes.max_logit_C is not None:
        largest_C1 = logits_CV.argmax(dim=-1, keepdim=True)
        grad_CV = grad_CV + torch.where(column_V == largest_C1, slopes.max_logit_C[:, None], 0.0)
    grad_CV = rounded(grad_CV if vjp is None else vjp(grad_CV)).type_as(E_VD)
    grad_h_CD, grad_E_VD = product(grad_CV, E_VD.T), weight_grad_float32(grad_CV, h_CD)
    return Chunk(ce_C.sum(), penalty_C.sum(), grad_h_CD, grad_E_VD, slopes.mu_D)


def static_chunk_arguments(method: str, logits_dtype: Precision) -> dict[str, Any]:
    """Returns the arguments of ``compute_chunk``, except ``N``, that a method and a precision determine."""
    return {"method": method, "inputs": penalty_inputs(method), "rounds_logits": logits_dtype == "bfloat16"}


@cache
def penalty_inputs(method: str) -> tuple[bool, bool, bool]:
    """Returns whether the method's penalty depends on log Z, on the largest logit, and on mu."""
    if method not in methods.PENALTIES:
        return False, False, False
    gamma, *inputs = (torch.ones(size, requires_grad=True) for size in ((), (1,), (1,), (1,)))
    with torch.enable_grad():
        penalty = methods.PENALTIES[method](gamma, *inputs)
        slopes = torch.autograd.grad(penalty.sum(), inputs, allow_unused=True)
    log_z, max_logit, mu = (slope is not None for slope in slopes)
    return log_z, max_logit, mu


def weight_grad_float32(grad_CV: Tensor, h_CD: Tensor) -> Tensor:
    """Returns ``gradᵀ h``, ``(V, D)``, in float32 or wider. On an accelerator a product of bfloat16 operands is
    accumulated into float32 without a rounding in between."""
    if grad_CV.dtype == torch.bfloat16:
        if grad_CV.device.type == "cuda":
            return torch.mm(grad_CV.T, h_CD, out_dtype=torch.float32)
        return (grad_CV.T @ h_CD).float()
    return weight_grad(grad_CV, h_CD)


ChunkFunction = Callable[..., Chunk]
"""``compute_chunk``, or its compiled form."""


class LossesAndGradients(NamedTuple):
    """Losses, and the gradients of the objective in h and E if they were requested."""

    objective: Tensor
    cross_entropy: Tensor
    grad_h_ND: Tensor | None
    grad_E_VD: Tensor | None


@torch.no_grad()
def losses_in_blocks(
    h_ND: Tensor,
    E_VD: Tensor,
    targets_N: Tensor,
    projection: Projection,
    method: str,
    gamma: Tensor,
    needs_gradients: bool,
) -> LossesAndGradients:
    """Computes chunks of the projection's size one after the other, in place, a block of rows at a time."""
    N, (C, V) = len(h_ND), projection.logits_CV.shape
    cap, penalized = methods.LOGITS_MAPS.get(method), method in methods.PENALTIES
    # Without a map, the logits are passed over too few times for blocks to pay off.
    R = max(1, min(C, BLOCK_BYTES // (4 * V))) if cap and h_ND.device.type == "cpu" else C
    buffer_RV = projection.logits_CV.new_empty(R, V)
    ce_N, penalty_N = E_VD.new_empty(N), E_VD.new_zeros(N)
    mu_D = E_VD.mean(dim=0) if penalized else E_VD.new_empty(0)
    if needs_gradients:
        grad_h_ND, grad_mu_D = torch.zeros_like(h_ND), torch.zeros_like(mu_D)
        grad_E_VD = projection.zero_gradient()

    for start in range(0, N, C):
        chunk = slice(start, start + C)
        h_CD = h_ND[chunk]
        grad_CV = logits_CV = projection.logits(h_CD)
        blocks = (torch.split(x, R) for x in (logits_CV, targets_N[chunk, None], ce_N[chunk], penalty_N[chunk]))
        for block_RV, targets_R1, ce_R, penalty_R in zip(*blocks, strict=True):
            logits_RV, vjp = cap(gamma, block_RV) if cap else (block_RV, None)
            max_logit_R = logits_RV.amax(dim=-1)
            p_RV = torch.softmax(logits_RV, dim=-1, out=buffer_RV[: len(logits_RV)])
            # The largest p is 1 / sum(exp(logit - largest logit)), between 1/V and 1: its log is precise.
            log_z_R = max_logit_R - p_RV.amax(dim=-1).log()
            torch.sub(log_z_R, logits_RV.gather(1, targets_R1).squeeze(1), out=ce_R)
            slopes = Slopes()
            if penalized:
                values_R, slopes = penalties_and_slopes(method, gamma, log_z_R, max_logit_R, mu_D, N)
                penalty_R.copy_(values_R)
            if not needs_gradients:
                continue
            grad_RV = logits_gradient(p_RV, logits_RV, targets_R1, slopes, N)
            if slopes.mu_D is not None:
                grad_mu_D += slopes.mu_D
            if vjp:
                block_RV.copy_(vjp(grad_RV))  # a no-op if the map returns its gradient in this memory
            else:
                grad_CV = grad_RV  # without a map there is only one block
        if needs_gradients:
            grad_h_ND[chunk] = projection.backward(grad_CV, h_CD, grad_E_VD)

    cross_entropy, objective = ce_N.mean(), (ce_N + penalty_N).mean()
    if not needs_gradients:
        return LossesAndGradients(objective, cross_entropy, None, None)
    if penalized:
        grad_E_VD.add_(grad_mu_D / V)
    return LossesAndGradients(objective, cross_entropy, grad_h_ND, grad_E_VD)


@torch.no_grad()
def losses_in_chunks(
    h_ND: Tensor,
    E_VD: Tensor,
    targets_N: Tensor,
    compute: ChunkFunction,
    method: str,
    gamma: Tensor,
    logits_dtype: Precision,
    bfloat16_operands: bool,
    C: int,
) -> LossesAndGradients:
    """Calls ``compute`` once for each ``C`` tokens."""
    N, mu_D = len(h_ND), E_VD.mean(dim=0)
    operand_VD = E_VD.to(torch.bfloat16) if bfloat16_operands else E_VD
    grad_h_ND, grad_E_VD = torch.empty_like(h_ND), torch.zeros_like(E_VD)
    cross_entropy, penalty, grad_mu_D = E_VD.new_zeros(()), E_VD.new_zeros(()), torch.zeros_like(mu_D)
    static = static_chunk_arguments(method, logits_dtype)
    for start in range(0, N, C):
        part = slice(start, start + C)
        chunk = compute(h_ND[part], operand_VD, targets_N[part], mu_D, gamma, N=N, **static)
        cross_entropy += chunk.cross_entropy
        penalty += chunk.penalty
        grad_h_ND[part] = chunk.grad_h_CD
        grad_E_VD += chunk.grad_E_VD
        if chunk.grad_mu_D is not None:
            grad_mu_D += chunk.grad_mu_D
    if chunk.grad_mu_D is not None:
        grad_E_VD += grad_mu_D / len(E_VD)
    return LossesAndGradients((cross_entropy + penalty) / N, cross_entropy / N, grad_h_ND, grad_E_VD)


class PrecomputedGradients(torch.autograd.Function):
    """``(h_ND, E_VD) -> (objective, cross_entropy)`` with gradients that already exist, for one backward pass."""

    @staticmethod
    def forward(ctx: Any, h_ND: Tensor, E_VD: Tensor, result: LossesAndGradients) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(result.grad_h_ND, result.grad_E_VD)
        ctx.mark_non_differentiable(result.cross_entropy)
        return result.objective, result.cross_entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Overwrites the saved gradients, which are freed anyway; a second backward pass raises an error."""
        grad_h_ND, grad_E_VD = ctx.saved_tensors
        return grad_h_ND.mul_(grads[0]), grad_E_VD.mul_(grads[0]), None


@torch.no_grad()
def logits(h_BTD: Tensor, E_VD: Tensor, method: str, gamma: Tensor, logits_dtype: Precision) -> Tensor:
    """Returns the logits that the loss sees, ``(B, T, V)`` in float32, all at once and without a gradient."""
    B, T = h_BTD.shape[:2]
    projection = Projection(E_VD, logits_dtype, uses_bfloat16_operands(E_VD, logits_dtype), B * T)
    logits_NV = projection.logits(h_BTD.flatten(0, 1))
    if cap := methods.LOGITS_MAPS.get(method):
        logits_NV, _ = cap(gamma, logits_NV)
    return logits_NV.view(B, T, -1)


def losses(
    h_BTD: Tensor,
    E_VD: Tensor,
    targets_BT: Tensor,
    method: str,
    gamma: Tensor,
    logits_dtype: Precision,
    chunk: ChunkFunction | None = None,
    chunk_size: int | None = None,
) -> Losses:
    """Returns the losses of one (micro) batch, each a scalar mean over its tokens.

    Args:
        gamma: scalar tensor; ignored by a method without a gamma. A penalty with a gamma of 0 leaves the baseline's
            values and gradients unchanged, bit for bit.
        chunk: computes losses and gradients of ``chunk_size`` tokens. Default: the in-place implementation.
    """
    h_ND, targets_N = h_BTD.flatten(0, 1), targets_BT.flatten()
    needs_gradients = torch.is_grad_enabled() and (h_BTD.requires_grad or E_VD.requires_grad)
    bfloat16_operands = uses_bfloat16_operands(E_VD, logits_dtype)
    with torch.autocast(h_BTD.device.type, enabled=False):
        if chunk and needs_gradients:
            C = even_chunk_size(len(h_ND), chunk_size or MAX_CHUNK_TOKENS)
            result = losses_in_chunks(h_ND, E_VD, targets_N, chunk, method, gamma, logits_dtype, bfloat16_operands, C)
        else:
            C = even_chunk_size(len(h_ND), CHUNK_BYTES // (4 * len(E_VD)))
            projection = Projection(E_VD, logits_dtype, bfloat16_operands, C)
            result = losses_in_blocks(h_ND, E_VD, targets_N, projection, method, gamma, needs_gradients)
        if not needs_gradients:
            return Losses(result.objective, result.cross_entropy)
        return Losses(*PrecomputedGradients.apply(h_ND, E_VD, result))  # type: ignore[no-untyped-call]


def chunk_tokens(V: int, memory_bytes: float) -> int:
    """Returns how many tokens a chunk has on an accelerator with ``memory_bytes`` of memory."""
    return max(1, min(MAX_CHUNK_TOKENS, int(CHUNK_SHARE * memory_bytes) // (4 * V)))


def even_chunk_size(N: int, max_size: int) -> int:
    """Returns the chunk size, ``max_size`` at most, that divides ``N`` tokens as evenly as possible."""
    return -(-N // -(-N // max(1, max_size)))


class Objective(nn.Module):
    """Model and head as the one module that DDP wraps: ``(B, T + 1)`` tokens to ``Losses``."""

    def __init__(self, model: GPT, precision: Literal["float32", "tf32", "bfloat16"], logits_dtype: Precision) -> None:
        super().__init__()
        self.model = model
        self.precision, self.logits_dtype = precision, logits_dtype
        self.body: Callable[[Tensor], Tensor] = model.forward
        """The model's forward pass in training, or its compiled form."""
        self.chunk: ChunkFunction | None = None
        """``compute_chunk`` compiled, if that is faster than the eager head."""
        self.chunk_size = MAX_CHUNK_TOKENS
        """Tokens of each call of ``chunk``."""

    def forward(self, tokens_BU: Tensor, method: str, gamma: Tensor) -> Losses:
        return self._losses(self.body, self.chunk, tokens_BU, method, gamma)

    def eager(self, tokens_BU: Tensor, method: str, gamma: Tensor) -> Losses:
        return self._losses(self.model, None, tokens_BU, method, gamma)

    def _losses(
        self,
        body: Callable[[Tensor], Tensor],
        chunk: ChunkFunction | None,
        tokens_BU: Tensor,
        method: str,
        gamma: Tensor,
    ) -> Losses:
        inputs_BT, targets_BT = tokens_BU[:, :-1], tokens_BU[:, 1:]
        with torch.autocast(tokens_BU.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            h_BTD, E_VD = body(inputs_BT), self.model.E_VD
            return losses(h_BTD, E_VD, targets_BT, method, gamma, self.logits_dtype, chunk, self.chunk_size)
