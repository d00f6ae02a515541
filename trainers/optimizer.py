"""Adam with weight decay, the learning-rate schedule, and the gradient clip."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from search_spaces.cell import TrainingSpec


def lr_at(step: int, spec: TrainingSpec, lr: float) -> float:
    """Learning rate of ``step`` (from 0): a linear warm-up that would reach the peak ``lr`` at step W, then from W on
    ``spec.schedule``, which would reach ``spec.min_lr`` at the step after the last."""
    W, steps = spec.warmup_steps, spec.steps
    if step < W:
        return lr * (step + 1) / (W + 1)
    match spec.schedule:
        case "constant":
            left = 1.0
        case "cosine":
            left = 0.5 * (1.0 + math.cos(math.pi * (step - W) / (steps - W)))
        case "linear":
            left = (steps - step) / (steps - W)
        case "wsd":
            left = min(1.0, (steps - step) / spec.decay_steps)
    return lr * left + spec.min_lr * (1.0 - left)


@torch.no_grad()
def clip(gradients: list[Tensor], max_norm: float) -> Tensor:
    """Scales ``gradients`` in place to a global L2 norm of at most ``max_norm``; returns the norm before."""
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


class Optimizer:
    """torch's fused Adam, with weight decay apart from it.

    Every matrix is scaled before Adam's step: by ``1 - weight_decay`` (independent: arXiv 2309.14322, section 3.2.3,
    without its schedule) or by ``1 - lr * weight_decay`` (coupled: AdamW, arXiv 1711.05101); norms keep their scales.
    The learning rate is a tensor, and ``reset`` works
    in place, so that a warm process goes from cell to cell without new allocations or compilations. It is torch's
    function and not its ``Adam``, which imports the compiler when it is made: seconds of each process that trains alone
    (DDP imports it all the same).
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.matrices: list[Tensor] = [p for p in self.parameters if p.dim() >= 2]
        self.lr = torch.zeros((), device=self.parameters[0].device)
        self.betas, self.eps = (0.0, 0.0), 0.0
        self.weight_decay, self.coupled = 0.0, False
        self.steps = [torch.zeros((), device=p.device) for p in self.parameters]
        self.exp_avgs = [torch.zeros_like(p, requires_grad=False) for p in self.parameters]
        self.exp_avg_sqs = [torch.zeros_like(p, requires_grad=False) for p in self.parameters]

    def reset(self, spec: TrainingSpec) -> None:
        """Forgets all moments and takes over the hyperparameters of ``spec``."""
        self.betas, self.eps = spec.betas, spec.eps
        self.weight_decay, self.coupled = spec.weight_decay, spec.weight_decay_mode == "coupled"
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
        if self.weight_decay:
            torch._foreach_mul_(self.matrices, 1.0 - self.weight_decay * (lr if self.coupled else 1.0))
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
