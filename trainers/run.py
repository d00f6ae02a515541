"""One run of a cell, from its start or its last checkpoint to its end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from search_spaces.intervals import GiveUp
from search_spaces.keep_weights import KeepWeights
from search_spaces.record import CellResult, EndState, Row, columns_from
from trainers import checkpoint, diagnostics, weights
from trainers.data import Prefetcher, Tokens, batch_windows
from trainers.engine import Engine, PendingStep, Step
from trainers.optimizer import lr_at
from trainers.rows import Rows
from trainers.spikes import Spikes
from trainers.storage.bucket import Mirror
from trainers.usage import Usage
from trainers.world import World

_METRICS = columns_from("metrics")
FINAL_EVAL_SEED = 0
"""Selects the sequences of the final evaluation. It is the same for every cell, so that cells can be compared."""


@dataclass
class Progress:
    """The state of a run that a checkpoint stores beside the tensors, as JSON values."""

    step: int = 0
    micro_batch: int = 0
    l_init: float | None = None
    val_loss: float | None = None
    above_l_init: int = 0
    """Evaluations in a row, up to the last one, whose loss was above ``l_init``."""
    train_loss: float | None = None
    grad_norm: float = 0.0
    train_seconds: float = 0.0
    spikes: int = 0
    recent_losses: list[float] = field(default_factory=list)
    interval_steps: int = 0
    """Steps since the last evaluation; the next two fields are sums over these steps."""
    interval_loss: float = 0.0
    interval_seconds: float = 0.0
    diagnostics: dict[str, float] = field(default_factory=dict)
    """The last row."""


class Run:
    """The state and the files of one call of ``Trainer.run``, whose arguments these are."""

    def __init__(
        self,
        world: World,
        engine: Engine,
        tokens: Tokens,
        validation_NU: Tensor,
        folder: Path,
        *,
        evaluate_every: int,
        checkpoint_every: int,
        give_up: GiveUp | None,
        weights_to_keep: KeepWeights,
        mirror: Mirror | None,
        on_row: Callable[[Row], None],
        should_stop: Callable[[], bool],
    ) -> None:
        self.world, self.engine, self.cell = world, engine, engine.cell
        self.tokens, self.validation_NU = tokens, validation_NU
        self.evaluate_every, self.checkpoint_every = evaluate_every, checkpoint_every
        self.give_up, self.weights_to_keep, self.mirror = give_up, weights_to_keep, mirror
        self.on_row, self.should_stop = on_row, should_stop
        self.checkpoints, self.weights = folder / "checkpoints", folder / weights.FOLDER
        self.rows = Rows(folder / "metrics.jsonl")
        self.progress = Progress()
        self.spikes = Spikes()
        self.usage = Usage()
        self.step_started = 0.0
        """When the pending step started, on the clock of ``time.perf_counter``."""
        world.run_on_rank0(lambda: folder.mkdir(parents=True, exist_ok=True))
        if mirror:
            world.run_on_rank0(mirror.pull)

    def start(self, choose_micro_batch: Callable[[], int]) -> None:
        """Restores the cell's newest valid checkpoint, or prepares its first step."""
        found = checkpoint.load_latest(self.checkpoints, self.cell.id) if self.world.is_rank0 else None
        content: dict[str, Any] | None = self.world.broadcast_object(lambda: found.progress if found else None)
        if content is not None:
            self.progress = Progress(**content)
            self.spikes = Spikes(self.progress.recent_losses, self.progress.spikes)
        else:
            self.progress.micro_batch = choose_micro_batch()
        self.engine.warm_up(self.progress.micro_batch)
        if content is None and (stress := self.cell.model.initial_mean_logit):
            self.engine.shift_logits(self.validation_NU, stress)
        if content is not None:
            for name, tensor in self.engine.state().items():
                if found:
                    tensor.copy_(found.tensors[name])
                self.world.broadcast(tensor)
        last_step = self.progress.step if content is not None else -1
        self.write_files(lambda: self.truncate_files(last_step))

    def train_steps(self) -> CellResult:
        spec, progress = self.cell.training, self.progress
        if progress.step == 0 and (reason := self.evaluate()):
            return self.end("diverged", reason)
        batches = Prefetcher(
            self.tokens.train,
            seed=self.cell.seed,
            T=spec.sequence_length,
            batch_size=spec.batch_size,
            rank=self.world.rank,
            world_size=self.world.size,
            start_step=progress.step,
            end_step=spec.steps,
        )
        pending: PendingStep | None = None
        with batches:
            self.step_started = time.perf_counter()
            for step, batch_BU in enumerate(batches, progress.step):
                lr = lr_at(step, spec, self.cell.lr)
                previous = pending
                pending = self.engine.launch(
                    batch_BU, step=step, lr=lr, micro_batch=progress.micro_batch, stop=self.should_stop()
                )
                if previous and (result := self.finish_step(previous)):
                    return result
                steps_taken = step + 1
                last = steps_taken == spec.steps
                evaluates = last or steps_taken % self.evaluate_every == 0
                saves = not last and steps_taken % self.checkpoint_every == 0
                keeps = not last and self.weights_to_keep.at(steps_taken)
                if not (evaluates or saves or keeps):
                    continue
                if result := self.finish_step(pending):
                    return result
                pending = None
                if evaluates and (reason := self.evaluate(lr)):
                    return self.end("diverged", reason)
                if evaluates and not last and (reason := self.beyond_hope()):
                    return self.end("diverged", reason, skipped_steps=spec.steps - progress.step)
                if keeps:
                    self.save_weights()
                if saves:
                    self.save_checkpoint()
                self.step_started = time.perf_counter()
        return self.finish()

    def finish_step(self, pending: PendingStep) -> CellResult | None:
        """Waits for a launched step and records it. Returns a result if the run ends at this step."""
        step = pending.read()
        if not step.finite:
            return self.end("diverged", _not_finite(step, self.progress.step))
        if step.stop:
            self.save_checkpoint()
            return self.end("stopped", f"asked to stop at step {self.progress.step}")
        now = time.perf_counter()
        seconds, self.step_started = now - self.step_started, now
        progress = self.progress
        progress.step += 1
        progress.grad_norm = step.grad_norm
        progress.train_seconds += seconds
        progress.interval_seconds += seconds
        progress.interval_steps += 1
        progress.interval_loss += step.loss
        self.spikes.observe(step.loss)
        return None

    def finish(self) -> CellResult:
        """Ends a run that took all its steps.

        The run has diverged if its loss is above ``l_init``, either on the sequences that ``l_init`` was measured on or
        on those of the final evaluation. The second rule guarantees that no finished run has a loss above ``l_init``,
        which tables and curves rely on. The sequences of the two losses differ, but a model with a loss near ``l_init``
        has learned next to nothing, so its loss hardly depends on the sequences, and a curve counts it as ``l_init`` in
        either state.
        """
        progress = self.progress
        assert progress.val_loss is not None
        assert progress.l_init is not None
        losses = [progress.val_loss]
        if N := self.cell.training.final_eval_sequences:
            self.save_checkpoint()  # an interruption then repeats only the evaluation
            losses.append(self.final_loss(N))
            if not math.isfinite(losses[-1]):
                return self.end("diverged", f"final validation loss is {losses[-1]}")
            progress.val_loss = losses[-1]
        if max(losses) > progress.l_init:
            above = f"final validation loss {max(losses):.4f} is above l_init {progress.l_init:.4f}"
            return self.end("diverged", above)
        return self.end("finished")

    def final_loss(self, N: int) -> float:
        """Returns the loss on N sequences drawn from all validation tokens. They are read one batch at a time, because
        they may be tens of millions of tokens."""
        T, validation = self.cell.training.sequence_length, self.tokens.validation
        drawn = batch_windows(FINAL_EVAL_SEED, 0, N, validation.windows(T))
        mine = drawn[self.world.rank :: self.world.size]
        size = self.engine.eval_batch_size(self.progress.micro_batch)
        parts = (mine[start : start + size] for start in range(0, len(mine), size))
        return self.engine.mean_loss((self.engine.to_device(validation.read(part, T)) for part in parts), N)

    def evaluate(self, lr: float | None = None) -> str:
        """Writes a row. Returns the reason if the validation loss shows that the run diverged, else an empty string.

        Args:
            lr: the last step's learning rate; None before the first step.
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
                **self.usage.sample(),
            }
        progress.interval_steps, progress.interval_loss, progress.interval_seconds = 0, 0.0, 0.0
        row |= self.diagnose()
        progress.diagnostics = {name: value for name, value in row.items() if math.isfinite(value)}
        measured = Row(progress.step, time.time(), progress.diagnostics)
        self.write_files(lambda: self.rows.append(measured))
        if self.world.is_rank0:
            self.on_row(measured)
        if not math.isfinite(val_loss):
            return f"validation loss is {val_loss} at step {progress.step}"
        progress.val_loss = val_loss
        if progress.step == 0:
            progress.l_init = val_loss
        assert progress.l_init is not None
        progress.above_l_init = progress.above_l_init + 1 if val_loss > progress.l_init else 0
        return ""

    def beyond_hope(self) -> str:
        """The reason if the run is given up after this evaluation, else an empty string."""
        progress = self.progress
        if self.give_up is None or progress.above_l_init < self.give_up.evaluations:
            return ""
        assert progress.val_loss is not None
        assert progress.l_init is not None
        return self.give_up.reason(progress.step, progress.val_loss, progress.l_init)

    def diagnose(self) -> dict[str, float]:
        engine, spec = self.engine, self.cell.training
        if self.progress.step == spec.steps:
            tokens_NU = diagnostics.final_batch(self.tokens.validation, spec).to(self.world.device)
        else:
            tokens_NU = diagnostics.row_batch(self.validation_NU, spec)
        engine.objective.eval()
        row = diagnostics.measure(engine.objective, tokens_NU, self.cell.method, engine.gamma, self.world)
        engine.objective.train()
        return row

    def save_checkpoint(self) -> None:
        self.progress.spikes, self.progress.recent_losses = self.spikes.count, list(self.spikes.losses)
        progress = asdict(self.progress)
        self.write_files(
            lambda: checkpoint.save(self.checkpoints, self.cell.id, self.progress.step, self.engine.state(), progress)
        )

    def save_weights(self) -> None:
        tensors = self.engine.objective.model.state_dict()
        self.write_files(lambda: weights.save(self.weights, self.cell, self.progress.step, tensors))

    def truncate_files(self, step: int) -> None:
        """Removes rows and weights after ``step``, which the run writes again."""
        self.rows.keep_until(step)
        weights.remove_after(self.weights, step)
        if self.mirror:
            self.mirror.remove_archived(lambda name: weights.is_after(name, step))

    def write_files(self, write: Callable[[], object]) -> None:
        """Calls ``write`` on rank 0 and uploads the changes to the bucket, if any. An error is raised on every rank."""

        def write_and_upload() -> None:
            write()
            if self.mirror:
                self.mirror.push()

        self.world.run_on_rank0(write_and_upload)

    def end(self, state: EndState, reason: str = "", *, skipped_steps: int | None = None) -> CellResult:
        progress, spec = self.progress, self.cell.training
        if state != "stopped":
            if self.weights_to_keep.last:
                self.save_weights()
            self.write_files(lambda: checkpoint.remove(self.checkpoints))
        if self.mirror:
            self.world.run_on_rank0(self.mirror.remove_local)
        tokens = progress.step * spec.batch_size * spec.sequence_length
        return CellResult(
            state=state,
            steps=progress.step,
            skipped_steps=skipped_steps,
            val_loss=progress.val_loss,
            train_loss=progress.train_loss,
            l_init=progress.l_init,
            tokens=tokens,
            train_seconds=progress.train_seconds,
            tokens_per_second=tokens / progress.train_seconds if progress.step else 0.0,
            torch=str(torch.__version__),
            reason=reason,
            metrics={name: value for name, value in progress.diagnostics.items() if name in _METRICS},
        )


def _not_finite(step: Step, number: int) -> str:
    what, value = ("gradient norm", step.grad_norm) if math.isfinite(step.loss) else ("training loss", step.loss)
    return f"{what} is {value} at step {number}"
