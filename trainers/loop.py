"""One cell, trained from its start or its last checkpoint to its end, in a process that stays warm for the next."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from search_spaces.cell import Cell
from search_spaces.errors import InvalidInput
from search_spaces.keep_weights import NO_WEIGHTS, KeepWeights
from search_spaces.record import CellResult, EndState, Row, columns_from
from trainers import checkpoint, diagnostics, micro_batch, weights
from trainers.allocator import keep_freed_memory, keep_to_share
from trainers.arithmetic import arithmetic_of
from trainers.data import Prefetcher, Shards, Tokens, batch_windows
from trainers.denormals import denormals_as_zeros
from trainers.engine import Engine, Launched, Step, shape_key
from trainers.optimizer import lr_at
from trainers.rows import Rows
from trainers.spikes import Spikes
from trainers.storage.bucket import Mirror
from trainers.usage import Usage
from trainers.world import World

FINAL_DRAW = 0
"""Seed of the sequences of the final validation pass: cells are compared, and so all are evaluated on the same ones."""


def ignore(row: Row) -> None:
    """The ``on_row`` of a caller who reads ``metrics.jsonl``, or nothing."""


def never() -> bool:
    """The ``should_stop`` of a run that nobody stops."""
    return False


@dataclass
class Progress:
    """What a run carries over a checkpoint beside its tensors; JSON values all."""

    step: int = 0
    micro_batch: int = 0
    l_init: float | None = None
    val_loss: float | None = None
    train_loss: float | None = None
    grad_norm: float = 0.0
    train_seconds: float = 0.0
    spikes: int = 0
    recent_losses: list[float] = field(default_factory=list)
    interval_steps: int = 0
    """Steps since the last evaluation, and over them:"""
    interval_loss: float = 0.0
    interval_seconds: float = 0.0
    diagnostics: dict[str, float] = field(default_factory=dict)
    """The last row."""


class Trainer:
    """One per process. Cells of one shape reuse the model, its DDP wrapper, the compiled step and the optimizer."""

    def __init__(
        self,
        world: World,
        tokens: Tokens,
        *,
        compile: bool | Literal["auto"] = "auto",
        micro_batch_memo: Path | None = None,
    ) -> None:
        """Sets this process's allocators to keep freed memory, and to keep to the world's share of the device.

        Args:
            compile: whether steps are compiled; auto is on accelerators.
            micro_batch_memo: a JSON file that remembers the micro batch of each shape; shared by all trainers.
        """
        keep_freed_memory()
        keep_to_share(world)
        self.world, self.tokens, self.memo = world, tokens, micro_batch_memo
        self.compile = world.device.type == "cuda" if compile == "auto" else compile
        self._engine: Engine | None = None
        self._validation: Tensor | None = None

    @denormals_as_zeros()
    def run(
        self,
        cell: Cell,
        folder: Path,
        *,
        evaluate_every: int,
        checkpoint_every: int,
        keep_weights: KeepWeights = NO_WEIGHTS,
        mirror: Mirror | None = None,
        on_row: Callable[[Row], None] = ignore,
        should_stop: Callable[[], bool] = never,
    ) -> CellResult:
        """Trains ``cell`` and returns the same result on every rank. Every rank calls it with the same cell.

        Rank 0 writes ``folder/metrics.jsonl`` and ``folder/checkpoints``, and resumes from what it finds there.

        Args:
            evaluate_every: steps between evaluations; there is one at step 0 and one at the end as well.
            checkpoint_every: steps between checkpoints. They go when the cell finishes or diverges.
            keep_weights: which weights stay in ``folder/weights``.
            mirror: of ``folder``, which then is of this machine alone: what is there when the run starts comes from the
                bucket, and every row and checkpoint is in it before the run goes on.
            on_row: told each row of ``metrics.jsonl``, on rank 0.
            should_stop: asked before every step, on every rank; one that says yes stops all of them, with a checkpoint.

        Raises:
            InvalidInput: the cell does not fit these tokens or this number of workers.
            OSError: on every rank: the storage does not take what is written.
        """
        self._check(cell)
        with arithmetic_of(cell.training, self.world.device):
            engine = self._engine_for(cell)
            run = _Run(self.world, engine, self._validation_for(cell), folder, mirror, on_row)
            run.start(lambda: micro_batch.choose(engine, cell.training.batch_size // self.world.size, self.memo))
            return run.train(self.tokens, evaluate_every, checkpoint_every, keep_weights, should_stop)

    def _check(self, cell: Cell) -> None:
        if cell.V != self.tokens.V:
            raise InvalidInput("cell.V", cell.V, f"is not the vocabulary of the data, {self.tokens.V}", "plan it anew")
        if cell.data != self.tokens.digest:
            raise InvalidInput("cell.data", cell.data, f"is not this data, {self.tokens.digest}", "plan it anew")
        if cell.training.batch_size % self.world.size:
            raise InvalidInput(
                "training.batch_size",
                cell.training.batch_size,
                f"is not divided by {self.world.size} workers",
                "use a multiple of the workers",
            )
        self.tokens.check_length(cell.training)

    def _engine_for(self, cell: Cell) -> Engine:
        if self._engine is None or self._engine.key != shape_key(cell):
            if self._engine is not None:
                self.compile = self._engine.compile  # where it failed once, it is not tried again
            self._engine = None  # frees the old one before the new one is made
            self._engine = Engine(cell, self.world, compile=self.compile)
        else:
            self._engine.reset(cell)
        return self._engine

    def _validation_for(self, cell: Cell) -> Tensor:
        """The first ``eval_sequences`` windows of the validation tokens, ``(N, T + 1)``."""
        T, N = cell.training.sequence_length, cell.training.eval_sequences
        if self._validation is None or self._validation.shape != (N, T + 1):
            read = torch.from_numpy(self.tokens.validation.read(range(N), T))
            self._validation = read.to(self.world.device, torch.int64)
        return self._validation


class _Run:
    """One call of ``Trainer.run``."""

    def __init__(
        self,
        world: World,
        engine: Engine,
        validation_NU: Tensor,
        folder: Path,
        mirror: Mirror | None,
        on_row: Callable[[Row], None],
    ) -> None:
        self.world, self.engine, self.cell, self.on_row = world, engine, engine.cell, on_row
        self.validation_NU, self.mirror = validation_NU, mirror
        self.checkpoints, self.weights = folder / "checkpoints", folder / weights.FOLDER
        self.rows = Rows(folder / "metrics.jsonl")
        self.progress = Progress()
        self.spikes = Spikes()
        self.usage = Usage()
        self.started = 0.0
        """When the step that is counted next began, by the clock of ``time.perf_counter``."""
        world.lead(lambda: folder.mkdir(parents=True, exist_ok=True))
        if mirror:
            world.lead(mirror.pull)

    def train(
        self,
        tokens: Tokens,
        evaluate_every: int,
        checkpoint_every: int,
        keep_weights: KeepWeights,
        should_stop: Callable[[], bool],
    ) -> CellResult:
        spec, progress = self.cell.training, self.progress
        self.validation, self.keeps = tokens.validation, keep_weights
        if progress.step == 0 and (reason := self.evaluate()):
            return self.end("diverged", reason)
        batches = Prefetcher(
            tokens.train,
            seed=self.cell.seed,
            T=spec.sequence_length,
            batch_size=spec.batch_size,
            rank=self.world.rank,
            world_size=self.world.size,
            start_step=progress.step,
            end_step=spec.steps,
        )
        launched: Launched | None = None
        with batches:
            self.started = time.perf_counter()
            for step, batch_BU in enumerate(batches, progress.step):
                lr = lr_at(step, spec, self.cell.lr)
                before = launched
                launched = self.engine.launch(
                    batch_BU, step=step, lr=lr, micro_batch=progress.micro_batch, stop=should_stop()
                )
                if before and (ended := self.take(before)):
                    return ended
                after = step + 1
                last = after == spec.steps
                evaluates = last or after % evaluate_every == 0
                saves = not last and after % checkpoint_every == 0
                keeps = not last and keep_weights.at(after)
                if not (evaluates or saves or keeps):
                    continue
                if ended := self.take(launched):
                    return ended
                launched = None
                if evaluates and (reason := self.evaluate(lr)):
                    return self.end("diverged", reason)
                if keeps:
                    self.keep_weights()
                if saves:
                    self.checkpoint()
                self.started = time.perf_counter()
        return self.conclude(tokens.validation)

    def conclude(self, validation: Shards) -> CellResult:
        """The end of a run that took all its steps.

        It has diverged if its loss is above ``l_init``: on the sequences that ``l_init`` was measured on, before and
        after the same ones; or on those of the final pass, so that no finished run has a loss above ``l_init``, which
        tables and curves rely on. The sequences differ there, but a loss at ``l_init`` is of a model that knows next to
        nothing, whose loss hardly depends on them; and such a run counts as ``l_init`` in a curve under either name.
        """
        progress = self.progress
        assert progress.val_loss is not None
        assert progress.l_init is not None
        losses = [progress.val_loss]
        if N := self.cell.training.final_eval_sequences:
            self.checkpoint()  # what it is interrupted in is the pass alone
            losses.append(self.final_loss(validation, N))
            if not math.isfinite(losses[-1]):
                return self.end("diverged", f"final validation loss is {losses[-1]}")
            progress.val_loss = losses[-1]
        if max(losses) > progress.l_init:
            above = f"final validation loss {max(losses):.4f} is above l_init {progress.l_init:.4f}"
            return self.end("diverged", above)
        return self.end("finished")

    def final_loss(self, validation: Shards, N: int) -> float:
        """Of N sequences drawn from all of validation, read a micro batch at a time: they may be tens of millions of
        tokens."""
        T = self.cell.training.sequence_length
        drawn = batch_windows(FINAL_DRAW, 0, N, validation.windows(T))
        mine = drawn[self.world.rank :: self.world.size]
        size = self.engine.evaluated_at_once(self.progress.micro_batch)
        parts = (mine[start : start + size] for start in range(0, len(mine), size))
        return self.engine.mean_loss((self.engine.to_device(validation.read(part, T)) for part in parts), N)

    def start(self, choose_micro_batch: Callable[[], int]) -> None:
        """Takes over the cell's newest valid checkpoint, or what there is before the first step."""
        found = checkpoint.latest(self.checkpoints, self.cell.id) if self.world.leads else None
        content: dict[str, Any] | None = self.world.agree(lambda: found.progress if found else None)
        if content is not None:
            self.progress = Progress(**content)
            self.spikes = Spikes(self.progress.recent_losses, self.progress.spikes)
        else:
            self.progress.micro_batch = choose_micro_batch()
        self.engine.settle(self.progress.micro_batch)
        if content is None and (stress := self.cell.model.initial_mean_logit):
            self.engine.shift_logits(self.validation_NU, stress)
        if content is not None:
            for name, tensor in self.engine.state().items():
                if found:
                    tensor.copy_(found.tensors[name])
                self.world.broadcast(tensor)
        kept = self.progress.step if content is not None else -1
        self.write(lambda: self.keep_until(kept))

    def keep_until(self, step: int) -> None:
        """Drop what the run writes anew after ``step``."""
        self.rows.keep_until(step)
        weights.keep_until(self.weights, step)
        if self.mirror:
            self.mirror.remove_archived(lambda name: weights.comes_after(name, step))

    def take(self, launched: Launched) -> CellResult | None:
        """Counts a step that was launched, or ends the run at it."""
        taken = launched.read()
        if not taken.finite:
            return self.end("diverged", _not_finite(taken, self.progress.step))
        if taken.stop:
            self.checkpoint()
            return self.end("stopped", f"asked to stop at step {self.progress.step}")
        now = time.perf_counter()
        self.count(taken, now - self.started)
        self.started = now
        return None

    def count(self, taken: Step, seconds: float) -> None:
        progress = self.progress
        progress.step += 1
        progress.grad_norm = taken.grad_norm
        progress.train_seconds += seconds
        progress.interval_seconds += seconds
        progress.interval_steps += 1
        progress.interval_loss += taken.loss
        self.spikes.observe(taken.loss)

    def evaluate(self, lr: float | None = None) -> str:
        """Writes a row; returns why the run has diverged if the validation loss says so, else an empty string.

        Args:
            lr: the last step's learning rate; None before the first.
        """
        progress, spec = self.progress, self.cell.training
        val_loss = self.engine.loss(self.validation_NU, progress.micro_batch)
        spikes = self.spikes.count
        row = {"val_loss": val_loss, "loss_spikes": float(spikes), "spike_score": spikes / max(1, progress.step)}
        if lr is not None and progress.interval_steps:
            step_seconds = progress.interval_seconds / progress.interval_steps
            progress.train_loss = progress.interval_loss / progress.interval_steps
            row |= {
                "train_loss": progress.train_loss,
                "lr": lr,
                "grad_norm": progress.grad_norm,
                "step_seconds": step_seconds,
                "tokens_per_second": spec.batch_size * spec.sequence_length / step_seconds,
                **self.usage.look(),
            }
        progress.interval_steps, progress.interval_loss, progress.interval_seconds = 0, 0.0, 0.0
        row |= self.diagnose()
        progress.diagnostics = {name: value for name, value in row.items() if math.isfinite(value)}
        measured = Row(progress.step, time.time(), progress.diagnostics)
        self.write(lambda: self.rows.append(measured))
        if self.world.leads:
            self.on_row(measured)
        if not math.isfinite(val_loss):
            return f"validation loss is {val_loss} at step {progress.step}"
        progress.val_loss = val_loss
        if progress.step == 0:
            progress.l_init = val_loss
        return ""

    def diagnose(self) -> dict[str, float]:
        engine, spec = self.engine, self.cell.training
        if self.progress.step == spec.steps:
            tokens_NU = diagnostics.final_batch(self.validation, spec).to(self.world.device)
        else:
            tokens_NU = diagnostics.batch_of(self.validation_NU, spec)
        engine.objective.eval()
        found = diagnostics.measure(engine.objective, tokens_NU, self.cell.method, engine.strength, self.world)
        engine.objective.train()
        return found

    def checkpoint(self) -> None:
        self.progress.spikes, self.progress.recent_losses = self.spikes.count, list(self.spikes.losses)
        progress = asdict(self.progress)
        self.write(
            lambda: checkpoint.save(self.checkpoints, self.cell.id, self.progress.step, self.engine.state(), progress)
        )

    def keep_weights(self) -> None:
        tensors = self.engine.objective.model.state_dict()
        self.write(lambda: weights.save(self.weights, self.cell, self.progress.step, tensors))

    def write(self, change: Callable[[], object]) -> None:
        """Change the cell's folder, and its form in a bucket, on rank 0; an error there is every rank's."""

        def both() -> None:
            change()
            if self.mirror:
                self.mirror.push()

        self.world.lead(both)

    def end(self, state: EndState, reason: str = "") -> CellResult:
        progress, spec = self.progress, self.cell.training
        if state != "stopped":
            if self.keeps.last:
                self.keep_weights()
            self.write(lambda: checkpoint.remove(self.checkpoints))
        if self.mirror:
            self.world.lead(self.mirror.drop)
        tokens = progress.step * spec.batch_size * spec.sequence_length
        return CellResult(
            state=state,
            steps=progress.step,
            val_loss=progress.val_loss,
            train_loss=progress.train_loss,
            l_init=progress.l_init,
            tokens=tokens,
            train_seconds=progress.train_seconds,
            tokens_per_second=tokens / progress.train_seconds if progress.step else 0.0,
            torch=str(torch.__version__),
            reason=reason,
            metrics={name: value for name, value in progress.diagnostics.items() if name in columns_from("metrics")},
        )


def _not_finite(taken: Step, step: int) -> str:
    what, value = ("gradient norm", taken.grad_norm) if math.isfinite(taken.loss) else ("training loss", taken.loss)
    return f"{what} is {value} at step {step}"
