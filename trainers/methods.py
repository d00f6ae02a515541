"""The output-head methods, one function each, named as in ``search_spaces.methods`` with underscores.

Where a method enters decides its signature:
  loss     ``(gamma, log_z_N, max_logit_N, mu_D) -> penalty``, a tensor that broadcasts to ``(N,)``; its mean over
           tokens is added to the cross-entropy, and autograd on these small tensors gives its derivative
  logits   ``(c, logits_NV) -> (mapped_NV, vjp)``, in training and in evaluation; both may take the memory of what
           they are given, and best give what they find in that of the logits
  weights  ``(E_VD) -> None``, in place after every optimizer step

None of them sees more than a chunk of the tokens at once (``trainers.head``). Strengths are scalar tensors, so that
nothing is compiled again for a new one, and no step waits for the device.

Legend: N tokens of a chunk, V vocabulary with padding, D model width, mu the mean row of E.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from search_spaces.methods import METHODS, ActsOn
from trainers.matmul import amd

Penalty = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
Vjp = Callable[[Tensor], Tensor]
"""Takes a gradient back through a map, both ``(N, V)``."""
LogitsMap = Callable[[Tensor, Tensor], tuple[Tensor, Vjp]]
WeightsMap = Callable[[Tensor], None]
SLOW_TANH = amd()
"""Whether PyTorch's tanh takes six times its sigmoid's time, as on AMD's processors; on a Xeon it takes two thirds.
``tanh(u) = 2 sigmoid(2u) - 1`` costs about 1e-7 of precision, within the rounding of a float32 matrix product."""


def z_loss(gamma: Tensor, log_z_N: Tensor, max_logit_N: Tensor, mu_D: Tensor) -> Tensor:
    """``gamma * mean(log Z ** 2)`` over tokens: arXiv 2204.02311 (PaLM), section 5."""
    return gamma * log_z_N.square()


def mu_loss(gamma: Tensor, log_z_N: Tensor, max_logit_N: Tensor, mu_D: Tensor) -> Tensor:
    """``gamma * (mu . mu)``: arXiv 2601.02031."""
    return gamma * mu_D.square().sum()


def max_z(gamma: Tensor, log_z_N: Tensor, max_logit_N: Tensor, mu_D: Tensor) -> Tensor:
    """``gamma * mean(max(logits) ** 2)`` over tokens: arXiv 2309.10305 (Baichuan 2), section 2."""
    return gamma * max_logit_N.square()


def soft_cap(c: Tensor, logits_NV: Tensor) -> tuple[Tensor, Vjp]:
    """``c * tanh(logits / c)``: arXiv 2408.00118 (Gemma 2), section 2."""
    if SLOW_TANH and logits_NV.device.type == "cpu":
        logits_NV.mul_(2 / c).sigmoid_().mul_(2 * c).sub_(c)
    else:
        logits_NV.mul_(1 / c).tanh_().mul_(c)

    def vjp(grad_NV: Tensor) -> Tensor:
        # grad * (1 - tanh ** 2) in one pass, where the arithmetic of tensors takes two.
        tanh_NV = logits_NV.mul_(1 / c)
        torch.ops.aten.tanh_backward.grad_input(grad_NV, tanh_NV, grad_input=logits_NV)
        return logits_NV

    return logits_NV, vjp


@torch.no_grad()
def mu_centering(E_VD: Tensor) -> None:
    """``E -= mu`` exactly: arXiv 2601.02031.

    A float32 mean of a large mu is off by about 1e-7 of it; the second pass takes what the first one left.
    """
    for _ in range(2):
        E_VD.sub_(E_VD.mean(dim=0))


def _functions(acts_on: ActsOn) -> dict[str, Any]:
    """The functions of this file that belong to the registry's entries; a missing one is a KeyError at import."""
    entries = (name for name, method in METHODS.items() if method.acts_on == acts_on)
    return {name: globals()[name.replace("-", "_")] for name in entries}


PENALTIES: dict[str, Penalty] = _functions("loss")
LOGITS_MAPS: dict[str, LogitsMap] = _functions("logits")
WEIGHTS_MAPS: dict[str, WeightsMap] = _functions("weights")
