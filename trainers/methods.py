"""The output-head methods, one function each, named as in ``search_spaces.methods`` with underscores.

Where a method enters decides its signature:
  loss     ``(gamma, logits_BTV, log_z_BT, E_VD) -> penalty``, a scalar added to the cross-entropy
  logits   ``(c, logits_BTV) -> logits_BTV``, in training and in evaluation
  weights  ``(E_VD) -> None``, in place after every optimizer step

Strengths are scalar tensors, so that a compiled step takes a new one without compiling again.

Legend: B sequences, T tokens a sequence, V vocabulary with padding, D model width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from search_spaces.methods import METHODS, ActsOn

Penalty = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
LogitsMap = Callable[[Tensor, Tensor], Tensor]
WeightsMap = Callable[[Tensor], None]


def z_loss(gamma: Tensor, logits_BTV: Tensor, log_z_BT: Tensor, E_VD: Tensor) -> Tensor:
    """``gamma * mean(log Z ** 2)`` over tokens: arXiv 2204.02311 (PaLM), section 5."""
    return gamma * log_z_BT.square().mean()


def mu_loss(gamma: Tensor, logits_BTV: Tensor, log_z_BT: Tensor, E_VD: Tensor) -> Tensor:
    """``gamma * (mu . mu)``, mu the mean row of E: arXiv 2601.02031."""
    return gamma * E_VD.mean(dim=0).square().sum()


def max_z(gamma: Tensor, logits_BTV: Tensor, log_z_BT: Tensor, E_VD: Tensor) -> Tensor:
    """``gamma * mean(max(logits) ** 2)`` over tokens: arXiv 2309.10305 (Baichuan 2), section 2."""
    return gamma * logits_BTV.amax(dim=-1).square().mean()


def soft_cap(c: Tensor, logits_BTV: Tensor) -> Tensor:
    """``c * tanh(logits / c)``: arXiv 2408.00118 (Gemma 2), section 2."""
    return c * torch.tanh(logits_BTV / c)


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
