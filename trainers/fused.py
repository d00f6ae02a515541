"""One step's gradients as one compiled function: forward pass, head, backward pass and the sums into the optimizer.

At a few hundred tokens a step the arithmetic of a small model takes a processor less time than the calls around it.
``torch.compile`` of the whole leaves a call for each matrix product and one for what lies between two of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from trainers import head
from trainers.head import Objective
from trainers.optimizer import Optimizer

Gradients = Callable[[Tensor, str, Tensor, float], Tensor]
"""``(tokens_BU, method, strength, share) -> cross_entropy``; adds ``share`` of the objective's gradient."""

OPTIONS: dict[str, str | int | bool | Callable[..., Any]] = {"emulate_precision_casts": True}
"""Inductor drops a rounding to bfloat16 and back as if it were nothing; here it is the experiment."""


def supported() -> bool:
    """Whether this version of PyTorch compiles a call of ``torch.autograd.grad``."""
    import torch._dynamo.config as dynamo

    return hasattr(dynamo, "trace_autograd_ops")


def compiled(objective: Objective, optimizer: Optimizer) -> Gradients:
    """``Gradients`` of a model in float32 on one processor, compiled when it is first called, once a method."""
    import torch._dynamo.config as dynamo

    dynamo.trace_autograd_ops = True
    model = objective.model
    E_index = next(i for i, p in enumerate(optimizer.parameters) if p is model.E_VD)

    def gradients(tokens_BU: Tensor, method: str, strength: Tensor, share: float) -> Tensor:
        h_ND = model(tokens_BU[:, :-1]).flatten(0, 1)
        found = head.differentiated(
            h_ND.detach(), model.E_VD.detach(), tokens_BU[:, 1:].flatten(), method, strength, objective.logits_dtype
        )
        by_parameter = torch.autograd.grad(h_ND, optimizer.parameters, found.grad_h_ND, allow_unused=True)
        for i, (total, gradient) in enumerate(zip(optimizer.gradients, by_parameter, strict=True)):
            if i == E_index:
                gradient = found.grad_E_VD if gradient is None else gradient + found.grad_E_VD
            total.add_(gradient, alpha=share)
        return found.losses.cross_entropy

    compiled: Gradients = torch.compile(gradients, dynamic=False, fullgraph=True, options=OPTIONS)
    return compiled
