"""Adam with independent weight decay, the learning-rate schedule, and the gradient clip."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

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
    in place, so that a warm process goes from cell to cell without new allocations or compilations. It is torch's
    function and not its ``Adam``, which imports the compiler when it is made: seconds of each process that trains alone
    (DDP imports it all the same).
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.matrices: list[Tensor] = [p for p in self.parameters if p.dim() >= 2]
        self.lr = torch.zeros((), device=self.parameters[0].device)
        self.betas, self.eps, self.keep = (0.0, 0.0), 0.0, 1.0
        self.steps = [torch.zeros((), device=p.device) for p in self.parameters]
        self.exp_avgs = [torch.zeros_like(p, requires_grad=False) for p in self.parameters]
        self.exp_avg_sqs = [torch.zeros_like(p, requires_grad=False) for p in self.parameters]

    def reset(self, spec: TrainingSpec) -> None:
        """Forgets all moments and takes over the hyperparameters of ``spec``."""
        self.betas, self.eps, self.keep = spec.betas, spec.eps, 1.0 - spec.weight_decay
        for tensor in self.state().values():
            tensor.zero_()

    def gradients(self) -> list[Tensor]:
        """Those in place, in the order of the parameters."""
        return [p.grad for p in self.parameters if p.grad is not None]

    def zero_grad(self) -> None:
        for p in self.parameters:
            p.grad = None

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """One step from the gradients in place, of which none may be missing."""
        self.lr.fill_(lr)
        torch._foreach_mul_(self.matrices, self.keep)
        adam(
            list(self.parameters),
            self.gradients(),
            self.exp_avgs,
            self.exp_avg_sqs,
            [],
            self.steps,
            fused=True,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=self.lr,
            weight_decay=0.0,
            eps=self.eps,
            maximize=False,
        )

    def state(self) -> dict[str, Tensor]:
        """Adam's state as ``{index}.{step, exp_avg, exp_avg_sq}``: the tensors themselves, not copies."""
        kinds = {"step": self.steps, "exp_avg": self.exp_avgs, "exp_avg_sq": self.exp_avg_sqs}
        return {f"{i}.{name}": kinds[name][i] for i in range(len(self.parameters)) for name in kinds}
