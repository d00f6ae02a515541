"""The trainer: trains one cell after another in a process that stays warm in between."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from search_spaces.cell import Cell
from search_spaces.errors import InvalidInput
from search_spaces.intervals import GiveUp
from search_spaces.keep_weights import NO_WEIGHTS, KeepWeights
from search_spaces.record import CellResult, Row
from trainers import micro_batch
from trainers.allocator import keep_freed_memory, limit_gpu_memory
from trainers.data import Tokens
from trainers.engine import Engine, shape_key
from trainers.numerics import flush_denormals, numerics_for
from trainers.run import Run
from trainers.storage.bucket import Mirror
from trainers.world import World


def ignore_row(row: Row) -> None:
    """The default ``on_row``, for a caller that reads ``metrics.jsonl`` instead, or does not need the rows."""


def never_stop() -> bool:
    """The default ``should_stop``, for a run that nobody stops."""
    return False


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
        """Also configures this process's allocators: to reuse freed memory, and to stay within the world's share of the
        device.

        Args:
            compile: whether steps are compiled; auto compiles on accelerators only.
            micro_batch_memo: a JSON file, shared by all trainers, that remembers the micro batch of each shape.
        """
        keep_freed_memory()
        limit_gpu_memory(world)
        self.world, self.tokens, self.memo = world, tokens, micro_batch_memo
        self.compile = world.device.type == "cuda" if compile == "auto" else compile
        self._engine: Engine | None = None
        self._validation: Tensor | None = None

    @flush_denormals()
    def run(
        self,
        cell: Cell,
        folder: Path,
        *,
        evaluate_every: int,
        checkpoint_every: int,
        give_up: GiveUp | None = None,
        keep_weights: KeepWeights = NO_WEIGHTS,
        mirror: Mirror | None = None,
        on_row: Callable[[Row], None] = ignore_row,
        should_stop: Callable[[], bool] = never_stop,
    ) -> CellResult:
        """Trains ``cell`` and returns the same result on every rank. Every rank calls it with the same cell.

        Rank 0 writes ``folder/metrics.jsonl`` and ``folder/checkpoints``, and resumes from the newest checkpoint there.

        Args:
            evaluate_every: steps between evaluations; step 0 and the last step are evaluated as well.
            checkpoint_every: steps between checkpoints. They are removed when the cell finishes or diverges.
            give_up: when the run is ended early as diverged; None for never.
            keep_weights: which weights stay in ``folder/weights``.
            mirror: uploads ``folder`` to a bucket, if the folder is local to this machine. The run starts from the
                bucket's content, and every row and checkpoint is uploaded before the run continues.
            on_row: called on rank 0 with each row of ``metrics.jsonl``.
            should_stop: called on every rank before every step; if it returns True on any rank, all ranks save a
                checkpoint and stop.

        Raises:
            InvalidInput: the cell does not fit these tokens or this number of workers.
            OSError: on every rank, if rank 0 cannot write to the storage.
        """
        self._check(cell)
        with numerics_for(cell.training, self.world.device):
            engine = self._engine_for(cell)
            run = Run(
                self.world,
                engine,
                self.tokens,
                self._validation_for(cell),
                folder,
                evaluate_every=evaluate_every,
                checkpoint_every=checkpoint_every,
                give_up=give_up,
                weights_to_keep=keep_weights,
                mirror=mirror,
                on_row=on_row,
                should_stop=should_stop,
            )
            run.start(lambda: micro_batch.choose(engine, cell.training.batch_size // self.world.size, self.memo))
            return run.train_steps()

    def _check(self, cell: Cell) -> None:
        if cell.V != self.tokens.V:
            raise InvalidInput("cell.V", cell.V, f"is not the vocabulary of the data, {self.tokens.V}", "plan it again")
        if cell.data != self.tokens.digest:
            raise InvalidInput("cell.data", cell.data, f"is not this data, {self.tokens.digest}", "plan it again")
        if cell.training.batch_size % self.world.size:
            raise InvalidInput(
                "training.batch_size",
                cell.training.batch_size,
                f"is not divisible by {self.world.size} workers",
                "use a multiple of the number of workers",
            )
        self.tokens.check_length(cell.training)

    def _engine_for(self, cell: Cell) -> Engine:
        if self._engine is None or self._engine.key != shape_key(cell):
            if self._engine is not None:
                self.compile = self._engine.compile  # if compilation failed once, it is not tried again
            self._engine = None  # frees the old engine before the new one is made
            self._engine = Engine(cell, self.world, compile=self.compile)
        else:
            self._engine.reset(cell)
        return self._engine

    def _validation_for(self, cell: Cell) -> Tensor:
        """Returns the first ``eval_sequences`` windows of the validation tokens, ``(N, T + 1)``."""
        T, N = cell.training.sequence_length, cell.training.eval_sequences
        if self._validation is None or self._validation.shape != (N, T + 1):
            windows_NU = torch.from_numpy(self.tokens.validation.read(range(N), T))
            self._validation = windows_NU.to(self.world.device, torch.int64)
        return self._validation
