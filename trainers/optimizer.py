"""Adam and Muon with weight decay, the learning-rate schedule, and the gradient clip."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from search_spaces.cell import TrainingSpec
from trainers import muon
from trainers.parametrization import HiddenMatrix

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


class AdamGroup(NamedTuple):
    """Tensors that one call of Adam updates at ``lr_factor`` times the learning rate."""

    lr_factor: float
    values: list[Tensor]
    gradients: list[Tensor]
    exp_avg: list[Tensor]
    exp_avg_sq: list[Tensor]


class Optimizer:
    """torch's fused Adam over one flat vector, with separate weight decay; Muon for the matrices of the blocks, if the
    cell asks for it.

    Parameters, gradients and moments are views of four flat tensors, so that the clip and Adam take a few calls,
    regardless of the number of parameters. In small steps the calls dominate the cost.

    Every matrix is scaled before Adam's step: by ``1 - weight_decay`` (independent: arXiv 2309.14322, section 3.2.3,
    without its schedule) or by ``1 - lr * weight_decay`` (coupled: AdamW, arXiv 1711.05101); norm weights do not decay.
    Cautious decay (arXiv 2510.12402, algorithm 1) scales only the weights whose sign is that of their update, or whose
    update is zero. A learning-rate factor of mup does not act on coupled decay, which stays the same at every width.

    The learning rate is a tensor and ``reset`` works in place, so that a warm process moves from cell to cell without
    new allocations or compilations. This uses torch's ``adam`` function because the ``Adam`` class imports the
    compiler, which takes seconds in each single-process run (DDP imports it in any case).

    The device decides whether a step is taken, so that nothing waits for it: see ``halted``.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], hidden: Iterable[HiddenMatrix] = ()) -> None:
        """Moves the storage of ``parameters`` into one vector and keeps their values.

        Args:
            hidden: those of the parameters that are matrices of blocks.
        """
        self.parameters = list(parameters)
        index = {id(p): i for i, p in enumerate(self.parameters)}
        self.hidden = {index[id(matrix.weight)]: matrix for matrix in hidden}
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
        self.steps, self.lr = self.values.new_zeros(()), self.values.new_zeros(())
        self.halted = self.values.new_zeros(())
        """1 from the first skipped step until ``reset``, else 0. When the host reads the metrics of that step, it has
        already launched the next one, and the weights must still be those before the skipped step."""
        self.betas, self.eps = (0.0, 0.0), 0.0
        self.weight_decay, self.coupled, self.cautious = 0.0, False, False
        self.muon, self.muon_lr_ratio = False, 1.0
        self.adam_groups = self._adam_groups()

    def reset(self, spec: TrainingSpec) -> None:
        """Clears all moments and applies the hyperparameters of ``spec``."""
        self.betas, self.eps = spec.betas, spec.eps
        self.weight_decay, self.coupled = spec.weight_decay, spec.weight_decay_mode == "coupled"
        self.cautious = spec.cautious_weight_decay
        self.muon, self.muon_lr_ratio = spec.optimizer == "muon", spec.muon_lr_ratio
        self.adam_groups = self._adam_groups()
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

    def uses_muon(self, i: int) -> bool:
        """Returns whether parameter ``i`` is updated by Muon, else by Adam."""
        return self.muon and i in self.hidden

    def lr_factor(self, i: int) -> float:
        """Returns the factor on Adam's learning rate for parameter ``i``."""
        return 1.0 / self.hidden[i].width if i in self.hidden else 1.0

    def _adam_groups(self) -> list[AdamGroup]:
        """Returns the groups of Adam: everything as one vector if there is only one group."""
        groups: dict[float, AdamGroup] = {}
        exp_avg, exp_avg_sq = self.moments["exp_avg"], self.moments["exp_avg_sq"]
        for i, p in enumerate(self.parameters):
            if not self.uses_muon(i):
                group = groups.setdefault(self.lr_factor(i), AdamGroup(self.lr_factor(i), [], [], [], []))
                views = (p.data, self.gradients[i], exp_avg[i], exp_avg_sq[i])
                for tensors, view in zip(group[1:], views, strict=True):
                    tensors.append(view)
        if list(groups) == [1.0] and not self.muon:
            return [AdamGroup(1.0, [self.values], [self.gradient], [self.exp_avg], [self.exp_avg_sq])]
        return list(groups.values())

    @torch.no_grad()
    def step(self) -> None:
        """Takes one step at ``self.lr``, unless halted."""
        if self.weight_decay:
            self._decay_matrices_of_adam()
        for i in self.hidden if self.muon else ():
            self._step_of_muon(i)
        if self.adam_groups[0].values[0] is self.values:
            self._step_of_adam(self.adam_groups[0], [self.steps])
            return
        for group in self.adam_groups:
            # Adam counts the steps of each of its tensors.
            steps_N = self.steps.repeat(len(group.values))
            self._step_of_adam(group, list(steps_N.unbind()))
        self.steps.copy_(steps_N[0])

    def _step_of_adam(self, group: AdamGroup, steps: list[Tensor]) -> None:
        adam(
            group.values,
            group.gradients,
            group.exp_avg,
            group.exp_avg_sq,
            [],
            steps,
            fused=True,
            found_inf=self.halted,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=self.lr if group.lr_factor == 1.0 else self.lr * group.lr_factor,
            weight_decay=0.0,
            eps=self.eps,
            maximize=False,
        )

    def _step_of_muon(self, i: int) -> None:
        """Muon's momentum is in ``exp_avg``; it does not use ``exp_avg_sq``."""
        taken = self.halted == 0

        def matrices(weight: Tensor) -> Tensor:
            return weight.view(self.hidden[i].parts, -1, weight.shape[1])

        weight, momentum = matrices(self.parameters[i].data), matrices(self.moments["exp_avg"][i])
        update, new_momentum = muon.update(matrices(self.gradients[i]), momentum)
        lr = self.lr * self.muon_lr_ratio
        decayed = weight * self.decay_factor(weight, update, lr) if self.weight_decay else weight
        weight.copy_(torch.where(taken, decayed - lr * update, weight))
        momentum.copy_(torch.where(taken, new_momentum, momentum))

    def _decay_matrices_of_adam(self) -> None:
        """Adam's step does not depend on the weights, so that they can decay before it."""
        matrices = [i for i, p in enumerate(self.parameters) if p.dim() >= 2 and not self.uses_muon(i)]
        if not self.cautious:
            weights: list[Tensor] = [self.parameters[i] for i in matrices]
            torch._foreach_mul_(weights, self.decay_factor_of_all(self.lr))
            return
        for i in matrices:
            exp_avg = self.moments["exp_avg"][i].lerp(self.gradients[i], 1 - self.betas[0])
            self.parameters[i].mul_(self.decay_factor(self.parameters[i], exp_avg, self.lr))

    def halt(self, condition: Tensor) -> None:
        """Skips all steps until ``reset`` if ``condition``, a boolean on the device, is true."""
        self.halted.copy_(torch.maximum(self.halted, condition.to(self.halted.dtype)))

    def decay_factor(self, weights: Tensor, update: Tensor, lr: Tensor) -> Tensor:
        """Returns the factor by which the weight decay of one step scales the weights.

        Args:
            update: what a step subtracts from the weights, up to a positive factor; with Adam, its first moment.
        """
        factor = self.decay_factor_of_all(lr)
        return torch.where(update.sign() * weights >= 0, factor, 1.0) if self.cautious else factor

    def decay_factor_of_all(self, lr: Tensor) -> Tensor:
        """Returns the factor for weights that decay, 1 if halted."""
        taken = 1.0 - self.halted
        return 1.0 - self.weight_decay * (lr * taken if self.coupled else taken)

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
