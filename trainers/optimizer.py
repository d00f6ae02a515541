"""Adam with independent weight decay, the learning-rate schedule, and the gradient clip."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from search_spaces.cell import TrainingSpec


def lr_at(step: int, spec: TrainingSpec, lr: float) -> float:
    """Learning rate of ``step`` (from 0): linear warm-up to the peak ``lr``, then a cosine that reaches
    ``spec.min_lr`` at the last step."""
    if step < spec.warmup_steps:
        return lr * ((step + 1) / spec.warmup_steps)
    progress = (step + 1 - spec.warmup_steps) / (spec.steps - spec.warmup_steps)
    return spec.min_lr + (lr - spec.min_lr) * 0.5 * (1.0 + math.cos(math.pi * progress))


@torch.no_grad()
def clip(gradients: list[Tensor], max_norm: float) -> Tensor:
    """Scales ``gradients`` in place to a global L2 norm of at most ``max_norm``; returns the norm before."""
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


class Optimizer:
    """torch's fused Adam, with independent weight decay in place of AdamW's.

    The decay takes ``spec.weight_decay`` off every matrix a step, whatever the learning rate (arXiv 2309.14322,
    section 3.2.3, without its schedule); norms keep their scales. The learning rate is a tensor, and ``reset`` works
    in place, so that a warm process goes from cell to cell without new allocations or compilations.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.matrices: list[Tensor] = [p for p in self.parameters if p.dim() >= 2]
        self.lr = torch.zeros((), device=self.parameters[0].device)
        self.adam = torch.optim.Adam(self.parameters, lr=self.lr, fused=True)
        self.keep = 1.0
        for p in self.parameters:  # Adam would do this at its first step; here it is there to be restored into
            self.adam.state[p] = {
                "step": torch.zeros((), device=p.device),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.zeros_like(p),
            }

    def reset(self, spec: TrainingSpec) -> None:
        """Forgets all moments and takes over the hyperparameters of ``spec``."""
        self.keep = 1.0 - spec.weight_decay
        self.adam.param_groups[0].update(betas=spec.betas, eps=spec.eps)
        for tensor in self.state().values():
            tensor.zero_()

    def step(self, lr: float) -> None:
        """One step from the gradients in place."""
        self.lr.fill_(lr)
        with torch.no_grad():
            torch._foreach_mul_(self.matrices, self.keep)
        self.adam.step()

    def state(self) -> dict[str, Tensor]:
        """Adam's state as ``{index}.{step, exp_avg, exp_avg_sq}``: the tensors themselves, not copies."""
        return {
            f"{i}.{name}": tensor for i, p in enumerate(self.parameters) for name, tensor in self.adam.state[p].items()
        }
