"""The mailbox between a trial and its warm worker group.

An async actor without a core of its own. A job put in belongs to it until it is reported done, so that a group
that was restarted takes the same cell again and goes on from its checkpoint.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import ray

from search_spaces.record import CellResult
from trainers.job import Event, Job, result_in

IDLE_S = 60.0
"""A group without a job for so long ends, and frees its cores: on a full cluster somebody may wait for them, such as
another trial of the same sweep. A sweep that goes on starts a new one."""


@ray.remote(num_cpus=0)
class Mailbox:
    """One job at a time; its events in order. What a group says of another cell than the job's is dropped."""

    def __init__(self, max_failures: int) -> None:
        self._max_failures = max_failures
        self._job: Job | None = None
        self._failures = 0
        """Of the current job."""
        self._taken = False
        self._closed = False
        self._wanted_at = time.monotonic()
        """When there last was a job, or one was announced."""
        self._events: list[Event] = []
        self._changed = asyncio.Condition()

    async def keep(self) -> bool:
        """Announce a job. False if it is too late for that: the group ends."""
        self._wanted_at = time.monotonic()
        return not self._closed

    async def put(self, job: Job) -> None:
        """Hand in the next job, in place of the one before."""
        await self._update(_job=job, _events=[], _failures=0, _taken=False)

    async def started(self) -> None:
        """A group says that it came up. The one before died with the job that it had taken."""
        if self._job and self._taken:
            self._taken = False
            times = f", failure {self._failures + 1} of this cell" if self._failures else ""
            died = f"its worker group died{times}: a worker was killed, ran out of memory, or answered no more"
            await self.post(self._job.cell.id, [CellResult(state="crashed", reason=died)])

    async def take(self, timeout_s: float) -> Job | None:
        """The current job, or None after ``timeout_s`` without one or once closed."""
        await self._wait(lambda: self._closed or self._job is not None, timeout_s)
        self._taken = self._job is not None
        if self._job:
            self._wanted_at = time.monotonic()
        elif time.monotonic() - self._wanted_at > IDLE_S:
            self._closed = True
        return self._job

    async def post(self, cell_id: str, events: list[Event]) -> None:
        """Append events of a cell; its result ends the job, unless it crashed and is to be tried again."""
        if self._job is None or self._job.cell.id != cell_id:
            return
        result = result_in(events)
        if result and result.state == "crashed":
            self._failures += 1
            if self._failures < self._max_failures:
                return
        await self._update(_events=self._events + events, _job=None if result else self._job)

    async def events(self, timeout_s: float) -> list[Event]:
        """Events since the last call, waiting up to ``timeout_s`` for the first."""
        await self._wait(lambda: bool(self._events), timeout_s)
        events, self._events = self._events, []
        return events

    async def cancel(self) -> None:
        """Drop the current job; its group notices when it asks."""
        await self._update(_job=None)

    async def wanted(self, cell_id: str) -> bool:
        """Whether the group should go on with this cell."""
        return not self._closed and self._job is not None and self._job.cell.id == cell_id

    async def close(self) -> None:
        """Let the group end."""
        await self._update(_closed=True)

    async def closed(self) -> bool:
        return self._closed

    async def _update(self, **state: Any) -> None:
        async with self._changed:
            for name, value in state.items():
                setattr(self, name, value)
            self._changed.notify_all()

    async def _wait(self, condition: Callable[[], bool], timeout_s: float) -> None:
        """Return once ``condition`` holds, or after ``timeout_s``; the caller looks which."""
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(condition), timeout_s)
            except TimeoutError:
                return
