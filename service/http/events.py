"""The progress of a study as server-sent events: one task polls the home for all clients that watch the study.

::

    event: ledger     an event of the ledger; its id is its number, so a client that reconnects misses none
    event: state      the summary of the study (StudySummary), when it changed
    event: progress   the running cells with their newest losses, when those changed
    event: reset      the ledger was replaced: discard all earlier events, the new ledger follows from its start
    event: end        the study is not running and every event was sent; the stream closes
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
from service.http.errors import ApiError
from service.http.feed import LedgerFeed, Snapshot
from service.http.metrics import Metrics
from service.http.models import StudySummary

POLL_S = 0.5
KEEPALIVE_S = 10.0
"""After this time without news, a stream sends a comment, and its token is checked again."""
RETRY_S = 5
ACTIVE_STATES = ("claimed", "starting", "running")


@dataclass(frozen=True)
class Update:
    """A study at one poll."""

    snapshot: Snapshot
    state: bytes
    progress: bytes
    is_final: bool
    """Whether no further event will follow."""


class StudyStream:
    """One watched study. A single task polls it every ``POLL_S`` while at least one client watches it."""

    def __init__(self, feed: LedgerFeed, summarize: Callable[[], StudySummary]) -> None:
        self._feed, self._summarize = feed, summarize
        self._updated = asyncio.Condition()
        self._update: Update | None = None
        self._error: BaseException | None = None
        self._task: asyncio.Task[None] | None = None
        self._watchers = 0

    async def follow(self, after: int, is_authorized: Callable[[], bool]) -> AsyncGenerator[bytes]:
        """Yield the ledger's events after number ``after``, and everything else that is new, until the study ends or
        the client is no longer authorized."""
        self._watchers += 1
        if self._task is None:
            self._task = asyncio.create_task(self._poll())
        try:
            yield format_sse_event(retry=1000)  # a client waits for this many ms before it reopens a lost stream
            last: Update | None = None
            while True:
                update = await self._next_update(last)
                if not is_authorized():
                    return
                if update is None:
                    yield KEEPALIVE_COMMENT
                    continue
                was_replaced = last is not None and last.snapshot.generation != update.snapshot.generation
                if was_replaced or after > len(update.snapshot.frames):
                    after = 0
                    yield format_sse_event(event="reset", data_str="{}", id="0")
                if frames := update.snapshot.frames[after:]:
                    yield b"".join(frames)
                    after += len(frames)
                if last is None or last.progress != update.progress:
                    yield update.progress
                if last is None or last.state != update.state:
                    yield update.state
                if update.is_final:
                    yield format_sse_event(event="end", data_str="{}")
                    return
                last = update
        finally:
            self._watchers -= 1
            if not self._watchers and self._task:
                self._task.cancel()
                self._task, self._update = None, None

    async def _next_update(self, last: Update | None) -> Update | None:
        """The first update after ``last``; None if there is none within ``KEEPALIVE_S``."""
        with suppress(TimeoutError):
            async with asyncio.timeout(KEEPALIVE_S), self._updated:
                while self._update is None or self._update is last:
                    if self._error:
                        raise self._error
                    await self._updated.wait()
                return self._update
        return None

    async def _poll(self) -> None:
        self._error = None
        try:
            while True:
                update = await run_in_threadpool(self._read_update)
                if update != self._update:
                    async with self._updated:
                        self._update = update
                        self._updated.notify_all()
                await asyncio.sleep(POLL_S)
        except Exception as error:
            async with self._updated:
                self._error, self._task = error, None
                self._updated.notify_all()

    def _read_update(self) -> Update:
        summary = self._summarize()  # before the ledger: if the study has ended by now, the ledger is complete
        try:
            snapshot = self._feed.read()
            running = self._feed.progress(snapshot)
        except InvalidInput:  # the summary reports the damage
            snapshot, running = Snapshot(), []
        state = summary.model_copy(update={"seq": snapshot.seq, "cells": dict(snapshot.counts)})
        return Update(
            snapshot=snapshot,
            state=format_sse_event(event="state", data_str=state.model_dump_json()),
            progress=format_sse_event(event="progress", data_str=json.dumps(running)),
            is_final=summary.state not in ACTIVE_STATES,
        )


class EventStreams:
    """All open event streams of this service."""

    def __init__(self, max_streams: int, metrics: Metrics) -> None:
        self._max_streams, self._open = max_streams, 0
        metrics.watchers.set_function(lambda: self._open)
        self._studies: dict[str, StudyStream] = {}

    def check_capacity(self, token: str) -> None:
        """Raise ApiError, 429, if the service has ``max_streams`` open streams."""
        if self._open >= self._max_streams:
            problem = f"cannot open another event stream: this service allows {self._max_streams}"
            remedy = "try again later, or watch through another service"
            raise ApiError(HTTPStatus.TOO_MANY_REQUESTS, "token", token, problem, remedy, RETRY_S)

    async def stream(
        self, feed: LedgerFeed, summarize: Callable[[], StudySummary], after: int, is_authorized: Callable[[], bool]
    ) -> AsyncGenerator[bytes]:
        """See ``StudyStream.follow``."""
        study = self._studies.setdefault(feed.study, StudyStream(feed, summarize))
        self._open += 1
        try:
            async with aclosing(study.follow(after, is_authorized)) as frames_stream:
                async for frames in frames_stream:
                    yield frames
        finally:
            self._open -= 1
