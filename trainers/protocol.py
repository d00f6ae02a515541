"""What a trainer is: an object that turns one cell after another into rows and a result.

A *trial* lives in every worker of a warm group. ``setup`` runs once per process, ``train`` once per cell. Three trials
exist: ours (``trainers.oec_trial``), a command (``trainers.command.trial``), and one that wraps your own object
(``trainers.python_trial``), which a study names as ``trainer: {python: "pkg.mod:Trial"}``::

    class Trial:
        def setup(self, context):                   # once per process: load data, compile
            self.rank, self.data = context.rank, load(context.options["data"])

        def train(self, cell, report, checkpoint):  # once per cell, on every worker
            start = restore(checkpoint.folder)      # what an earlier start of this cell has saved there, if anything
            for step in range(start, 1000):
                ...
                if step % 100 == 0:
                    report(step, val_loss=loss)     # nats per token, or whatever you minimize
                    save(checkpoint.folder, step)
                    if checkpoint.stop_requested():
                        break

``train`` may return nothing: the result is then what was reported, by the rules in ``trainers.reported_run``. An
exception makes the cell start again from its folder, and after ``resources.max_failures`` of them it has crashed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from search_spaces.intervals import GiveUp
from search_spaces.keep_weights import NO_WEIGHTS, KeepWeights
from search_spaces.record import CellResult

if TYPE_CHECKING:  # torch takes seconds to import, and a command does not need it
    import torch

    from trainers.storage.bucket import Mirror

T = TypeVar("T")


class TrialCell(Protocol):
    """What every cell has, whoever trains it."""

    @property
    def id(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def lr(self) -> float: ...
    @property
    def seed(self) -> int: ...


def only_rank(value: T) -> list[T]:
    """``Context.gather`` of a single worker."""
    return [value]


@dataclass(frozen=True, kw_only=True)
class Context:
    """The process that a trial lives in; the same for all of its cells."""

    rank: int = 0
    size: int = 1
    """Number of workers that train a cell together. A torch process group connects them."""
    device: torch.device
    """The device that this worker may use."""
    device_ids: tuple[str, ...] = ()
    """Accelerators that Ray assigned to this worker, as ``CUDA_VISIBLE_DEVICES`` lists them."""
    memory_share: float = 1.0
    """Share of its device's memory that this worker may use."""
    cores: int = 1
    """CPU cores that this worker may use."""
    workers: int = 1
    """``resources.workers``: the number of training processes of a cell. A command starts them itself."""
    folder: Path
    """The study's folder in the home. Every process of the study may read and write there."""
    address: str = "127.0.0.1"
    """This node's address, for the other workers."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """``trainer.options`` of the study."""
    gather: Callable[[Any], list[Any]] = only_rank
    """Returns the values of all ranks, in their order. Every rank must call it."""


class Report(Protocol):
    """Streams a row: the metrics at a step."""

    def __call__(self, step: int, /, **metrics: float) -> None:
        """
        Args:
            step: steps taken so far.
            metrics: ``val_loss`` makes the row an evaluation; any others are kept beside it. With several workers, only
                rank 0's count.
        """


def never_stop() -> bool:
    """For a cell that nobody stops."""
    return False


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Where a cell leaves its files, what it may resume from, and whether it should end."""

    folder: Path
    """The cell's folder. If an earlier start of the cell was interrupted, what it saved is there."""
    evaluate_every: int = 0
    """Steps between evaluations that the study asks for; 0 leaves it to the trial."""
    checkpoint_every: int = 0
    """Steps between checkpoints that the study asks for; 0 leaves it to the trial."""
    give_up: GiveUp | None = None
    """When the run is ended early as diverged. For a trial that calls ``report``, this happens by itself."""
    keep_weights: KeepWeights = NO_WEIGHTS
    mirror: Mirror | None = None
    """Copies ``folder`` to the bucket that holds the home."""
    should_stop: Callable[[], bool] = never_stop
    """Whether this rank was asked to stop: only rank 0 ever is. It never waits."""
    gather: Callable[[Any], list[Any]] = only_rank

    def stop_requested(self) -> bool:
        """Whether any rank was asked to stop: save what the cell needs to resume, and return. Every rank must call
        it."""
        return any(self.gather(self.should_stop()))


class Trial(Protocol):
    """A trainer. One object per worker, in a process that stays warm from cell to cell."""

    def setup(self, context: Context) -> None:
        """Called once, before the first cell."""

    def train(self, cell: Any, report: Report, checkpoint: Checkpoint) -> Any:
        """Train one cell. Called on every rank with the same cell.

        Args:
            cell: a ``TrialCell``; a study with factors has them in ``cell.factors``.

        Returns:
            A ``CellResult``. Your object may also return the final validation loss, a mapping with it, or None.
        """


class ServedTrial(Trial, Protocol):
    """A trial that the worker loop serves."""

    def train(self, cell: Any, report: Report, checkpoint: Checkpoint) -> CellResult: ...
