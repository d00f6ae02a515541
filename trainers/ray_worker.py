"""The worker of a warm group, which outlives its cells; the only file of ``trainers`` that imports Ray.

Rank 0 takes the next job from the group's mailbox and shares it with every rank, so that the process group and what
the trial has set up (token files, a compiled step) stay warm from one cell to the next.
"""

from __future__ import annotations

import logging
import os
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypedDict

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from search_spaces.record import CellResult, Row
from trainers.command.environment import hide_secrets
from trainers.job import Event, Job
from trainers.protocol import Checkpoint, Context, Report, ServedTrial, never_stop

TAKE_TIMEOUT_S = 20.0
"""Rank 0 returns from an empty mailbox this often, so that the ranks that wait for a job do not time out."""
STOP_POLL_S = 0.2

logger = logging.getLogger(__name__)


@dataclass
class HostTorchConfig(ray.train.torch.TorchConfig):
    """A process group on CPUs that leaves the devices alone: they belong to what the worker starts."""

    backend: str | None = "gloo"

    @property
    def train_func_context(self) -> type[AbstractContextManager[None]]:
        """Ray's own makes the device current, which allocates memory on it."""
        return nullcontext


class WorkerConfig(TypedDict):
    """The argument of ``serve_cells``: the TorchTrainer's ``train_loop_config``."""

    mailbox: Any
    trial: ServedTrial
    folder: Path
    """The study's folder."""
    threads: int
    workers: int
    """``resources.workers`` of the study."""
    memory_share: float
    """Share of its device's memory that a worker may use."""
    agreement_timeout_s: float
    """Seconds that ranks wait for each other at the end of a cell before the group fails."""


def serve_cells(config: WorkerConfig) -> None:
    """Trains one cell after another until the mailbox is closed.

    Raises:
        RuntimeError: a rank raised an exception during a cell while others waited in a collective of the trial, so the
            group has to be restarted.
    """
    torch.set_num_threads(config["threads"])
    train_context = ray.train.get_context()
    rank, size = train_context.get_world_rank(), train_context.get_world_size()
    mailbox = MailboxClient(config["mailbox"]) if rank == 0 else None
    control = dist.new_group(backend="gloo", timeout=timedelta(seconds=config["agreement_timeout_s"]))

    def gather(value: Any) -> list[Any]:
        values: list[Any] = [None] * size
        dist.all_gather_object(values, value, group=control)
        return values

    context = Context(
        rank=rank,
        size=size,
        device=ray.train.torch.get_device(),
        device_ids=tuple(ray.get_runtime_context().get_accelerator_ids().get("GPU", [])),
        memory_share=config["memory_share"],
        cores=config["threads"],
        workers=config["workers"],
        folder=config["folder"],
        address=ray.util.get_node_ip_address(),  # type: ignore[no-untyped-call]
        gather=gather,
    )
    worker = Worker(config["trial"], context, mailbox)
    while True:
        job, closed = gather(mailbox.take() if mailbox else None)[0]
        if closed:
            return
        if job is not None:
            worker.run(job)


class PeerFailed(BaseException):
    """Another rank raised during an exchange; its text is the traceback there. Not an Exception, which a trial might
    catch, and then wait for a rank that has given up."""


class Worker:
    """One rank of a group: its trial, which is set up before its first cell."""

    def __init__(self, trial: ServedTrial, context: Context, mailbox: MailboxClient | None) -> None:
        self._trial, self._mailbox, self._gather = trial, mailbox, context.gather
        self._context = replace(context, gather=self._exchange)
        self._ready = False

    def _exchange(self, value: Any) -> list[Any]:
        """``gather`` for the trial. Whether a rank has failed is part of every exchange, so that the last one of a rank
        that raised meets whichever exchange the others are in.

        Raises:
            PeerFailed: another rank has raised.
        """
        found: list[tuple[bool, Any]] = self._gather((False, value))
        failure = next((value for failed, value in found if failed), None)
        if failure is not None:
            raise PeerFailed(failure)
        return [value for _, value in found]

    def run(self, job: Job) -> None:
        """Trains one cell and reports its rows as they are written, then its result, or ``crashed`` with the traceback.

        An exception leaves the ranks in step and is the cell's result, unless another rank waits in a collective of the
        trial's own, such as a gradient's sum: that and the exchange below time out, and the group fails.
        """
        mailbox = self._mailbox
        report: Report = mailbox.row_poster(job) if mailbox else ignore_row
        should_stop = mailbox.stop_poller(job) if mailbox else never_stop
        checkpoint = replace(job.checkpoint, should_stop=should_stop, gather=self._exchange)
        try:
            result = self._train(job, report, checkpoint)
        except PeerFailed as error:
            result = CellResult(state="crashed", reason=str(error))
        if mailbox:
            mailbox.post_and_wait(job, result)

    def _train(self, job: Job, report: Report, checkpoint: Checkpoint) -> CellResult:
        """Sets up and trains. The last exchange of a cell tells the other ranks whether this one raised.

        Raises:
            PeerFailed: another rank has raised.
        """
        try:
            if not all(self._exchange(self._ready)):  # if setup failed on one rank, all repeat it
                self._trial.setup(self._context)
                self._ready = True
            result = self._trial.train(job.cell, report, checkpoint)
        except (Exception, SystemExit):  # SystemExit: code of a user must not end a warm worker
            logger.exception("cell %s raised on rank %d", job.cell.id, self._context.rank)
            reason = hide_secrets(traceback.format_exc(), os.environ)
            self._gather((True, reason))
            return CellResult(state="crashed", reason=reason)
        self._exchange(None)
        return result


def ignore_row(step: int, /, **metrics: float) -> None:
    """Rank 0 alone reports."""


class MailboxClient:
    """Rank 0's access to the mailbox."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox
        self._posted = mailbox.started.remote()
        """The last call that adds events. An async actor may run calls in another order than they were made in, so each
        waits for the one before it, which has nearly always ended by then."""
        ray.get(self._posted)

    def take(self) -> tuple[Job | None, bool]:
        """Returns the next job, or None if there was none in time and whether the mailbox is closed."""
        job: Job | None = ray.get(self._mailbox.take.remote(TAKE_TIMEOUT_S))
        return job, job is None and bool(ray.get(self._mailbox.closed.remote()))

    def row_poster(self, job: Job) -> Report:
        """Returns a ``report`` that does not wait for the mailbox, unless the row before is still on its way."""

        def report(step: int, /, **metrics: float) -> None:
            self._post(job, Row(step, time.time(), metrics))

        return report

    def post_and_wait(self, job: Job, result: CellResult) -> None:
        """Posts a job's result and waits until it, and every row before it, has been delivered."""
        self._post(job, result)
        ray.get(self._posted)

    def _post(self, job: Job, event: Event) -> None:
        ray.get(self._posted)
        self._posted = self._mailbox.post.remote(job.cell.id, [event])

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
