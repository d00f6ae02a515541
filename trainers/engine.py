"""What stays warm between cells of one shape: model, DDP wrapper, compiled step, optimizer."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from search_spaces.cell import Cell
from trainers import fused, methods
from trainers.head import CHUNK_BYTES, Losses, Objective
from trainers.model import GPT
from trainers.optimizer import Optimizer
from trainers.world import World

COMPILED_VARIANTS = 64
"""Shapes and micro batches that one process may compile for; dynamo's own limit of 8 is below a sweep's."""


class Step(NamedTuple):
    """One training step, the same on every rank."""

    loss: float
    """Plain cross-entropy, mean over the global batch."""
    grad_norm: float
    """Global L2 norm before the clip."""
    stop: bool
    """Whether any rank asked to stop; the step was then not taken."""

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


def shape_key(cell: Cell) -> tuple[object, ...]:
    """What two cells must share to run on the same engine."""
    spec = cell.training
    return (
        cell.shape,
        cell.attention_norm,
        cell.V,
        cell.model,
        spec.sequence_length,
        spec.precision,
        spec.logits_dtype,
    )


class Engine:
    """Takes training steps for one cell after another; ``reset`` puts it at the start of a cell."""

    def __init__(self, cell: Cell, world: World, *, compile: bool) -> None:
        self.key = shape_key(cell)
        self.world, self.compile = world, compile
        spec = cell.training
        model = GPT(cell.shape, cell.model, cell.V, spec.sequence_length, cell.attention_norm).to(world.device)
        self.objective = Objective(model, spec.precision, spec.logits_dtype)
        self.optimizer = Optimizer(model.parameters())
        self.strength = torch.zeros((), device=world.device)
        self.wrapped: Objective | DistributedDataParallel = self.objective
        if world.size > 1:
            # The buffers are functions of weights that are equal on all ranks.
            self.wrapped = DistributedDataParallel(self.objective, broadcast_buffers=False)
        self.settled: set[tuple[object, ...]] = set()
        self.gradients: fused.Gradients | None = None
        self.fuses = False
        """Whether the cell's steps are small enough to be one compiled function."""
        self.reset(cell)

    def reset(self, cell: Cell) -> None:
        """Initial weights, an empty optimizer, and the cell's hyperparameters, all in place."""
        self.cell = cell
        self.objective.train()
        self.objective.model.reset_parameters(cell.seed)
        self.optimizer.reset(cell.training)
        self.strength.fill_(0.0 if cell.gamma is None else cell.gamma)

    @torch.no_grad()
    def shift_logits(self, tokens_NU: Tensor, by: float) -> None:
        """Moves every row of E along the mean hidden state until the mean logit of ``tokens_NU`` has moved by ``by``.

        All logits of a token move together: in float32 its loss stays what it was.
        """
        model = self.objective.model
        mean_h_D = torch.stack([model(tokens_U[None, :-1]).float().mean(dim=(0, 1)) for tokens_U in tokens_NU]).mean(0)
        model.E_VD.add_(mean_h_D, alpha=by / float(mean_h_D.square().sum()))

    def state(self) -> dict[str, Tensor]:
        """Every tensor that a checkpoint holds, by name; the tensors themselves."""
        adam = {f"adam.{name}": tensor for name, tensor in self.optimizer.state().items()}
        model = self.objective.model.state_dict()
        return {f"model.{name}": tensor for name, tensor in model.items()} | adam

    def settle(self, micro_batch: int) -> None:
        """Runs one throwaway step of this kind, so that compilation and DDP's rebuild of its buckets happen before the
        cell: one that saw both orders of the buckets would not be repeatable."""
        kind: tuple[object, ...] = ()
        if self.compile:
            self.fuses = self._can_fuse(micro_batch)
            kind = (micro_batch, self.cell.method) if self.fuses else (micro_batch,)
        if kind in self.settled or not (self.compile or self.world.size > 1):
            return
        if self.compile:
            self._settle_compiled(micro_batch)
        if not self.compile:
            self.try_out(micro_batch)
        self.settled.add(kind)

    def _can_fuse(self, micro_batch: int) -> bool:
        """Whether a step is small enough to be one compiled function: on one processor, all logits in one chunk."""
        spec, world = self.cell.training, self.world
        logits_bytes = 4 * micro_batch * spec.sequence_length * self.cell.V
        one_processor = world.size == 1 and world.device.type == "cpu" and spec.precision == "float32"
        return one_processor and not self.cell.model.dropout and logits_bytes <= CHUNK_BYTES and fused.supported()

    def _settle_compiled(self, micro_batch: int) -> None:
        import torch._dynamo.config as dynamo  # seconds to import: only where it is asked for
        from torch._dynamo.exc import TorchDynamoException
        from torch._inductor.exc import InductorError

        dynamo.recompile_limit = COMPILED_VARIANTS
        model = self.objective.model
        if self.fuses and self.gradients is None:
            self.gradients = fused.compiled(self.objective, self.optimizer)
        if not self.fuses and self.objective.body == model.forward:
            self.objective.body = torch.compile(model.forward, dynamic=False, fullgraph=True)
        try:
            self.try_out(micro_batch)
        except (TorchDynamoException, InductorError) as error:
            warnings.warn(f"torch.compile failed, training goes on in eager mode: {_first_line(error)}", stacklevel=2)
            self.compile, self.fuses, self.objective.body = False, False, model.forward

    def try_out(self, micro_batch: int) -> None:
        """One forward and backward pass on zeros, without a trace in the weights."""
        T = self.cell.training.sequence_length
        self._backward((torch.zeros(micro_batch, T + 1, dtype=torch.int64, device=self.world.device),), stop=False)
        self.optimizer.zero_grad()

    def step(self, batch_BU: NDArray[np.uint16], *, step: int, lr: float, micro_batch: int, stop: bool = False) -> Step:
        """One optimizer step on this rank's part of the batch, ``(B, T + 1)``, at learning rate ``lr``.

        Nothing is changed where the loss of any rank or the gradient's norm is not finite, or a rank says ``stop``.
        """
        if self.cell.model.dropout:
            torch.manual_seed(_dropout_seed(self.cell.seed, step, self.world.rank))
        self.optimizer.zero_grad()
        flags = self._backward(torch.split(self.to_device(batch_BU), micro_batch), stop)
        norm = self.optimizer.clip(self.cell.training.grad_clip)
        loss, stopping, grad_norm = torch.cat((flags, norm[None])).tolist()  # the one wait for the device
        taken = Step(loss, grad_norm, stopping > 0)
        if taken.finite and not taken.stop:
            self.optimizer.step(lr)
            if constrain := methods.WEIGHTS_MAPS.get(self.cell.method):
                constrain(self.objective.model.E_VD)
            self.objective.model.after_step()
        return taken

    def _backward(self, micro_batches: Sequence[Tensor], stop: bool) -> Tensor:
        """Adds the gradient of this rank's part of the batch, or under DDP of the whole batch, to the optimizer's.

        Returns:
            Mean cross-entropy of the global batch, and how many ranks stop: one small message between them, which
            travels during the last backward pass.
        """
        share, last = 1.0 / len(micro_batches), len(micro_batches) - 1
        flags = torch.tensor((0.0, float(stop)), device=self.world.device)
        wait: Callable[[], object] = _nothing
        for i, tokens_BU in enumerate(micro_batches):
            if self.fuses:
                assert self.gradients is not None
                flags[0] += share * self.gradients(tokens_BU, self.cell.method, self.strength, share)
                continue
            quiet = isinstance(self.wrapped, DistributedDataParallel) and i < last
            with self.wrapped.no_sync() if quiet else nullcontext():  # type: ignore[operator]
                losses: Losses = self.wrapped(tokens_BU, self.cell.method, self.strength)
                flags[0] += losses.cross_entropy * (share / self.world.size)
                if i == last:
                    wait = self.world.sum_async(flags)
                torch.autograd.backward(losses.objective * share)
        wait()
        return flags

    def loss(self, tokens_NU: Tensor, micro_batch: int) -> float:
        """Mean plain cross-entropy of the sequences ``(N, T + 1)``, shared out over the ranks."""
        mine = tokens_NU[self.world.rank :: self.world.size]
        return self.mean_loss(torch.split(mine, micro_batch), len(tokens_NU))

    @torch.no_grad()
    def mean_loss(self, batches: Iterable[Tensor], N: int) -> float:
        """Mean plain cross-entropy of N sequences, of which this rank has ``batches``, each ``(B, T + 1)``."""
        total = torch.zeros((), dtype=torch.float64, device=self.world.device)
        self.objective.eval()
        for tokens_BU in batches:
            total += self.objective.eager(tokens_BU, self.cell.method, self.strength).cross_entropy * len(tokens_BU)
        self.objective.train()
        return float(self.world.sum(total)) / N

    def to_device(self, tokens: NDArray[np.uint16]) -> Tensor:
        """Token ids as an index tensor on the device; they travel as 16 bits."""
        narrow = torch.from_numpy(tokens)
        if self.world.device.type == "cuda":
            narrow = narrow.pin_memory().to(self.world.device, non_blocking=True)
        return narrow.to(torch.int64)


def _nothing() -> None:
    """The wait of a single process."""


def _dropout_seed(seed: int, step: int, rank: int) -> int:
    """A function of where the run stands, so that a resumed run drops what an uninterrupted one does."""
    return int.from_bytes(hashlib.sha256(f"{seed} {step} {rank}".encode()).digest()[:7])


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
