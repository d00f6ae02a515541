"""The output-head methods, one function each, named as in ``search_spaces.methods`` with underscores.

What a method acts on determines its signature:
  loss     ``(gamma, log_z_N, max_logit_N, mu_D) -> penalty``, a tensor that broadcasts to ``(N,)``; its mean over
           tokens is added to the cross-entropy, and autograd on these small tensors computes its derivative
  logits   ``(gamma, logits_NV) -> (mapped_NV, vjp)``, in training and in evaluation. Both functions may overwrite
           their inputs, and are fastest if they return their result in the memory of the logits.
  weights  ``(E_VD) -> None``, in place after every optimizer step

A method sees one chunk of the tokens at a time (``trainers.head``). Gammas are scalar tensors, so that a new value does
not trigger a recompilation, and no step waits for the device.

Legend: N tokens of a chunk, V vocabulary with padding, D model width, mu the mean row of E.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from search_spaces.methods import METHODS, ActsOn
from trainers.matmul import is_amd_cpu

Penalty = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
Vjp = Callable[[Tensor], Tensor]
"""Maps the gradient of a map's output to that of its input, both ``(N, V)``."""
LogitsMap = Callable[[Tensor, Tensor], tuple[Tensor, Vjp]]
WeightsMap = Callable[[Tensor], None]
SLOW_TANH = is_amd_cpu()
"""On AMD CPUs PyTorch's tanh takes six times as long as its sigmoid; on a Xeon it takes two thirds of the time.
``tanh(u) = 2 sigmoid(2u) - 1`` loses about 1e-7 of precision, less than the rounding of a float32 matrix product."""


def z_loss(gamma: Tensor, log_z_N: Tensor, max_logit_N: Tensor, mu_D: Tensor) -> Tensor:
    """``gamma * mean(log Z ** 2)`` over tokens: arXiv 2204.02311 (PaLM), section 5."""
    return gamma * log_z_N.square()


def mu_loss(gamma: Tensor, log_z_N: Tensor, max_logit_N: Tensor, mu_D: Tensor) -> Tensor:
    """``gamma * (mu . mu)``: arXiv 2601.02031."""
    return gamma * mu_D.square().sum()


def max_z(gamma: Tensor, log_z_N: Tensor, max_logit_N: Tensor, mu_D: Tensor) -> Tensor:
    """``gamma * mean(max(logits) ** 2)`` over tokens: arXiv 2309.10305 (Baichuan 2), section 2."""
    return gamma * max_logit_N.square()


def soft_cap(gamma: Tensor, logits_NV: Tensor) -> tuple[Tensor, Vjp]:
    """``gamma * tanh(logits / gamma)``: arXiv 2408.00118 (Gemma 2), section 2, where gamma is called c."""
    if SLOW_TANH and logits_NV.device.type == "cpu":
        logits_NV.mul_(2 / gamma).sigmoid_().mul_(2 * gamma).sub_(gamma)
    else:
        logits_NV.mul_(1 / gamma).tanh_().mul_(gamma)

    def vjp(grad_NV: Tensor) -> Tensor:
        # grad * (1 - tanh ** 2) in one pass; tensor arithmetic would take two.
        tanh_NV = logits_NV.mul_(1 / gamma)
        torch.ops.aten.tanh_backward.grad_input(grad_NV, tanh_NV, grad_input=logits_NV)
        return logits_NV

    return logits_NV, vjp


@torch.no_grad()
def mu_centering(E_VD: Tensor) -> None:
    """``E -= mu`` exactly: arXiv 2601.02031.

    In float32 the mean of a large mu has a relative error of about 1e-7; the second pass removes the remainder.
    """
    for _ in range(2):
        E_VD.sub_(E_VD.mean(dim=0))


def _functions(acts_on: ActsOn) -> dict[str, Any]:
    """Returns this module's functions for the registry's entries; a missing one raises a KeyError at import."""
    entries = (name for name, method in METHODS.items() if method.acts_on == acts_on)
    return {name: globals()[name.replace("-", "_")] for name in entries}


PENALTIES: dict[str, Penalty] = _functions("loss")
LOGITS_MAPS: dict[str, LogitsMap] = _functions("logits")
WEIGHTS_MAPS: dict[str, WeightsMap] = _functions("weights")
