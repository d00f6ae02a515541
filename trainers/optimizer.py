"""Adam with weight decay, the learning-rate schedule, and the gradient clip."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from search_spaces.cell import TrainingSpec

ALIGNMENT = 16
"""Floats in a cache line."""
ROW = 1024
"""Elements whose squares the norm sums at a time: one sum over millions of float32 loses its last digits."""


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


def refused(figures_3: Tensor) -> Tensor:
    """Whether a step of these figures may not be taken: loss or norm is not finite, or a rank asked to stop."""
    loss, stops, norm = figures_3.unbind()
    return ~(torch.isfinite(loss) & torch.isfinite(norm)) | (stops > 0)


class Optimizer:
    """torch's fused Adam over one flat vector, with weight decay apart from it.

    Parameters, gradients and moments are views of four flat tensors, so that the clip and Adam take a handful of calls
    however many parameters there are: at small steps the calls are what costs.

    Every matrix is scaled before Adam's step: by ``1 - weight_decay`` (independent: arXiv 2309.14322, section 3.2.3,
    without its schedule) or by ``1 - lr * weight_decay`` (coupled: AdamW, arXiv 1711.05101); norms keep their scales.
    The learning rate is a tensor and ``reset`` works in place, so that a warm process goes from cell to cell without
    new allocations or compilations. Adam is torch's function, not its class, which imports the compiler when it is
    made: seconds for each process that trains alone (DDP imports it all the same).

    Whether a step is taken is decided where the numbers are, on the device, so that nothing waits for it: see
    ``halted``.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        """Moves the storage of ``parameters`` into one vector; their values stay."""
        self.parameters = list(parameters)
        sizes = [p.numel() for p in self.parameters]
        # Each begins on a cache line; the padding between them is zero and stays zero.
        ends = list(accumulate(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes))
        starts, total = [0, *ends[:-1]], -(-ends[-1] // ROW) * ROW
        self.values, self.gradient, self.exp_avg, self.exp_avg_sq = (
            torch.zeros(total, dtype=self.parameters[0].dtype, device=self.parameters[0].device) for _ in range(4)
        )

        def views(flat: Tensor) -> list[Tensor]:
            slices = zip(starts, sizes, self.parameters, strict=True)
            return [flat[start : start + size].view(p.shape) for start, size, p in slices]

        for p, value, gradient in zip(self.parameters, views(self.values), views(self.gradient), strict=True):
            value.copy_(p.detach())
            p.data, p.grad = value, gradient
        self.gradients = views(self.gradient)
        self.moments = {"exp_avg": views(self.exp_avg), "exp_avg_sq": views(self.exp_avg_sq)}
        self.matrices: list[Tensor] = [p for p in self.parameters if p.dim() >= 2]
        self.steps, self.lr = self.values.new_zeros(()), self.values.new_zeros(())
        self.halted = self.values.new_zeros(())
        """1 from the first step that may not be taken until ``reset``, else 0: a host that reads the figures of a step
        after it has launched the next one finds the weights as they were before the first."""
        self.betas, self.eps = (0.0, 0.0), 0.0
        self.weight_decay, self.coupled = 0.0, False

    def reset(self, spec: TrainingSpec) -> None:
        """Forgets all moments and takes over the hyperparameters of ``spec``."""
        self.betas, self.eps = spec.betas, spec.eps
        self.weight_decay, self.coupled = spec.weight_decay, spec.weight_decay_mode == "coupled"
        for tensor in (self.gradient, self.exp_avg, self.exp_avg_sq, self.steps, self.halted):
            tensor.zero_()

    def zero_grad(self) -> None:
        self.gradient.zero_()

    @torch.no_grad()
    def clip(self, max_norm: float) -> Tensor:
        """Scales the gradient in place to a global L2 norm of at most ``max_norm``; returns the norm before."""
        by_row = torch.linalg.vector_norm(self.gradient.view(-1, ROW), dim=1)
        norm: Tensor = torch.linalg.vector_norm(by_row)
        self.gradient.mul_((max_norm / (norm + 1e-6)).clamp_(max=1.0))
        return norm

    @torch.no_grad()
    def step(self) -> None:
        """One step at ``self.lr`` from the gradient in place; none if halted."""
        if self.weight_decay:
            torch._foreach_mul_(self.matrices, self.kept_share())
        adam(
            [self.values],
            [self.gradient],
            [self.exp_avg],
            [self.exp_avg_sq],
            [],
            [self.steps],
            fused=True,
            found_inf=self.halted,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=self.lr,
            weight_decay=0.0,
            eps=self.eps,
            maximize=False,
        )

    def halt(self, refused: Tensor) -> None:
        """Takes no step from now on where ``refused`` is true."""
        self.halted.copy_(torch.maximum(self.halted, refused.to(self.halted.dtype)))

    def kept_share(self) -> Tensor:
        """What the weight decay of one step leaves of a matrix."""
        taken = 1.0 - self.halted
        return 1.0 - self.weight_decay * (self.lr * taken if self.coupled else taken)

    @torch.no_grad()
    def unless_halted(self, change: Callable[[], object], tensors: Sequence[Tensor]) -> None:
        """Calls ``change``, which works in place on ``tensors``, and undoes it where the step was not taken."""
        before = [tensor.clone() for tensor in tensors]
        change()
        for tensor, old in zip(tensors, before, strict=True):
            torch.where(self.halted > 0, old, tensor, out=tensor)

    def state(self) -> dict[str, Tensor]:
        """Adam's state as ``step`` and ``{index}.{exp_avg, exp_avg_sq}``: the tensors themselves, not copies."""
        moments = {f"{i}.{name}": view for name, views in self.moments.items() for i, view in enumerate(views)}
        return {"step": self.steps} | moments
