"""The mailbox between a trial and its warm worker group.

The mailbox is an async actor that reserves no core. It keeps a job until the job's result arrives, so a restarted group
takes the same cell again and resumes from its checkpoint.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import ray

from search_spaces.record import CellResult
from trainers.job import Event, Job, result_in

IDLE_S = 60.0
"""A group without a job for this long ends and frees its cores: on a full cluster another trial may be waiting for
them. If the sweep continues, it starts a new group."""


@ray.remote(num_cpus=0)
class Mailbox:
    """Holds one job at a time, and its events in order. Events of any other cell are dropped."""

    def __init__(self, max_failures: int) -> None:
        self._max_failures = max_failures
        self._job: Job | None = None
        self._failures = 0
        """Failures of the current job."""
        self._taken = False
        self._closed = False
        self._needed_at = time.monotonic()
        """The last time at which there was a job or a reservation."""
        self._events: list[Event] = []
        self._changed = asyncio.Condition()

    async def reserve(self) -> bool:
        """Keep the group for a job that follows; returns False if the group is already ending."""
        self._needed_at = time.monotonic()
        return not self._closed

    async def put(self, job: Job) -> None:
        """Replace the job by the next one."""
        await self._update(_job=job, _events=[], _failures=0, _taken=False)

    async def started(self) -> None:
        """Called by a group when it starts. If a job was taken, the previous group died with it."""
        if self._job and self._taken:
            self._taken = False
            times = f", failure {self._failures + 1} of this cell" if self._failures else ""
            died = f"its worker group died{times}: a worker was killed, ran out of memory, or stopped responding"
            await self.post(self._job.cell.id, [CellResult(state="crashed", reason=died)])

    async def take(self, timeout_s: float) -> Job | None:
        """The current job; None if there is none within ``timeout_s``, or if the mailbox is closed."""
        await self._wait(lambda: self._closed or self._job is not None, timeout_s)
        self._taken = self._job is not None
        if self._job:
            self._needed_at = time.monotonic()
        elif time.monotonic() - self._needed_at > IDLE_S:
            self._closed = True
        return self._job

    async def post(self, cell_id: str, events: list[Event]) -> None:
        """Append events of a cell. Its result ends the job, unless the cell crashed and will be retried."""
        if self._job is None or self._job.cell.id != cell_id:
            return
        result = result_in(events)
        if result and result.state == "crashed":
            self._failures += 1
            if self._failures < self._max_failures:
                return
        await self._update(_events=self._events + events, _job=None if result else self._job)

    async def events(self, timeout_s: float) -> list[Event]:
        """The events since the last call; waits up to ``timeout_s`` for the first."""
        await self._wait(lambda: bool(self._events), timeout_s)
        events, self._events = self._events, []
        return events

    async def cancel(self) -> None:
        """Drop the current job; the group notices at its next call of ``wanted``."""
        await self._update(_job=None)

    async def wanted(self, cell_id: str) -> bool:
        """Whether the group should continue with this cell."""
        return not self._closed and self._job is not None and self._job.cell.id == cell_id

    async def close(self) -> None:
        """Make the group end."""
        await self._update(_closed=True)

    async def closed(self) -> bool:
        return self._closed

    async def _update(self, **state: Any) -> None:
        """Set attributes, at once: another call may run at any ``await``, and change what ``state`` was made from."""
        for name, value in state.items():
            setattr(self, name, value)
        async with self._changed:
            self._changed.notify_all()

    async def _wait(self, condition: Callable[[], bool], timeout_s: float) -> None:
        """Wait until ``condition`` holds, but at most ``timeout_s``; the caller checks which."""
        async with self._changed:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait_for(condition), timeout_s)
