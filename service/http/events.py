"""A study as it goes on, by server-sent events: one look at the home for all who watch it.

::

    event: ledger     an event of the ledger; its id is its place, so that a client that comes back misses none
    event: state      where the study stands (StudySummary), when that changed
    event: progress   the cells that run, with their newest losses, when those changed
    event: reset      the ledger was begun anew: forget what came before, everything follows
    event: end        the study is not being run and everything was told; the stream closes
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from http import HTTPStatus

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.concurrency import run_in_threadpool

from search_spaces.errors import InvalidInput
from service.http.errors import Refused
from service.http.feed import Feed, Snapshot
from service.http.metrics import Metrics
from service.http.models import StudySummary

LOOK_S = 0.5
KEEP_ALIVE_S = 10.0
"""After which a stream that has nothing to tell says so, and its token is looked at again."""
AGAIN_MS = 1000
"""After which a client that lost its stream comes back."""
GOES_ON = ("claimed", "starting", "running")


@dataclass(frozen=True)
class Look:
    """What one look at a study found."""

    snapshot: Snapshot
    state: bytes
    progress: bytes
    over: bool
    """Nothing more will come."""


class Watched:
    """A study that somebody watches: looked at every ``LOOK_S`` by one task, as long as anybody does."""

    def __init__(self, feed: Feed, summary: Callable[[], StudySummary]) -> None:
        self._feed, self._summary = feed, summary
        self._looked = asyncio.Condition()
        self._look: Look | None = None
        self._failed: BaseException | None = None
        self._task: asyncio.Task[None] | None = None
        self._watchers = 0

    async def follow(self, after: int, still: Callable[[], bool]) -> AsyncGenerator[bytes]:
        """Frames: the ledger's events behind place ``after``, and what else is new; until the study ends, or not
        ``still``."""
        self._watchers += 1
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        try:
            yield format_sse_event(retry=AGAIN_MS)
            look: Look | None = None
            while True:
                before, look = look, await self._next(look)
                if look is None:
                    if not still():
                        return
                    look = before
                    yield KEEPALIVE_COMMENT
                    continue
                begun_anew = before is not None and before.snapshot.generation != look.snapshot.generation
                if begun_anew or after > len(look.snapshot.frames):
                    after = 0
                    yield format_sse_event(event="reset", data_str="{}", id="0")
                if frames := look.snapshot.frames[after:]:
                    yield b"".join(frames)
                    after += len(frames)
                if before is None or before.progress != look.progress:
                    yield look.progress
                if before is None or before.state != look.state:
                    yield look.state
                if look.over:
                    yield format_sse_event(event="end", data_str="{}")
                    return
                if not still():
                    return
        finally:
            self._watchers -= 1
            if not self._watchers and self._task:
                self._task.cancel()
                self._task, self._look = None, None

    async def _next(self, seen: Look | None) -> Look | None:
        """The first look after ``seen``; None if that takes ``KEEP_ALIVE_S``."""
        with suppress(TimeoutError):
            async with asyncio.timeout(KEEP_ALIVE_S), self._looked:
                while self._look is None or self._look is seen:
                    if self._failed:
                        raise self._failed
                    await self._looked.wait()
                return self._look
        return None

    async def _run(self) -> None:
        self._failed = None
        try:
            while True:
                look = await run_in_threadpool(self._ask)
                if look != self._look:
                    async with self._looked:
                        self._look = look
                        self._looked.notify_all()
                await asyncio.sleep(LOOK_S)
        except Exception as error:
            async with self._looked:
                self._failed, self._task = error, None
                self._looked.notify_all()

    def _ask(self) -> Look:
        summary = self._summary()  # before the ledger: what is over has told everything
        try:
            snapshot = self._feed.read()
            running = self._feed.progress(snapshot)
        except InvalidInput:  # the summary says that it is damaged
            snapshot, running = Snapshot(summary.name, 0, 0, (), ()), []
        state = summary.model_copy(update={"seq": snapshot.seq, "cells": dict(snapshot.counts)})
        return Look(
            snapshot=snapshot,
            state=format_sse_event(event="state", data_str=state.model_dump_json()),
            progress=format_sse_event(event="progress", data_str=json.dumps(running)),
            over=summary.state not in GOES_ON,
        )


class Watching:
    """Every study that is watched through this service."""

    def __init__(self, most: int, metrics: Metrics) -> None:
        self._most, self._metrics = most, metrics
        self._open = 0
        self._studies: dict[str, Watched] = {}

    def admit(self, token: str) -> None:
        """
        Raises:
            Refused: 429, there are as many streams as this service keeps.
        """
        if self._open >= self._most:
            problem, remedy = "finds every event stream taken", "try again, or watch through another service"
            raise Refused(HTTPStatus.TOO_MANY_REQUESTS, "token", token, problem, remedy, 5)

    async def stream(
        self, feed: Feed, name: str, summary: Callable[[], StudySummary], after: int, still: Callable[[], bool]
    ) -> AsyncGenerator[bytes]:
        """See ``Watched.follow``."""
        watched = self._studies.setdefault(name, Watched(feed, summary))
        self._open += 1
        self._metrics.watchers.set(self._open)
        try:
            async with aclosing(watched.follow(after, still)) as following:
                async for frames in following:
                    yield frames
        finally:
            self._open -= 1
            self._metrics.watchers.set(self._open)
