"""Adam with weight decay, the learning-rate schedule, and the gradient clip."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from search_spaces.cell import TrainingSpec

CACHE_LINE_FLOATS = 16
NORM_ROW = 1024
"""Number of elements whose squares the norm sums at a time: a float32 sum over millions loses its last digits."""


def lr_at(step: int, spec: TrainingSpec, lr: float) -> float:
    """Returns the learning rate of ``step`` (from 0): a linear warm-up that reaches the peak ``lr`` at step W, then
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


def must_skip(metrics_3: Tensor) -> Tensor:
    """Returns whether a step must be skipped: its loss or norm is not finite, or a rank asked to stop."""
    loss, stops, norm = metrics_3.unbind()
    return ~(torch.isfinite(loss) & torch.isfinite(norm)) | (stops > 0)


class Optimizer:
    """torch's fused Adam over one flat vector, with separate weight decay.

    Parameters, gradients and moments are views of four flat tensors, so that the clip and Adam take a few calls,
    regardless of the number of parameters. In small steps the calls dominate the cost.

    Every matrix is scaled before Adam's step: by ``1 - weight_decay`` (independent: arXiv 2309.14322, section 3.2.3,
    without its schedule) or by ``1 - lr * weight_decay`` (coupled: AdamW, arXiv 1711.05101); norm weights do not decay.
    The learning rate is a tensor and ``reset`` works in place, so that a warm process moves from cell to cell without
    new allocations or compilations. This uses torch's ``adam`` function because the ``Adam`` class imports the
    compiler, which takes seconds in each single-process run (DDP imports it in any case).

    The device decides whether a step is taken, so that nothing waits for it: see ``halted``.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        """Moves the storage of ``parameters`` into one vector and keeps their values."""
        self.parameters = list(parameters)
        sizes = [p.numel() for p in self.parameters]
        # Each parameter starts on a cache line; the padding between them stays zero.
        ends = list(accumulate(-(-size // CACHE_LINE_FLOATS) * CACHE_LINE_FLOATS for size in sizes))
        starts, total = [0, *ends[:-1]], -(-ends[-1] // NORM_ROW) * NORM_ROW
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
        """1 from the first skipped step until ``reset``, else 0. When the host reads the metrics of that step, it has
        already launched the next one, and the weights must still be those before the skipped step."""
        self.betas, self.eps = (0.0, 0.0), 0.0
        self.weight_decay, self.coupled = 0.0, False

    def reset(self, spec: TrainingSpec) -> None:
        """Clears all moments and applies the hyperparameters of ``spec``."""
        self.betas, self.eps = spec.betas, spec.eps
        self.weight_decay, self.coupled = spec.weight_decay, spec.weight_decay_mode == "coupled"
        for tensor in (self.gradient, self.exp_avg, self.exp_avg_sq, self.steps, self.halted):
            tensor.zero_()

    def zero_grad(self) -> None:
        self.gradient.zero_()

    @torch.no_grad()
    def clip(self, max_norm: float) -> Tensor:
        """Clips the gradient in place to a global L2 norm of ``max_norm``. Returns the norm before clipping."""
        by_row = torch.linalg.vector_norm(self.gradient.view(-1, NORM_ROW), dim=1)
        norm: Tensor = torch.linalg.vector_norm(by_row)
        self.gradient.mul_((max_norm / (norm + 1e-6)).clamp_(max=1.0))
        return norm

    @torch.no_grad()
    def step(self) -> None:
        """Takes one step at ``self.lr``, unless halted."""
        if self.weight_decay:
            torch._foreach_mul_(self.matrices, self.decay_factor())
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

    def halt(self, condition: Tensor) -> None:
        """Skips all steps until ``reset`` if ``condition``, a boolean on the device, is true."""
        self.halted.copy_(torch.maximum(self.halted, condition.to(self.halted.dtype)))

    def decay_factor(self) -> Tensor:
        """Returns the factor by which the weight decay of one step scales a matrix."""
        taken = 1.0 - self.halted
        return 1.0 - self.weight_decay * (self.lr * taken if self.coupled else taken)

    @torch.no_grad()
    def unless_halted(self, change: Callable[[], object], tensors: Sequence[Tensor]) -> None:
        """Calls ``change``, which modifies ``tensors`` in place, and undoes it if the step was skipped."""
        before = [tensor.clone() for tensor in tensors]
        change()
        for tensor, old in zip(tensors, before, strict=True):
            torch.where(self.halted > 0, old, tensor, out=tensor)

    def state(self) -> dict[str, Tensor]:
        """Returns Adam's state as ``step`` and ``{index}.{exp_avg, exp_avg_sq}``, without copying."""
        moments = {f"{i}.{name}": view for name, views in self.moments.items() for i, view in enumerate(views)}
        return {"step": self.steps} | moments
