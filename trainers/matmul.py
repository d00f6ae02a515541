"""Matrix products of an AMD processor in float32, through oneDNN.

PyTorch's own go to MKL, whose kernels use half the width of an AMD processor's vector units: 115 GFLOP/s a core on an
EPYC of the fifth generation, where oneDNN's reach 250 at the shapes of a tiny model. On a Xeon MKL takes two thirds of
oneDNN's time, as it reads transposed operands where they are: there, and elsewhere, products stay PyTorch's.

Legend: N tokens, I inputs, O outputs.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@cache
def amd() -> bool:
    """Whether this machine's processor is AMD's, as far as its system tells."""
    description = Path("/proc/cpuinfo")
    return description.is_file() and "AuthenticAMD" in description.read_text()


WORTHWHILE_FLOPS = 20e6
"""Below, what oneDNN takes to start a product costs more than its kernels gain: with 128 tokens, in all of tiny's;
with 512, in all but the two largest."""


def serves(a: Tensor, b: Tensor) -> bool:
    """Whether oneDNN takes the product of these, over the last dimension of ``a``: large enough, in float32, on an AMD
    processor, outside of autocast."""
    if not FASTER or torch.is_autocast_enabled("cpu"):
        return False
    if 2 * a.numel() * b.numel() < WORTHWHILE_FLOPS * a.shape[-1]:
        return False
    return all(tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in (a, b))


def product(a_NI: Tensor, b_OI: Tensor) -> Tensor:
    """``a bᵀ``, ``(N, O)``, of tensors of any strides; autograd does not see it."""
    if not serves(a_NI, b_OI):
        return a_NI @ b_OI.T
    return opaque(a_NI, b_OI) if torch.compiler.is_compiling() else onednn(a_NI, b_OI)


def onednn(a_NI: Tensor, b_OI: Tensor) -> Tensor:
    # The operator that compiled inference uses. It has no public name: ``supported`` tries it, and a test compares it.
    found: Tensor = torch.ops.mkldnn._linear_pointwise(a_NI, b_OI, None, "none", [], "")
    return found


def supported() -> bool:
    """Whether this build of PyTorch has the operator that ``onednn`` calls, with the arguments that it gives."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    try:
        return torch.equal(onednn(torch.ones(2, 3), torch.full((4, 3), 2.0)), torch.full((2, 4), 6.0))
    except (AttributeError, RuntimeError, TypeError):  # no such operator; one with other arguments or results
        return False


FASTER = amd() and supported()
"""Whether oneDNN is. By the processor's name and not by timing it, so that a machine's losses repeat bit for bit."""


@torch.library.custom_op("oec::product", mutates_args=())
def opaque(a_NI: Tensor, b_OI: Tensor) -> Tensor:
    """``onednn`` as one call that ``torch.compile`` does not look into."""
    return onednn(a_NI, b_OI)


@opaque.register_fake
def _(a_NI: Tensor, b_OI: Tensor) -> Tensor:
    return a_NI.new_empty(len(a_NI), len(b_OI))


def weight_product(grad_NO: Tensor, x_NI: Tensor) -> Tensor:
    """``gradᵀ x``, ``(O, I)``, which may come as the transpose of a tensor ``(I, O)``; autograd does not see it.

    The operator copies a first operand that is transposed, so that it gets the narrower of the two: at 1,024 tokens a
    gradient three to six times as wide as the inputs takes two thirds to three quarters of the time.
    """
    if grad_NO.shape[1] > x_NI.shape[1]:
        return product(x_NI.T, grad_NO.T).T
    return product(grad_NO.T, x_NI.T)


class LinearMap(torch.autograd.Function):
    """``(x_NI, W_OI) -> x Wᵀ``."""

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, W_OI: Tensor) -> Tensor:
        ctx.save_for_backward(x_NI, W_OI)
        return product(x_NI, W_OI)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (x_NI, W_OI), grad_NO = ctx.saved_tensors, grads[0]
        return product(grad_NO, W_OI.T), weight_product(grad_NO, x_NI).contiguous()


def linear(x: Tensor, W_OI: Tensor) -> Tensor:
    """``F.linear`` without a bias: ``(..., I)`` to ``(..., O)``."""
    if not serves(x, W_OI):
        return F.linear(x, W_OI)
    mapped: Tensor = LinearMap.apply(x.flatten(0, -2), W_OI)  # type: ignore[no-untyped-call]
    return mapped.view(*x.shape[:-1], len(W_OI))


class Linear(nn.Linear):
    """A linear layer without a bias. Its constructor draws no values, which the model does."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def reset_parameters(self) -> None:
        """Of torch's constructor."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight)
