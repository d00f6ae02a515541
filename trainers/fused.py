"""A small step as one compiled function: forward pass, head, backward pass, clip and Adam.

With a few hundred tokens a step, the arithmetic of a small model takes a CPU less time than the calls around it.
Compiling the whole step leaves one call for each matrix product, and one for everything between two products.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from search_spaces.training_spec import TrainingSpec
from trainers import head, methods
from trainers.head import Objective
from trainers.optimizer import Optimizer, must_skip

Step = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(tokens_BU, controls, gamma) -> metrics_3``, see ``Engine``; skips the step if it must be skipped."""
MAX_MICRO_BATCHES = 4
"""Micro batches of a step; compilation unrolls them."""
OPTIONS: dict[str, str | int | bool | Callable[..., Any]] = {
    **head.COMPILE_OPTIONS,
    # Calls from Python took a quarter of a step, so they are made from C++. The wrapper is built separately and without
    # precompiled headers, which would take 38 s once.
    "cpp_wrapper": True,
    "cpp_wrapper_build_separate": True,
    "cpp_cache_precompile_headers": False,
}
_step_ids = itertools.count()
MIN_TORCH_VERSION = (2, 13)
"""The first tested version of PyTorch whose CPU kernels respect ``emulate_precision_casts``; 2.11 does not."""


def is_supported() -> bool:
    """Returns whether this PyTorch can compile ``torch.autograd.grad`` and keeps the rounding of the logits."""
    import torch._dynamo.config as dynamo

    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    return hasattr(dynamo, "trace_autograd_ops") and version >= MIN_TORCH_VERSION


def gradient_method(method: str) -> str:
    """Returns the method that determines the gradients; one that acts on the weights does so after the step."""
    return method if method in methods.PENALTIES or method in methods.LOGITS_MAPS else "baseline"


def compile_step(objective: Objective, optimizer: Optimizer, spec: TrainingSpec, method: str, micro_batch: int) -> Step:
    """Returns the step of a float32 model on one CPU process, which is compiled when it is first called."""
    import torch._dynamo.config as dynamo

    dynamo.trace_autograd_ops = True
    model, max_norm = objective.model, spec.grad_clip
    E_VD, E_index = model.E_VD, next(i for i, p in enumerate(optimizer.parameters) if p is model.E_VD)
    static = head.static_chunk_arguments(method, objective.logits_dtype)

    def loss_and_gradients(tokens_BU: Tensor, gamma: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Of one micro batch."""
        h_ND, targets_N = model(tokens_BU[:, :-1]).flatten(0, 1), tokens_BU[:, 1:].flatten()
        h, E, mu_D, N = h_ND.detach(), E_VD.detach(), E_VD.detach().mean(dim=0), len(h_ND)
        chunk = head.compute_chunk(h, E, targets_N, mu_D, gamma, N=N, **static)
        grad_E_VD = chunk.grad_E_VD
        if chunk.grad_mu_D is not None:
            grad_E_VD = grad_E_VD + chunk.grad_mu_D / len(E_VD)
        gradients = list(torch.autograd.grad(h_ND, optimizer.parameters, chunk.grad_h_CD, allow_unused=True))
        through_body = gradients[E_index]
        gradients[E_index] = grad_E_VD if through_body is None else through_body + grad_E_VD
        return chunk.cross_entropy / N, gradients

    own_id = next(_step_ids)

    def step(tokens_BU: Tensor, controls: Tensor, gamma: Tensor, step_id: int) -> Tensor:
        assert step_id == own_id  # makes dynamo guard on it, which otherwise identifies a function by its code
        parts = [loss_and_gradients(tokens, gamma) for tokens in torch.split(tokens_BU, micro_batch)]
        cross_entropy = torch.stack([loss for loss, _ in parts]).mean()
        gradients = [sum(of_parameter) / len(parts) for of_parameter in zip(*(g for _, g in parts), strict=True)]
        with torch.no_grad():
            norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
            metrics_3 = torch.stack((cross_entropy, controls[1], norm))
            optimizer.lr.copy_(controls[0])
            optimizer.halt(must_skip(metrics_3))
            adam(optimizer, [g * (max_norm / (norm + 1e-6)).clamp(max=1.0) for g in gradients])
        return metrics_3

    # Checking all of dynamo's guards takes a third of a millisecond a call. Only the id can differ: the function is for
    # one engine, whose tensors stay in place, and for one kind of step.
    guard_id_only = {"guard_filter_fn": lambda guards: [guard.name == "step_id" for guard in guards]}
    compiled = torch.compile(step, dynamic=False, fullgraph=True, options={**OPTIONS, **guard_id_only})
    return lambda tokens_BU, controls, gamma: compiled(tokens_BU, controls, gamma, own_id)


def adam(optimizer: Optimizer, gradients: Sequence[Tensor]) -> None:
    """``Optimizer.step`` as tensor arithmetic, which the compiler can fuse; it cannot fuse torch's Adam kernel."""
    taken = optimizer.halted == 0
    optimizer.steps.add_(taken)
    spec = optimizer.spec
    beta1, beta2 = spec.betas
    # 1 - beta ** steps, which loses digits in float32 if computed that way.
    correction1, correction2 = (
        -torch.expm1(optimizer.steps * (math.log(b) if b else -math.inf)) for b in (beta1, beta2)
    )
    lr, root2 = optimizer.lr / correction1, correction2.sqrt()
    for slot, g in zip(optimizer.slots, gradients, strict=True):
        p, m, v = slot.value, slot.exp_avg, slot.exp_avg_sq
        exp_avg, exp_avg_sq = m + (g - m) * (1 - beta1), v * beta2 + g * g * (1 - beta2)
        if spec.weight_decay and p.dim() >= 2:
            p.mul_(optimizer.decay_factor(p, exp_avg, optimizer.lr))
        step = lr * slot.lr_factor * exp_avg / (exp_avg_sq.sqrt() / root2 + spec.eps)
        p.copy_(torch.where(taken, p - step, p))
        m.copy_(torch.where(taken, exp_avg, m))
        v.copy_(torch.where(taken, exp_avg_sq, v))
