"""Our own training as a trial: the OEC model, on the study's tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from search_spaces.cell import Cell
from search_spaces.record import CellResult, Row
from trainers.data import TokenFiles
from trainers.protocol import Checkpoint, Context, Report

if TYPE_CHECKING:
    from trainers.loop import Trainer


@dataclass
class OecTrial:
    """The trial of a study without ``trainer``."""

    tokens: TokenFiles
    compile: bool | Literal["auto"] = "auto"
    micro_batch_memo: Path | None = None
    _trainer: Trainer | None = field(default=None, init=False, repr=False, compare=False)

    def setup(self, context: Context) -> None:
        from trainers.loop import Trainer  # imports torch, which the driver that makes this object does not need
        from trainers.world import World

        world = World(context.rank, context.size, context.device, context.memory_share)
        tokens = self.tokens.open()
        self._trainer = Trainer(world, tokens, compile=self.compile, micro_batch_memo=self.micro_batch_memo)

    def train(self, cell: Cell, report: Report, checkpoint: Checkpoint) -> CellResult:
        def on_row(row: Row) -> None:
            report(row.step, **row.metrics)

        assert self._trainer is not None, "setup comes first"
        return self._trainer.run(
            cell,
            checkpoint.folder,
            evaluate_every=checkpoint.evaluate_every,
            checkpoint_every=checkpoint.checkpoint_every,
            give_up=checkpoint.give_up,
            keep_weights=checkpoint.keep_weights,
            mirror=checkpoint.mirror,
            on_row=on_row,
            should_stop=checkpoint.should_stop,
        )
