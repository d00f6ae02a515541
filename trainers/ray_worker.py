"""The training loop as a Ray Train worker that outlives its cells; the only file of ``trainers`` that imports Ray.

Rank 0 takes the next job from the group's mailbox and broadcasts it to every rank, so that the process group, the token
files and the compiled step stay warm from one cell to the next.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypedDict

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from search_spaces.cell import Cell
from search_spaces.record import CellResult, Row
from trainers.data import TokenFiles
from trainers.job import Job
from trainers.loop import Trainer, ignore_row, never_stop
from trainers.world import World

TAKE_TIMEOUT_S = 20.0
"""Rank 0 returns from an empty mailbox this often, so that the broadcast of the other ranks does not time out."""
STOP_POLL_S = 0.2

logger = logging.getLogger(__name__)


class WorkerConfig(TypedDict):
    """The argument of ``serve_cells``: the TorchTrainer's ``train_loop_config``."""

    mailbox: Any
    tokens: TokenFiles
    compile: bool | Literal["auto"]
    micro_batch_memo: Path
    threads: int
    memory_share: float
    """Share of its device's memory that a worker may use."""
    agreement_timeout_s: float
    """Seconds that ranks wait for each other at the end of a cell before the group fails."""


def serve_cells(config: WorkerConfig) -> None:
    """Trains one cell after another until the mailbox is closed.

    Raises:
        RuntimeError: only some of the ranks raised an exception during a cell, so the group has to be restarted.
    """
    torch.set_num_threads(config["threads"])
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    world = World(context.get_world_rank(), context.get_world_size(), device, config["memory_share"])
    mailbox = MailboxClient(config["mailbox"]) if world.is_rank0 else None
    control = dist.new_group(backend="gloo", timeout=timedelta(seconds=config["agreement_timeout_s"]))
    tokens = config["tokens"].open()
    trainer = Trainer(world, tokens, compile=config["compile"], micro_batch_memo=config["micro_batch_memo"])
    while True:
        message: list[Any] = list(mailbox.take()) if mailbox else [None, None]
        dist.broadcast_object_list(message, src=0, group=control)
        job, closed = message
        if closed:
            return
        if job is not None:
            run_job(trainer, job, mailbox, control)


def run_job(trainer: Trainer, job: Job, mailbox: MailboxClient | None, control: Any) -> None:
    """Trains one cell and reports its rows as they are written, then its result, or ``crashed`` with the traceback.

    An exception on every rank leaves the ranks in step and is the cell's result. An exception on only some ranks leaves
    the others in a collective that cannot finish: the gather below times out, and the group fails.
    """
    assert isinstance(job.cell, Cell)
    try:
        result = trainer.run(
            job.cell,
            job.folder,
            evaluate_every=job.evaluate_every,
            checkpoint_every=job.checkpoint_every,
            keep_weights=job.keep_weights,
            mirror=job.mirror,
            on_row=mailbox.row_poster(job) if mailbox else ignore_row,
            should_stop=mailbox.stop_poller(job) if mailbox else never_stop,
        )
        failure = None
    except Exception:
        failure = traceback.format_exc()
        logger.exception("cell %s raised on rank %d", job.cell.id, trainer.world.rank)
    failures: list[str | None] = [None] * trainer.world.size
    dist.all_gather_object(failures, failure, group=control)
    first = next((failure for failure in failures if failure), None)
    if mailbox:
        mailbox.post_and_wait(job, result if first is None else CellResult(state="crashed", reason=first))


class MailboxClient:
    """Rank 0's access to the mailbox."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox
        ray.get(mailbox.started.remote())

    def take(self) -> tuple[Job | None, bool]:
        """Returns the next job, or None if there was none in time and whether the mailbox is closed."""
        job: Job | None = ray.get(self._mailbox.take.remote(TAKE_TIMEOUT_S))
        return job, job is None and bool(ray.get(self._mailbox.closed.remote()))

    def row_poster(self, job: Job) -> Callable[[Row], None]:
        """Returns an ``on_row`` that does not wait; an actor receives calls in the order in which they were made."""

        def on_row(row: Row) -> None:
            self._mailbox.post.remote(job.cell.id, [row])

        return on_row

    def post_and_wait(self, job: Job, result: CellResult) -> None:
        """Posts a job's result and waits until it, and every row before it, has been delivered."""
        ray.get(self._mailbox.post.remote(job.cell.id, [result]))

    def stop_poller(self, job: Job) -> Callable[[], bool]:
        """Returns a cheap ``should_stop``: it asks the mailbox every ``STOP_POLL_S`` at most, and never waits."""
        answer = self._mailbox.wanted.remote(job.cell.id)
        asked = time.monotonic()
        stopped = False

        def should_stop() -> bool:
            nonlocal answer, asked, stopped
            if not stopped and time.monotonic() - asked > STOP_POLL_S:
                asked = time.monotonic()
                if ray.wait([answer], timeout=0)[0]:
                    stopped = not ray.get(answer)
                    answer = self._mailbox.wanted.remote(job.cell.id)
            return stopped

        return should_stop
