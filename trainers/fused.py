"""A small step as one compiled function: forward pass, head, backward pass, clip and Adam.

At a few hundred tokens a step, the arithmetic of a small model takes a processor less time than the calls around it.
``torch.compile`` of the whole step leaves a call for each matrix product, and one for what lies between two of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from search_spaces.cell import TrainingSpec
from trainers import head, methods
from trainers.head import Objective
from trainers.optimizer import Optimizer, refused

Step = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(tokens_BU, controls, strength) -> figures``, as ``Engine`` has them; takes the step where it may be taken."""
MOST_PARTS = 4
"""Micro batches of a step, which compilation unrolls."""
OPTIONS: dict[str, str | int | bool | Callable[..., Any]] = {
    **head.OPTIONS,
    # The calls in C++: Python's took a quarter of a step. Its own file, and no precompiled headers: 38 s, once.
    "cpp_wrapper": True,
    "cpp_wrapper_build_separate": True,
    "cpp_cache_precompile_headers": False,
}
_kinds = itertools.count()


KEEPS_ROUNDING = (2, 13)
"""The first version of PyTorch whose kernels for processors heed ``emulate_precision_casts``, of those that were tried;
2.11 does not."""


def supported() -> bool:
    """Whether this PyTorch compiles a call of ``torch.autograd.grad`` and keeps the rounding of the logits."""
    import torch._dynamo.config as dynamo

    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    return hasattr(dynamo, "trace_autograd_ops") and version >= KEEPS_ROUNDING


def of_head(method: str) -> str:
    """The method as the gradients know it: what acts on the weights is done after the step."""
    return method if method in methods.PENALTIES or method in methods.LOGITS_MAPS else "baseline"


def compiled(objective: Objective, optimizer: Optimizer, spec: TrainingSpec, method: str, micro_batch: int) -> Step:
    """The step of a model in float32 on one processor, compiled when it is first called."""
    import torch._dynamo.config as dynamo

    dynamo.trace_autograd_ops = True
    model, max_norm = objective.model, spec.grad_clip
    E_VD, E_index = model.E_VD, next(i for i, p in enumerate(optimizer.parameters) if p is model.E_VD)
    kind_of_chunk = head.kind_of_chunk(method, objective.logits_dtype)

    def part(tokens_BU: Tensor, strength: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Mean cross-entropy and the gradients."""
        h_ND, targets_N = model(tokens_BU[:, :-1]).flatten(0, 1), tokens_BU[:, 1:].flatten()
        h, E, mu_D, N = h_ND.detach(), E_VD.detach(), E_VD.detach().mean(dim=0), len(h_ND)
        found = head.chunk(h, E, targets_N, mu_D, strength, N=N, **kind_of_chunk)
        grad_E_VD = found.grad_E_VD
        if found.grad_mu_D is not None:
            grad_E_VD = grad_E_VD + found.grad_mu_D / len(E_VD)
        gradients = list(torch.autograd.grad(h_ND, optimizer.parameters, found.grad_h_CD, allow_unused=True))
        through_body = gradients[E_index]
        gradients[E_index] = grad_E_VD if through_body is None else through_body + grad_E_VD
        return found.cross_entropy / N, gradients

    mine = next(_kinds)

    def step(tokens_BU: Tensor, controls: Tensor, strength: Tensor, kind: int) -> Tensor:
        assert kind == mine  # so that dynamo, which knows a function by its code, looks at it
        parts = [part(tokens, strength) for tokens in torch.split(tokens_BU, micro_batch)]
        cross_entropy = torch.stack([loss for loss, _ in parts]).mean()
        gradients = [sum(of_parameter) / len(parts) for of_parameter in zip(*(g for _, g in parts), strict=True)]
        with torch.no_grad():
            norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
            figures = torch.stack((cross_entropy, controls[1], norm))
            optimizer.lr.copy_(controls[0])
            optimizer.halt(refused(figures))
            adam(optimizer, [g * (max_norm / (norm + 1e-6)).clamp(max=1.0) for g in gradients])
        return figures

    # Of all that dynamo would check before each call, a third of a millisecond, nothing changes but the kind: the
    # function is of one engine, whose tensors stay, and of one kind of step.
    only_kind = {"guard_filter_fn": lambda guards: [guard.name == "kind" for guard in guards]}
    call = torch.compile(step, dynamic=False, fullgraph=True, options={**OPTIONS, **only_kind})
    return lambda tokens_BU, controls, strength: call(tokens_BU, controls, strength, mine)


def adam(optimizer: Optimizer, gradients: Sequence[Tensor]) -> None:
    """``Optimizer.step`` in the arithmetic of tensors, which the compiler fuses where it would call torch's kernel."""
    taken = optimizer.halted == 0
    optimizer.steps.add_(taken)
    beta1, beta2 = optimizer.betas
    # 1 - beta ** steps, of which float32 would lose digits.
    correction1, correction2 = (
        -torch.expm1(optimizer.steps * (math.log(b) if b else -math.inf)) for b in (beta1, beta2)
    )
    lr, root2 = optimizer.lr / correction1, correction2.sqrt()
    if optimizer.weight_decay:
        kept = optimizer.kept_share()
        for matrix in optimizer.matrices:
            matrix.mul_(kept)
    moments = optimizer.moments
    for p, g, m, v in zip(optimizer.parameters, gradients, moments["exp_avg"], moments["exp_avg_sq"], strict=True):
        exp_avg, exp_avg_sq = m + (g - m) * (1 - beta1), v * beta2 + g * g * (1 - beta2)
        p.copy_(torch.where(taken, p - lr * exp_avg / (exp_avg_sq.sqrt() / root2 + optimizer.eps), p))
        m.copy_(torch.where(taken, exp_avg, m))
        v.copy_(torch.where(taken, exp_avg_sq, v))
