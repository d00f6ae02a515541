"""What stays warm between cells of one shape: model, DDP wrapper, compiled step, optimizer."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from search_spaces.cell import Cell
from trainers import fused, head, methods
from trainers.head import Losses, Objective
from trainers.model import GPT, Block
from trainers.optimizer import Optimizer, refused
from trainers.world import World

Program = Callable[[Tensor], Tensor]
"""Takes a step on this rank's tokens ``(B, T + 1)`` and gives its figures: loss, ranks that stop, gradient norm."""
EVALUATED_SHARE = 8
"""An accelerator evaluates this part of a micro batch at once: what a pass without gradients needs is then a small part
of what a step needs, for which the room was tried out."""
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


class Launched:
    """A step on its way. Its figures are read when the next one is launched, so that an accelerator never waits."""

    def __init__(self, figures_3: Tensor) -> None:
        """
        Args:
            figures_3: loss, ranks that stop, and gradient norm.
        """
        self._figures_3, self._arrived = figures_3, None
        if figures_3.device.type == "cuda":
            self._figures_3 = torch.empty_like(figures_3, device="cpu", pin_memory=True)
            self._figures_3.copy_(figures_3, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def read(self) -> Step:
        """Waits for the step to end."""
        if self._arrived:
            self._arrived.synchronize()
        loss, stopping, grad_norm = self._figures_3.tolist()
        return Step(loss, grad_norm, stopping > 0)


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
        spec.deterministic,
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
        self.controls = torch.zeros(2, device=world.device)
        """Learning rate of a step, and whether this rank asks to stop: all that the host tells it beside the tokens."""
        self.programs: dict[tuple[object, ...], Program] = {}
        self.pool: Any = torch.cuda.graph_pool_handle() if world.device.type == "cuda" else None
        """Memory of all recorded steps: no two are replayed at once, and none leaves anything there for another."""
        self.reset(cell)

    @cached_property
    def wrapped(self) -> Objective | DistributedDataParallel:
        """In DDP where there are several ranks; made when first asked for, by all ranks at once.

        Recorded steps do without it, and it would break the recording: it holds nodes of autograd, which belong to the
        stream that they were made on.
        """
        if self.world.size == 1:
            return self.objective
        # The buffers are functions of weights that are equal on all ranks.
        return DistributedDataParallel(self.objective, broadcast_buffers=False)

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
        """Prepares steps of the cell's kind, so that compilation and DDP's rebuild of its buckets happen before the
        cell: one that saw both orders of the buckets would not be repeatable."""
        kind = self._kind(micro_batch)
        if kind in self.programs:
            return
        try:
            if self.compile:
                self._compile()
            self.programs[kind] = self._prepared(micro_batch)
        except _compiler_errors() as error:
            warnings.warn(f"torch.compile failed, training goes on in eager mode: {_first_line(error)}", stacklevel=2)
            self.compile, self.objective.body, self.objective.chunk = False, self.objective.model.forward, None
            self.optimizer.halted.zero_()
            self.programs[kind] = self._prepared(micro_batch)

    def _kind(self, micro_batch: int) -> tuple[object, ...]:
        """What steps must share to be prepared once: never the learning rate, the strength or the seed."""
        spec = self.cell.training
        hyperparameters = (spec.betas, spec.eps, spec.weight_decay, spec.weight_decay_mode, spec.grad_clip)
        return (micro_batch, spec.batch_size, self.cell.method, *hyperparameters)

    def _compile(self) -> None:
        """The body, block by block, and on an accelerator the head. A small step of a processor is compiled apart."""
        import torch._dynamo.config as dynamo

        dynamo.recompile_limit = COMPILED_VARIANTS
        model = self.objective.model
        if self.objective.body == model.forward:
            block = torch.compile(Block.forward, dynamic=False, fullgraph=True)
            self.objective.body = partial(model.forward, call=block)
            if self.world.device.type != "cpu":
                self.objective.chunk = torch.compile(head.chunk, dynamic=False, fullgraph=True, options=head.OPTIONS)
                total = torch.cuda.get_device_properties(self.world.device).total_memory
                self.objective.at_once = head.fitting(self.cell.V, self.world.share * total)

    def _prepared(self, micro_batch: int) -> Program:
        """How steps of this kind are taken; tried out on zeros, by steps that may not be taken."""
        spec, method = self.cell.training, self.cell.method
        program: Program = partial(self._step, micro_batch=micro_batch)
        if not self.compile and self.world.size == 1:
            return program
        self.optimizer.halted.fill_(1.0)
        if self.compile and self._can_fuse(micro_batch):
            step = fused.compiled(self.objective, self.optimizer, spec, fused.of_head(method), micro_batch)
            program = partial(self._fused, step)
        elif self.compile and self.world.device.type == "cuda" and not self.cell.model.dropout:
            program = self._captured(micro_batch)
        zeros_BU = np.zeros((spec.batch_size // self.world.size, spec.sequence_length + 1), np.uint16)
        program(self.to_device(zeros_BU))
        self.optimizer.halted.zero_()
        return program

    def _can_fuse(self, micro_batch: int) -> bool:
        """Whether a step is small enough to be one compiled function: on one processor, all logits in one chunk."""
        spec, world = self.cell.training, self.world
        logits_bytes = 4 * micro_batch * spec.sequence_length * self.cell.V
        one_processor = world.size == 1 and world.device.type == "cpu" and spec.precision == "float32"
        small = logits_bytes <= head.CHUNK_BYTES and spec.batch_size <= micro_batch * fused.MOST_PARTS
        return one_processor and not self.cell.model.dropout and small and fused.supported()

    def try_out(self, micro_batch: int) -> None:
        """One forward and backward pass on zeros, without a trace in the weights.

        By the bare module: what runs out of memory in the middle of a backward pass would leave DDP's reducer waiting
        for the rest of it.
        """
        T = self.cell.training.sequence_length
        zeros_BU = torch.zeros(micro_batch, T + 1, dtype=torch.int64, device=self.world.device)
        torch.autograd.backward(self.objective(zeros_BU, self.cell.method, self.strength).objective)
        self.optimizer.zero_grad()

    def step(self, batch_BU: NDArray[np.uint16], *, step: int, lr: float, micro_batch: int, stop: bool = False) -> Step:
        """``launch`` and a wait for it."""
        return self.launch(batch_BU, step=step, lr=lr, micro_batch=micro_batch, stop=stop).read()

    def launch(
        self, batch_BU: NDArray[np.uint16], *, step: int, lr: float, micro_batch: int, stop: bool = False
    ) -> Launched:
        """Starts one optimizer step on this rank's part of the batch, ``(B, T + 1)``, at learning rate ``lr``.

        Nothing is changed by it, nor by any step after it until ``reset``, where the loss of any rank or the gradient's
        norm is not finite, or a rank says ``stop``. All of it is decided on the device.
        """
        if self.cell.model.dropout:
            torch.manual_seed(_dropout_seed(self.cell.seed, step, self.world.rank))
        program = self.programs.get(self._kind(micro_batch)) or partial(self._step, micro_batch=micro_batch)
        self._control(lr, stop)
        return Launched(program(self.to_device(batch_BU)))

    def _control(self, lr: float, stop: bool) -> None:
        controls_2 = torch.tensor((lr, float(stop)), pin_memory=self.world.device.type == "cuda")
        self.controls.copy_(controls_2, non_blocking=True)

    def _step(self, tokens_BU: Tensor, micro_batch: int) -> Tensor:
        """One step by the calls that it is made of; its figures."""
        self.optimizer.zero_grad()
        return self._update(self._backward(torch.split(tokens_BU, micro_batch)))

    def _fused(self, step: fused.Step, tokens_BU: Tensor) -> Tensor:
        figures_3 = step(tokens_BU, self.controls, self.strength)
        self._after_step()
        return figures_3

    def _update(self, flags_2: Tensor) -> Tensor:
        """Takes the step whose gradient is there, if it may be taken.

        Args:
            flags_2: loss, and ranks that stop.
        """
        optimizer = self.optimizer
        optimizer.lr.copy_(self.controls[0])
        figures_3 = torch.cat((flags_2, optimizer.clip(self.cell.training.grad_clip)[None]))
        optimizer.halt(refused(figures_3))
        optimizer.step()
        self._after_step()
        return figures_3

    def _after_step(self) -> None:
        """What a method or an attention norm does to the weights when the optimizer has changed them."""
        model = self.objective.model
        if constrain := methods.WEIGHTS_MAPS.get(self.cell.method):
            self.optimizer.unless_halted(partial(constrain, model.E_VD), [model.E_VD])
        if model.moving:
            self.optimizer.unless_halted(model.after_step, model.moving)

    def _backward(self, micro_batches: Sequence[Tensor], *, alone: bool = False) -> Tensor:
        """Adds the gradient of this rank's part of the batch, or under DDP of the whole batch, to the optimizer's.

        Args:
            alone: without DDP and without a message; a sum over ranks of the gradient and of what is returned follows.

        Returns:
            Mean cross-entropy of the global batch, and how many ranks stop: one small message between them, which
            travels during the last backward pass.
        """
        module, ranks = (self.objective, self.world.size) if alone else (self.wrapped, 1)
        share, last = 1.0 / len(micro_batches), len(micro_batches) - 1
        flags_2 = torch.stack((torch.zeros_like(self.controls[0]), self.controls[1]))
        wait: Callable[[], object] = _nothing
        for i, tokens_BU in enumerate(micro_batches):
            quiet = isinstance(module, DistributedDataParallel) and i < last
            with module.no_sync() if quiet else nullcontext():  # type: ignore[operator]
                losses: Losses = module(tokens_BU, self.cell.method, self.strength)
                flags_2[0] += losses.cross_entropy * (share / self.world.size)
                if i == last and not alone:
                    wait = self.world.sum_async(flags_2)
                torch.autograd.backward(losses.objective * (share / ranks))
        wait()
        return flags_2

    def _own_backward(self, tokens_BU: Tensor, micro_batch: int) -> Tensor:
        """A step up to the sum over ranks."""
        self.optimizer.zero_grad()
        return self._backward(torch.split(tokens_BU, micro_batch), alone=True)

    def _captured(self, micro_batch: int) -> Program:
        """Steps as CUDA graphs, a launch each: the whole step, or with several ranks what comes before and after the
        sum over them."""
        spec, world = self.cell.training, self.world
        shape = (spec.batch_size // world.size, spec.sequence_length + 1)
        tokens_BU = torch.zeros(shape, dtype=torch.int64, device=world.device)
        if world.size == 1:
            step = Recorded(partial(self._step, tokens_BU, micro_batch), self.pool)

            def replay(batch_BU: Tensor) -> Tensor:
                tokens_BU.copy_(batch_BU)
                return step()

            return replay
        backward = Recorded(partial(self._own_backward, tokens_BU, micro_batch), self.pool)
        update = Recorded(partial(self._update, backward.result), self.pool)

        def replay_between(batch_BU: Tensor) -> Tensor:
            tokens_BU.copy_(batch_BU)
            flags_2 = backward()
            world.sum(self.optimizer.gradient)
            world.sum(flags_2)
            return update()

        return replay_between

    def loss(self, tokens_NU: Tensor, micro_batch: int) -> float:
        """Mean plain cross-entropy of the sequences ``(N, T + 1)``, shared out over the ranks."""
        mine = tokens_NU[self.world.rank :: self.world.size]
        return self.mean_loss(torch.split(mine, self.evaluated_at_once(micro_batch)), len(tokens_NU))

    def evaluated_at_once(self, micro_batch: int) -> int:
        """Sequences of a forward pass without gradients, which fits beside everything that training holds."""
        return micro_batch if self.world.device.type == "cpu" else max(1, micro_batch // EVALUATED_SHARE)

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


class Recorded:
    """Calls on the device as a CUDA graph; each call of it does them again on the same memory.

    What they read and write must stay where it is, and nothing may come back to the host in between.
    """

    def __init__(self, work: Callable[[], Tensor], pool: Any) -> None:
        """Calls ``work`` twice, so that what happens once only, as compilation, comes before the recording.

        Args:
            pool: handle of the memory that it shares with other recordings.
        """
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(2):
                work()
        torch.cuda.current_stream().wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        # Of this thread: those of NCCL go on asking for their events meanwhile.
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self.result = work()

    def __call__(self) -> Tensor:
        self._graph.replay()
        return self.result


def _compiler_errors() -> tuple[type[Exception], ...]:
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError

    return TorchDynamoException, InductorError


def _nothing() -> None:
    """The wait of a single process."""


def _dropout_seed(seed: int, step: int, rank: int) -> int:
    """A function of where the run stands, so that a resumed run drops what an uninterrupted one does."""
    return int.from_bytes(hashlib.sha256(f"{seed} {step} {rank}".encode()).digest()[:7])


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
