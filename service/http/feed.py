"""The ledgers of a home as this process has read them: once each, however many look.

A ledger is read on from where it was left, under a lock; what is handed out is a copy that does not change.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

from fastapi.sse import format_sse_event

from search_spaces.record import TERMINAL, columns_from, columns_shown
from service.home.layout import Home
from service.home.ledger import Entry, Ledger, LedgerEvent
from service.home.live_rows import LiveRows
from service.home.speeds import measured_speeds
from service.home.studies import with_ledger

T = TypeVar("T")
MAX_REASON_CHARACTERS = 2_000
"""An event carries the end of a crash's reason; the route of the cells has all of it."""


@dataclass(frozen=True)
class Snapshot:
    """A ledger at one moment."""

    study: str
    generation: int
    """Counts up when the ledger was begun anew: a study that was planned and never run may be replaced."""
    seq: int
    entries: tuple[Entry, ...]
    frames: tuple[bytes, ...]
    """Every event as a server-sent one; the first has id 1."""

    @cached_property
    def counts(self) -> dict[str, int]:
        """Cells by state, of the states that there are."""
        found: dict[str, int] = {}
        for entry in self.entries:
            found[entry.state] = found.get(entry.state, 0) + 1
        return found

    @property
    def missing(self) -> int:
        return sum(entry.state not in TERMINAL for entry in self.entries)

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """Every cell as a row of a runs table."""
        return [entry.record(self.study) for entry in self.entries]


class Feed:
    """The ledger of one study, and the newest losses of its cells that run."""

    def __init__(self, home: Home, study: str) -> None:
        self._home, self._study, self._path = home, study, home.ledger(study)
        self._lock, self._making = threading.Lock(), threading.Lock()
        self._rows = LiveRows(home, study)
        self._made: dict[str, tuple[tuple[int, int], Any]] = {}
        self._now = Snapshot(study, 0, 0, (), ())
        self._begin(0)

    def _begin(self, inode: int) -> None:
        self._ledger = Ledger(self._path, self._study, unread=True)
        self._inode = inode
        self._frames: list[bytes] = []
        anew = self._now.seq > 0  # and not only now there: nobody was told of it
        self._now = Snapshot(self._study, self._now.generation + anew, 0, (), ())

    def read(self) -> Snapshot:
        """The ledger as it is now; empty before it was begun.

        Raises:
            InvalidInput: it is damaged.
        """
        with self._lock:
            try:
                status = self._path.stat()
            except FileNotFoundError:
                if self._inode:
                    self._begin(0)
                return self._now
            if status.st_ino != self._inode or status.st_size < self._ledger.size:
                self._begin(status.st_ino)
            if status.st_size > self._ledger.size and (events := self._ledger.refresh()):
                self._frames += [frame(event) for event in events]
                entries = tuple(replace(entry) for entry in self._ledger.entries.values())
                self._now = Snapshot(self._study, self._now.generation, self._ledger.seq, entries, tuple(self._frames))
            return self._now

    def progress(self, snapshot: Snapshot) -> list[dict[str, Any]]:
        """The cells that run, each with its newest step and loss, as far as it has one."""
        running = [entry for entry in snapshot.entries if entry.state == "running"]
        with self._lock:
            rows = [self._rows.newest(entry.id) for entry in running]
        return [
            {
                "cell": entry.id,
                "label": entry.cell.label,
                "lr": entry.cell.lr,
                "step": row.step if row else 0,
                "of": entry.cell.training.steps,
                "val_loss": row.val_loss if row else None,
            }
            for entry, row in zip(running, rows, strict=True)
        ]

    def derived(self, name: str, snapshot: Snapshot, make: Callable[[Snapshot], T]) -> T:
        """What is made of a ledger, once a state of it: a table over 10,000 cells takes seconds."""
        at = (snapshot.generation, snapshot.seq)
        with self._making:
            known: tuple[tuple[int, int], T] | None = self._made.get(name)
            if known is None or known[0] != at:
                known = self._made[name] = at, make(snapshot)
        return known[1]


class Feeds:
    """The feed of every study of a home."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._feeds: dict[str, Feed] = {}

    def of(self, study: str) -> Feed:
        return self._feeds.setdefault(study, Feed(self._home, study))

    def speeds(self) -> dict[str, float]:
        """Tokens per second of a cell, by scale: the last one measured in this home."""
        return measured_speeds(entry for name in with_ledger(self._home) for entry in self.of(name).read().entries)


def frame(event: LedgerEvent) -> bytes:
    """An event of a ledger as a server-sent one, whose id is its number."""
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
