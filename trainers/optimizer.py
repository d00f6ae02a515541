"""Adam and Muon with weight decay, the learning-rate schedule, and the gradient clip."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from search_spaces.training_spec import TrainingSpec
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


class Slot(NamedTuple):
    """A parameter, its gradient and Adam's moments: four views of the same place in the flat tensors."""

    value: Tensor
    gradient: Tensor
    exp_avg: Tensor
    """With Muon, its momentum."""
    exp_avg_sq: Tensor
    """Not used by Muon."""
    hidden: HiddenMatrix | None = None
    """What is known of a matrix of a block."""

    @property
    def lr_factor(self) -> float:
        """The factor on Adam's learning rate."""
        return 1.0 / self.hidden.width if self.hidden else 1.0


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
        sizes = [p.numel() for p in self.parameters]
        # Each parameter starts on a cache line; the padding between them stays zero.
        ends = list(accumulate(-(-size // CACHE_LINE_FLOATS) * CACHE_LINE_FLOATS for size in sizes))
        starts, total = [0, *ends[:-1]], -(-ends[-1] // NORM_ROW) * NORM_ROW
        zeros = self.parameters[0].new_zeros
        self.values, self.gradient, self.exp_avg, self.exp_avg_sq = (zeros(total) for _ in range(4))
        self.flat = Slot(self.values, self.gradient, self.exp_avg, self.exp_avg_sq)
        """All parameters at once."""
        matrices = {id(matrix.weight): matrix for matrix in hidden}
        self.slots: list[Slot] = []
        for p, start, size in zip(self.parameters, starts, sizes, strict=True):
            views = (flat[start : start + size].view(p.shape) for flat in self.flat[:4])
            value, gradient, exp_avg, exp_avg_sq = views
            value.copy_(p.detach())
            p.data, p.grad = value, gradient
            self.slots.append(Slot(p, gradient, exp_avg, exp_avg_sq, matrices.get(id(p))))
        self.steps, self.lr = self.values.new_zeros(()), self.values.new_zeros(())
        self.halted = self.values.new_zeros(())
        """1 from the first skipped step until ``reset``, else 0. When the host reads the metrics of that step, it has
        already launched the next one, and the weights must still be those before the skipped step."""

    def reset(self, spec: TrainingSpec) -> None:
        """Clears all moments and applies the hyperparameters of ``spec``."""
        self.spec = spec
        uses_muon = spec.optimizer == "muon"
        self.muon = [slot for slot in self.slots if uses_muon and slot.hidden]
        self.adam = [slot for slot in self.slots if not (uses_muon and slot.hidden)]
        groups: dict[float, list[Slot]] = {}
        for slot in self.adam:
            groups.setdefault(slot.lr_factor, []).append(slot)
        one_vector = list(groups) == [1.0] and not self.muon
        self.adam_groups = {1.0: [self.flat]} if one_vector else groups
        """What each call of Adam updates, by its factor on the learning rate."""
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
        if self.spec.weight_decay:
            self._decay_adam_matrices()
        for slot in self.muon:
            self._muon_step(slot)
        for lr_factor, slots in self.adam_groups.items():
            # Adam counts the steps of each of its tensors.
            steps = [self.steps] if slots[0] is self.flat else list(self.steps.repeat(len(slots)).unbind())
            self._adam_step(lr_factor, slots, steps)
        if steps[0] is not self.steps:
            self.steps.copy_(steps[0])

    def _adam_step(self, lr_factor: float, slots: list[Slot], steps: list[Tensor]) -> None:
        adam(
            [slot.value for slot in slots],
            [slot.gradient for slot in slots],
            [slot.exp_avg for slot in slots],
            [slot.exp_avg_sq for slot in slots],
            [],
            steps,
            fused=True,
            found_inf=self.halted,
            amsgrad=False,
            beta1=self.spec.betas[0],
            beta2=self.spec.betas[1],
            lr=self.lr if lr_factor == 1.0 else self.lr * lr_factor,
            weight_decay=0.0,
            eps=self.spec.eps,
            maximize=False,
        )

    def _muon_step(self, slot: Slot) -> None:
        assert slot.hidden
        parts, taken = slot.hidden.parts, self.halted == 0
        weight, gradient, momentum = (x.view(parts, -1, x.shape[1]) for x in (slot.value, slot.gradient, slot.exp_avg))
        update, new_momentum = muon.update(gradient, momentum)
        lr = self.lr * self.spec.muon_lr_ratio
        decayed = weight * self.decay_factor(weight, update, lr) if self.spec.weight_decay else weight
        weight.copy_(torch.where(taken, decayed - lr * update, weight))
        momentum.copy_(torch.where(taken, new_momentum, momentum))

    def _decay_adam_matrices(self) -> None:
        """Adam's step does not depend on the weights, so that they can decay before it."""
        matrices = [slot for slot in self.adam if slot.value.dim() >= 2]
        if not self.spec.cautious_weight_decay:
            torch._foreach_mul_([slot.value for slot in matrices], self._uniform_decay_factor(self.lr))
            return
        for slot in matrices:
            exp_avg = slot.exp_avg.lerp(slot.gradient, 1 - self.spec.betas[0])
            slot.value.mul_(self.decay_factor(slot.value, exp_avg, self.lr))

    def halt(self, condition: Tensor) -> None:
        """Skips all steps until ``reset`` if ``condition``, a boolean on the device, is true."""
        self.halted.copy_(torch.maximum(self.halted, condition.to(self.halted.dtype)))

    def decay_factor(self, weights: Tensor, update: Tensor, lr: Tensor) -> Tensor:
        """Returns the factor by which the weight decay of one step scales the weights.

        Args:
            update: what a step subtracts from the weights, up to a positive factor; with Adam, its first moment.
        """
        factor = self._uniform_decay_factor(lr)
        cautious = self.spec.cautious_weight_decay
        return torch.where(update.sign() * weights >= 0, factor, 1.0) if cautious else factor

    def _uniform_decay_factor(self, lr: Tensor) -> Tensor:
        """Returns the factor for weights that decay, 1 if halted."""
        taken = 1.0 - self.halted
        coupled = self.spec.weight_decay_mode == "coupled"
        return 1.0 - self.spec.weight_decay * (lr * taken if coupled else taken)

    @torch.no_grad()
    def unless_halted(self, change: Callable[[], object], tensors: Sequence[Tensor]) -> None:
        """Calls ``change``, which modifies ``tensors`` in place, and undoes it if the step was skipped."""
        before = [tensor.clone() for tensor in tensors]
        change()
        for tensor, old in zip(tensors, before, strict=True):
            torch.where(self.halted > 0, old, tensor, out=tensor)

    def state(self) -> dict[str, Tensor]:
        """Returns Adam's state as ``step`` and ``{index}.{exp_avg, exp_avg_sq}``, without copying."""
        return {
            "step": self.steps,
            **{f"{i}.exp_avg": slot.exp_avg for i, slot in enumerate(self.slots)},
            **{f"{i}.exp_avg_sq": slot.exp_avg_sq for i, slot in enumerate(self.slots)},
        }
