"""The training loop as a Ray Train worker that outlives its cells; the only file of ``trainers`` that knows Ray.

Rank 0 takes the next job from the group's mailbox and every rank learns of it by broadcast, so that the process
group, the token files and the compiled step stay warm from one cell to the next.
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

from search_spaces.record import CellResult, Row
from trainers.data import TokenFiles
from trainers.job import Job
from trainers.loop import Trainer, ignore, never
from trainers.world import World

TAKE_TIMEOUT_S = 20.0
"""Rank 0 comes back from an empty mailbox this often, so that the other ranks' broadcast does not time out."""
STOP_POLL_S = 0.2

logger = logging.getLogger(__name__)


class WorkerConfig(TypedDict):
    """What ``serve_cells`` is given: ``train_loop_config`` of the TorchTrainer."""

    mailbox: Any
    tokens: TokenFiles
    compile: bool | Literal["auto"]
    micro_batch_memo: Path
    threads: int
    share: float
    """Of the memory of its device that a worker may take."""
    agreement_timeout_s: float
    """Seconds that ranks wait for each other at the end of a cell before the group is given up."""


def serve_cells(config: WorkerConfig) -> None:
    """Train one cell after another until the mailbox is closed.

    Raises:
        RuntimeError: the ranks disagree about a cell (one of them raised): the group has to be restarted.
    """
    torch.set_num_threads(config["threads"])
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    world = World(context.get_world_rank(), context.get_world_size(), device, config["share"])
    link = Link(config["mailbox"]) if world.rank == 0 else None
    control = dist.new_group(backend="gloo", timeout=timedelta(seconds=config["agreement_timeout_s"]))
    tokens = config["tokens"].open()
    trainer = Trainer(world, tokens, compile=config["compile"], micro_batch_memo=config["micro_batch_memo"])
    while True:
        job = link.take() if link else None
        over = link.closed() if link and job is None else False
        message: list[Any] = [job, over]
        dist.broadcast_object_list(message, src=0, group=control)
        job, over = message
        if over:
            return
        if job is not None:
            train(trainer, job, world, link, control)


def train(trainer: Trainer, job: Job, world: World, link: Link | None, control: Any) -> None:
    """One job: its rows as they come, then ``done`` with its result, or ``crashed`` with the traceback.

    An exception on every rank leaves the group in step and is the cell's result. An exception on some ranks only
    leaves the others in a collective that can not end: the agreement times out and the group is given up.
    """
    try:
        result = trainer.run(
            job.cell,
            job.folder,
            evaluate_every=job.evaluate_every,
            checkpoint_every=job.checkpoint_every,
            keep_weights=job.keep_weights,
            mirror=job.mirror,
            on_row=link.reporter(job) if link else ignore,
            should_stop=link.stopper(job) if link else never,
        )
        failure = None
    except Exception:
        failure = traceback.format_exc()
        logger.exception("cell %s raised on rank %d", job.cell.id, world.rank)
    failures: list[str | None] = [None] * world.size
    dist.all_gather_object(failures, failure, group=control)
    first = next((failure for failure in failures if failure), None)
    if link:
        link.end(job, result if first is None else CellResult(state="crashed", reason=first))


class Link:
    """Rank 0's side of the mailbox."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox
        ray.get(mailbox.started.remote())

    def take(self) -> Job | None:
        job: Job | None = ray.get(self._mailbox.take.remote(TAKE_TIMEOUT_S))
        return job

    def closed(self) -> bool:
        return bool(ray.get(self._mailbox.closed.remote()))

    def reporter(self, job: Job) -> Callable[[Row], None]:
        """An ``on_row`` that does not wait; an actor's calls arrive in the order in which they were made."""

        def on_row(row: Row) -> None:
            self._mailbox.post.remote(job.cell.id, [row])

        return on_row

    def end(self, job: Job, result: CellResult) -> None:
        """Deliver a job's result, and every row before it."""
        ray.get(self._mailbox.post.remote(job.cell.id, [result]))

    def stopper(self, job: Job) -> Callable[[], bool]:
        """A cheap ``should_stop``: asks the mailbox at most every ``STOP_POLL_S``, and never waits for the answer."""
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
