"""Float32 matrix products on AMD CPUs, through oneDNN.

PyTorch calls MKL, whose kernels use half the width of an AMD CPU's vector units: 115 GFLOP/s per core on a fifth-
generation EPYC, where oneDNN reaches 250 at the shapes of a tiny model. On a Xeon, MKL takes two thirds of oneDNN's
time, because it reads transposed operands in place. Products on all other hardware are therefore PyTorch's.

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
def is_amd_cpu() -> bool:
    """Returns whether the operating system reports an AMD CPU."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.is_file() and "AuthenticAMD" in cpuinfo.read_text()


MIN_ONEDNN_FLOPS = 20e6
"""Below this size oneDNN's overhead exceeds what its kernels gain: with 128 tokens, for all products of a tiny model;
with 512, for all but the two largest."""


def uses_onednn(a: Tensor, b: Tensor) -> bool:
    """Returns whether oneDNN computes ``product(a, b)``: if it is large enough, in float32, on an AMD CPU, and autocast
    is off."""
    if not ONEDNN_IS_FASTER or torch.is_autocast_enabled("cpu"):
        return False
    if 2 * a.numel() * b.numel() < MIN_ONEDNN_FLOPS * a.shape[-1]:
        return False
    return all(tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in (a, b))


def product(a_NI: Tensor, b_OI: Tensor) -> Tensor:
    """Returns ``a bᵀ``, ``(N, O)``, for tensors with any strides. It is not differentiable by autograd."""
    if not uses_onednn(a_NI, b_OI):
        return a_NI @ b_OI.T
    return onednn_op(a_NI, b_OI) if torch.compiler.is_compiling() else onednn(a_NI, b_OI)


def onednn(a_NI: Tensor, b_OI: Tensor) -> Tensor:
    # The operator of compiled inference. It is private: ``is_supported`` tries it, and a test checks its result.
    result: Tensor = torch.ops.mkldnn._linear_pointwise(a_NI, b_OI, None, "none", [], "")
    return result


def is_supported() -> bool:
    """Returns whether this build of PyTorch has the operator that ``onednn`` calls, with the same arguments."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    try:
        return torch.equal(onednn(torch.ones(2, 3), torch.full((4, 3), 2.0)), torch.full((2, 4), 6.0))
    except (AttributeError, RuntimeError, TypeError):  # the operator is missing, or its signature differs
        return False


ONEDNN_IS_FASTER = is_amd_cpu() and is_supported()
"""Decided by the CPU's vendor and not by a measurement, so that losses on one machine are reproducible bit for bit."""


@torch.library.custom_op("oec::product", mutates_args=())
def onednn_op(a_NI: Tensor, b_OI: Tensor) -> Tensor:
    """``onednn`` as a custom operator, which ``torch.compile`` does not trace."""
    return onednn(a_NI, b_OI)


@onednn_op.register_fake
def _(a_NI: Tensor, b_OI: Tensor) -> Tensor:
    return a_NI.new_empty(len(a_NI), len(b_OI))


def weight_grad(grad_NO: Tensor, x_NI: Tensor) -> Tensor:
    """Returns ``gradᵀ x``, ``(O, I)``, possibly as a transposed view. It is not differentiable by autograd.

    oneDNN copies a transposed first operand, so the narrower of the two operands comes first. With 1,024 tokens and a
    gradient three to six times as wide as the inputs, this takes two thirds to three quarters of the time.
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
        return product(grad_NO, W_OI.T), weight_grad(grad_NO, x_NI).contiguous()


def linear(x: Tensor, W_OI: Tensor) -> Tensor:
    """``F.linear`` without a bias: ``(..., I)`` to ``(..., O)``."""
    if not uses_onednn(x, W_OI):
        return F.linear(x, W_OI)
    mapped: Tensor = LinearMap.apply(x.flatten(0, -2), W_OI)  # type: ignore[no-untyped-call]
    return mapped.view(*x.shape[:-1], len(W_OI))


class Linear(nn.Linear):
    """A linear layer without a bias. The model initializes it, not its constructor."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def reset_parameters(self) -> None:
        """Does nothing: torch's constructor calls it."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight)
