"""The ledgers of a home, read by this process once for all requests.

A ledger is read incrementally under a lock. Callers receive an immutable snapshot.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

from fastapi.sse import format_sse_event

from search_spaces.record import State, columns_from, columns_shown
from service.home.layout import Home
from service.home.ledger import Entry, Ledger, LedgerEvent
from service.home.studies import LiveRows, measured_speeds, with_ledger

T = TypeVar("T")
MAX_REASON_CHARACTERS = 2_000
"""An event has only the end of a crash's reason; the route ``cells`` has all of it."""


@dataclass(frozen=True)
class Snapshot:
    """A ledger at one moment."""

    generation: int = 0
    """How often the ledger has been replaced: a study that was planned but never ran may be registered again."""
    seq: int = 0
    entries: tuple[Entry, ...] = ()
    frames: tuple[bytes, ...] = ()
    """Every event in server-sent form; the first has id 1."""

    @property
    def version(self) -> tuple[int, int]:
        """Identifies the state of the ledger."""
        return self.generation, self.seq

    @cached_property
    def counts(self) -> Counter[State]:
        """The number of cells in each state that occurs."""
        return Counter(entry.state for entry in self.entries)


class LedgerFeed:
    """The ledger of one study, and the newest losses of its running cells."""

    def __init__(self, home: Home, study: str) -> None:
        self._path, self.study = home.ledger(study), study
        self._lock, self._cache_lock = threading.Lock(), threading.Lock()
        self._rows = LiveRows(home, study)
        self._cache: dict[str, tuple[tuple[int, int], Any]] = {}
        self._reset(inode=0, generation=0)

    def _reset(self, inode: int, generation: int) -> None:
        self._ledger, self._inode = Ledger(self._path, self.study, unread=True), inode
        self._snapshot = Snapshot(generation)

    def read(self) -> Snapshot:
        """The ledger as it is now; an empty snapshot if it does not exist yet.

        Raises:
            InvalidInput: it is damaged.
        """
        with self._lock:
            inode, size = 0, 0
            with suppress(FileNotFoundError):
                status = self._path.stat()
                inode, size = status.st_ino, status.st_size
            if inode != self._inode or size < self._ledger.size:
                # A first ledger replaces nothing: no client has seen events of an earlier one.
                self._reset(inode, self._snapshot.generation + (self._snapshot.seq > 0))
            if size > self._ledger.size and (events := self._ledger.refresh()):
                frames = (*self._snapshot.frames, *map(to_frame, events))
                entries = tuple(map(replace, self._ledger.entries.values()))
                self._snapshot = replace(self._snapshot, seq=self._ledger.seq, entries=entries, frames=frames)
            return self._snapshot

    def progress(self, snapshot: Snapshot) -> list[dict[str, Any]]:
        """The running cells, each with its newest step and loss if it has logged any."""
        running = [entry for entry in snapshot.entries if entry.state == "running"]
        with self._lock:
            rows = [self._rows.newest(entry.id) for entry in running]
        return [
            {
                "cell": entry.id,
                "label": entry.cell.label,
                "lr": entry.cell.lr,
                "step": row.step if row else 0,
                "steps": entry.cell.steps,
                "val_loss": row.val_loss if row else None,
            }
            for entry, row in zip(running, rows, strict=True)
        ]

    def cached(self, name: str, snapshot: Snapshot, compute: Callable[[Snapshot], T]) -> T:
        """``compute(snapshot)``, once per state of the ledger: a table of 10,000 cells takes seconds."""
        with self._cache_lock:
            cached: tuple[tuple[int, int], T] | None = self._cache.get(name)
            if cached is None or cached[0] != snapshot.version:
                cached = self._cache[name] = snapshot.version, compute(snapshot)
        return cached[1]


class LedgerFeeds:
    """The feeds of all studies of a home."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._feeds: dict[str, LedgerFeed] = {}

    def get(self, study: str) -> LedgerFeed:
        return self._feeds.setdefault(study, LedgerFeed(self._home, study))

    def speeds(self) -> dict[str, float]:
        """Tokens per second of a cell at each scale: the last one measured in this home."""
        return measured_speeds(entry for name in with_ledger(self._home) for entry in self.get(name).read().entries)


def to_frame(event: LedgerEvent) -> bytes:
    """An event of a ledger in server-sent form; its id is its number in the ledger."""
    content: dict[str, Any] = {"at": event.at, "event": event.event}
    if event.cell:
        content["cell"] = event.cell
    if event.spec:
        content["origin"] = event.origin
        content |= {name: getattr(event.spec, name) for name in columns_from("cell")}
    if event.reused_from:
        content["reused_from"] = event.reused_from
    if event.result:
        record = event.result.record()
        content |= {name: record[name] for name in columns_shown("event") if name in record}
        if event.result.reason:
            content["reason"] = event.result.reason[-MAX_REASON_CHARACTERS:]
    return format_sse_event(data_str=json.dumps(content), event="ledger", id=str(event.seq))
