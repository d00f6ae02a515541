"""Everything that stays warm between cells of one shape: model, DDP wrapper, compiled step, optimizer."""

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
from trainers.captured_graph import CapturedGraph
from trainers.head import Losses, Objective
from trainers.model import GPT, Block
from trainers.optimizer import Optimizer, must_skip
from trainers.qk_clip import share_largest_logits
from trainers.world import World

Program = Callable[[Tensor], Tensor]
"""Takes a step on this rank's tokens ``(B, T + 1)`` and returns ``metrics_3``: loss, number of ranks that asked to
stop, gradient norm."""
EVAL_BATCH_DIVISOR = 8
"""An accelerator evaluates this fraction of a micro batch at a time. A pass without gradients then needs little memory
compared with a step, which is what the micro batch was chosen for."""
MAX_COMPILED_VARIANTS = 64
"""Shapes and micro batches that one process may compile; dynamo's default of 8 is too low for a sweep."""


class Step(NamedTuple):
    """One training step, the same on every rank."""

    loss: float
    """Plain cross-entropy, mean over the global batch."""
    grad_norm: float
    """Global L2 norm before clipping."""
    stop: bool
    """Whether any rank asked to stop; the step was then not taken."""

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


class PendingStep:
    """A launched step. Its metrics are read after the next step was launched, so that an accelerator never waits."""

    def __init__(self, metrics_3: Tensor) -> None:
        """
        Args:
            metrics_3: loss, number of ranks that asked to stop, and gradient norm.
        """
        self._metrics_3, self._arrived = metrics_3, None
        if metrics_3.device.type == "cuda":
            self._metrics_3 = torch.empty_like(metrics_3, device="cpu", pin_memory=True)
            self._metrics_3.copy_(metrics_3, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def read(self) -> Step:
        """Waits for the step to finish."""
        if self._arrived:
            self._arrived.synchronize()
        loss, stopping, grad_norm = self._metrics_3.tolist()
        return Step(loss, grad_norm, stopping > 0)


def shape_key(cell: Cell) -> tuple[object, ...]:
    """Returns what two cells must share to run on the same engine."""
    spec = cell.training
    return (
        cell.shape,
        cell.base_shape,
        cell.attention_norm,
        cell.V,
        cell.model,
        spec.sequence_length,
        spec.precision,
        spec.logits_dtype,
        spec.deterministic,
    )


class Engine:
    """Takes training steps for one cell after another; ``reset`` moves it to the start of a cell."""

    def __init__(self, cell: Cell, world: World, *, compile: bool) -> None:
        self.key = shape_key(cell)
        self.world, self.compile = world, compile
        spec = cell.training
        shape = (cell.V, spec.sequence_length, cell.attention_norm, cell.base_shape)
        model = GPT(cell.shape, cell.model, *shape).to(world.device)
        self.objective = Objective(model, spec.precision, spec.logits_dtype)
        self.optimizer = Optimizer(model.parameters(), model.hidden_matrices())
        self.gamma = torch.zeros((), device=world.device)
        self.controls = torch.zeros(2, device=world.device)
        """Learning rate of a step, and whether this rank asks to stop: the host's only inputs besides the tokens."""
        self.programs: dict[tuple[object, ...], Program] = {}
        self.pool: Any = torch.cuda.graph_pool_handle() if world.device.type == "cuda" else None
        """Memory shared by all captured steps: no two of them run at the same time, and none leaves data behind."""
        self.reset(cell)

    @cached_property
    def ddp_module(self) -> Objective | DistributedDataParallel:
        """The objective, wrapped in DDP if there are several ranks. All ranks create it together, on first use.

        Captured steps do not use it, and it would break the capture: DDP holds autograd nodes, which belong to the
        stream that they were created on.
        """
        if self.world.size == 1:
            return self.objective
        # The buffers are functions of the weights, which are equal on all ranks.
        return DistributedDataParallel(self.objective, broadcast_buffers=False)

    def reset(self, cell: Cell) -> None:
        """Sets initial weights, an empty optimizer, and the cell's hyperparameters, all in place."""
        self.cell = cell
        self.objective.train()
        self.objective.model.reset_parameters(cell.seed)
        self.optimizer.reset(cell.training)
        self.gamma.fill_(0.0 if cell.gamma is None else cell.gamma)

    @torch.no_grad()
    def shift_logits(self, tokens_NU: Tensor, by: float) -> None:
        """Moves every row of E along the mean hidden state until the mean logit of ``tokens_NU`` has moved by ``by``.

        All logits of a token move together, so in float32 its loss does not change.
        """
        model = self.objective.model
        mean_h_D = torch.stack([model(tokens_U[None, :-1]).float().mean(dim=(0, 1)) for tokens_U in tokens_NU]).mean(0)
        model.E_VD.add_(mean_h_D, alpha=by / float(mean_h_D.square().sum()))

    def state(self) -> dict[str, Tensor]:
        """Returns every tensor of a checkpoint by name, without copying."""
        adam = {f"adam.{name}": tensor for name, tensor in self.optimizer.state().items()}
        model = self.objective.model.state_dict()
        return {f"model.{name}": tensor for name, tensor in model.items()} | adam

    def warm_up(self, micro_batch: int) -> None:
        """Runs one throwaway step, so that compilation and DDP's bucket rebuild happen before the cell. A cell that
        trained with both orders of the buckets would not be reproducible."""
        key = self._program_key(micro_batch)
        if key in self.programs:
            return
        try:
            if self.compile:
                self._compile()
            self.programs[key] = self._prepare_program(micro_batch)
        except _compiler_errors() as error:
            warnings.warn(f"torch.compile failed, training continues in eager mode: {_first_line(error)}", stacklevel=2)
            self.compile, self.objective.body, self.objective.chunk = False, self.objective.model.forward, None
            self.optimizer.halted.zero_()
            self.programs[key] = self._prepare_program(micro_batch)

    def _program_key(self, micro_batch: int) -> tuple[object, ...]:
        """Returns what steps must share to use the same program. It excludes learning rate, gamma and seed."""
        spec = self.cell.training
        optimizer = (spec.optimizer, spec.muon_lr_ratio, spec.betas, spec.eps)
        decay = (spec.weight_decay, spec.weight_decay_mode, spec.cautious_weight_decay)
        return (micro_batch, spec.batch_size, self.cell.method, *optimizer, *decay, spec.grad_clip)

    def _compile(self) -> None:
        """Compiles one block for all blocks and, on an accelerator, the head. Small CPU steps are ``fused``'s."""
        import torch._dynamo.config as dynamo

        dynamo.recompile_limit = MAX_COMPILED_VARIANTS
        model = self.objective.model
        if self.objective.body == model.forward:
            block = torch.compile(Block.forward, dynamic=False, fullgraph=True)
            self.objective.body = partial(model.forward, call=block)
            if self.world.device.type != "cpu":
                options = head.COMPILE_OPTIONS
                self.objective.chunk = torch.compile(head.compute_chunk, dynamic=False, fullgraph=True, options=options)
                total = torch.cuda.get_device_properties(self.world.device).total_memory
                self.objective.chunk_size = head.chunk_tokens(self.cell.V, self.world.memory_share * total)

    def _prepare_program(self, micro_batch: int) -> Program:
        """Returns the program for steps of this kind, after running it on zeros with the optimizer halted."""
        spec, method = self.cell.training, self.cell.method
        program: Program = partial(self._step, micro_batch=micro_batch)
        if not self.compile and self.world.size == 1:
            return program
        self.optimizer.halted.fill_(1.0)
        if self.compile and self._can_fuse(micro_batch):
            step = fused.compile_step(self.objective, self.optimizer, spec, fused.gradient_method(method), micro_batch)
            program = partial(self._fused_step, step)
        elif self.compile and self.world.device.type == "cuda" and not self.cell.model.dropout:
            program = self._capture_step(micro_batch)
        zeros_BU = np.zeros((spec.batch_size // self.world.size, spec.sequence_length + 1), np.uint16)
        program(self.to_device(zeros_BU))
        self.optimizer.halted.zero_()
        return program

    def _can_fuse(self, micro_batch: int) -> bool:
        """Returns whether a step can be one compiled function: in a single CPU process, all logits in one chunk, with
        Adam and without QK-clip."""
        spec, world = self.cell.training, self.world
        logits_bytes = 4 * micro_batch * spec.sequence_length * self.cell.V
        single_cpu = world.size == 1 and world.device.type == "cpu" and spec.precision == "float32"
        small = logits_bytes <= head.CHUNK_BYTES and spec.batch_size <= micro_batch * fused.MAX_MICRO_BATCHES
        plain = spec.optimizer == "adamw" and not self.cell.model.dropout and not self.objective.model.qk_clips
        return single_cpu and plain and small and fused.is_supported()

    def dry_run_step(self, micro_batch: int) -> None:
        """Runs one forward and backward pass on zeros that does not change the weights.

        It uses the bare module: if a rank runs out of memory in the middle of a backward pass, DDP's reducer would
        wait for the rest of that pass.
        """
        T = self.cell.training.sequence_length
        zeros_BU = torch.zeros(micro_batch, T + 1, dtype=torch.int64, device=self.world.device)
        torch.autograd.backward(self.objective(zeros_BU, self.cell.method, self.gamma).objective)
        self.optimizer.zero_grad()

    def step(self, batch_BU: NDArray[np.uint16], *, step: int, lr: float, micro_batch: int, stop: bool = False) -> Step:
        """Launches a step and waits for it."""
        return self.launch(batch_BU, step=step, lr=lr, micro_batch=micro_batch, stop=stop).read()

    def launch(
        self, batch_BU: NDArray[np.uint16], *, step: int, lr: float, micro_batch: int, stop: bool = False
    ) -> PendingStep:
        """Starts one optimizer step on this rank's part of the batch, ``(B, T + 1)``, at learning rate ``lr``.

        If the loss of any rank or the gradient norm is not finite, or any rank passes ``stop``, neither this step nor
        any later one changes anything until ``reset``. The device makes that decision.
        """
        if self.cell.model.dropout:
            torch.manual_seed(_dropout_seed(self.cell.seed, step, self.world.rank))
        program = self.programs.get(self._program_key(micro_batch)) or partial(self._step, micro_batch=micro_batch)
        self._set_controls(lr, stop)
        return PendingStep(program(self.to_device(batch_BU)))

    def _set_controls(self, lr: float, stop: bool) -> None:
        controls_2 = torch.tensor((lr, float(stop)), pin_memory=self.world.device.type == "cuda")
        self.controls.copy_(controls_2, non_blocking=True)

    def _step(self, tokens_BU: Tensor, micro_batch: int) -> Tensor:
        """The eager program."""
        self._before_step()
        return self._update(self._backward(torch.split(tokens_BU, micro_batch)))

    def _before_step(self) -> None:
        self.optimizer.zero_grad()
        self.objective.model.before_step()

    def _fused_step(self, step: fused.Step, tokens_BU: Tensor) -> Tensor:
        metrics_3 = step(tokens_BU, self.controls, self.gamma)
        self._after_step()
        return metrics_3

    def _update(self, loss_and_stops_2: Tensor) -> Tensor:
        """Clips the gradient and takes the step, unless it must be skipped. Returns ``metrics_3``."""
        optimizer = self.optimizer
        optimizer.lr.copy_(self.controls[0])
        metrics_3 = torch.cat((loss_and_stops_2, optimizer.clip(self.cell.training.grad_clip)[None]))
        optimizer.halt(must_skip(metrics_3))
        optimizer.step()
        self._after_step()
        return metrics_3

    def _after_step(self) -> None:
        """Applies the changes that a method or an attention norm makes to the weights after each optimizer step."""
        model = self.objective.model
        if constrain := methods.WEIGHTS_MAPS.get(self.cell.method):
            self.optimizer.unless_halted(partial(constrain, model.E_VD), [model.E_VD])
        model.clip_qk(self.optimizer.halted)
        if model.step_buffers:
            self.optimizer.unless_halted(model.after_step, model.step_buffers)

    def _backward(self, micro_batches: Sequence[Tensor], *, local: bool = False) -> Tensor:
        """Adds the gradient of this rank's part of the batch, or under DDP of the whole batch, to the optimizer's.

        Args:
            local: do not use DDP, and do not communicate; the caller sums the gradient and the result over the ranks.

        Returns:
            Mean cross-entropy of the global batch, and the number of ranks that asked to stop: one small message
            between the ranks, which is in flight during the last backward pass.
        """
        module, ranks = (self.objective, self.world.size) if local else (self.ddp_module, 1)
        share, last = 1.0 / len(micro_batches), len(micro_batches) - 1
        loss_and_stops_2 = torch.stack((torch.zeros_like(self.controls[0]), self.controls[1]))
        wait: Callable[[], object] | None = None
        for i, tokens_BU in enumerate(micro_batches):
            accumulates = isinstance(module, DistributedDataParallel) and i < last
            with module.no_sync() if accumulates else nullcontext():  # type: ignore[operator]
                losses: Losses = module(tokens_BU, self.cell.method, self.gamma)
                loss_and_stops_2[0] += losses.cross_entropy * (share / self.world.size)
                if i == last and not local:
                    wait = self.world.sum_async(loss_and_stops_2)
                torch.autograd.backward(losses.objective * (share / ranks))
        if wait:
            wait()
            share_largest_logits(self.objective.model.qk_clips, self.world)
        return loss_and_stops_2

    def _local_backward(self, tokens_BU: Tensor, micro_batch: int) -> Tensor:
        """The part of a step before the sum over ranks."""
        self._before_step()
        return self._backward(torch.split(tokens_BU, micro_batch), local=True)

    def _capture_step(self, micro_batch: int) -> Program:
        """Returns a program of CUDA graphs: one for the whole step, or with several ranks one for the part before the
        sum over ranks and one for the part after it."""
        spec, world = self.cell.training, self.world
        shape = (spec.batch_size // world.size, spec.sequence_length + 1)
        tokens_BU = torch.zeros(shape, dtype=torch.int64, device=world.device)
        if world.size == 1:
            step = CapturedGraph(partial(self._step, tokens_BU, micro_batch), self.pool)

            def replay(batch_BU: Tensor) -> Tensor:
                tokens_BU.copy_(batch_BU)
                return step()

            return replay
        backward = CapturedGraph(partial(self._local_backward, tokens_BU, micro_batch), self.pool)
        update = CapturedGraph(partial(self._update, backward.result), self.pool)

        def replay_with_sum(batch_BU: Tensor) -> Tensor:
            tokens_BU.copy_(batch_BU)
            loss_and_stops_2 = backward()
            world.sum(self.optimizer.gradient)
            world.sum(loss_and_stops_2)
            share_largest_logits(self.objective.model.qk_clips, self.world)
            return update()

        return replay_with_sum

    def loss(self, tokens_NU: Tensor, micro_batch: int) -> float:
        """Returns the mean plain cross-entropy of the sequences ``(N, T + 1)``, which are divided among the ranks."""
        mine = tokens_NU[self.world.rank :: self.world.size]
        return self.mean_loss(torch.split(mine, self.eval_batch_size(micro_batch)), len(tokens_NU))

    def eval_batch_size(self, micro_batch: int) -> int:
        """Returns the batch size of a pass without gradients, which has to fit beside the training state."""
        return micro_batch if self.world.device.type == "cpu" else max(1, micro_batch // EVAL_BATCH_DIVISOR)

    @torch.no_grad()
    def mean_loss(self, batches: Iterable[Tensor], N: int) -> float:
        """Returns the mean plain cross-entropy of N sequences; ``batches``, each ``(B, T + 1)``, are this rank's."""
        total = torch.zeros((), dtype=torch.float64, device=self.world.device)
        self.objective.eval()
        for tokens_BU in batches:
            total += self.objective.eager(tokens_BU, self.cell.method, self.gamma).cross_entropy * len(tokens_BU)
        self.objective.train()
        return float(self.world.sum(total)) / N

    def to_device(self, tokens: NDArray[np.uint16]) -> Tensor:
        """Returns token ids as an index tensor on the device. They are transferred as 16-bit integers."""
        narrow = torch.from_numpy(tokens)
        if self.world.device.type == "cuda":
            narrow = narrow.pin_memory().to(self.world.device, non_blocking=True)
        return narrow.to(torch.int64)


def _compiler_errors() -> tuple[type[Exception], ...]:
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError

    return TorchDynamoException, InductorError


def _dropout_seed(seed: int, step: int, rank: int) -> int:
    """Returns a seed that depends only on the run's position, so that a resumed run drops the same activations."""
    return int.from_bytes(hashlib.sha256(f"{seed} {step} {rank}".encode()).digest()[:7])


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
