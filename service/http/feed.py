"""The ledgers of a home as this process has read them: once each, however many look.

A ledger is read on from where it was left, under a lock; what is handed out is a copy that does not change.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from fastapi.sse import format_sse_event

from service.cli.overview import speeds
from service.cli.watch import Running
from service.home.layout import Home
from service.home.ledger import TERMINAL, Entry, Ledger

T = TypeVar("T")
TOLD = ("gamma", "attention_norm", "scale", "method", "lr", "seed")
"""Of a cell, with the event that planned it."""
OF_RESULT = ("val_loss", "l_init", "steps", "train_seconds", "reason")
REASON = 2_000
"""Characters of a crash's reason, its end, that an event carries; the cells' own route has all of it."""


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
        return [entry.record(self.study, entry.cell.id) for entry in self.entries]


class Feed:
    """The ledger of one study, and the newest losses of its cells that run."""

    def __init__(self, home: Home, study: str) -> None:
        self._home, self._study, self._path = home, study, home.ledger(study)
        self._lock, self._making = threading.Lock(), threading.Lock()
        self._running = Running(home, study)
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
                entries = tuple(Entry(**vars(entry)) for entry in self._ledger.entries.values())
                self._now = Snapshot(self._study, self._now.generation, self._ledger.seq, entries, tuple(self._frames))
            return self._now

    def progress(self, snapshot: Snapshot) -> list[dict[str, Any]]:
        """The cells that run, each with its newest step and loss, as far as it has one."""
        with self._lock:
            rows = {
                entry.cell.id: self._running.newest(entry.cell.id) or {}
                for entry in snapshot.entries
                if entry.state == "running"
            }
        cells = {entry.cell.id: entry.cell for entry in snapshot.entries if entry.cell.id in rows}
        return [
            {
                "cell": id,
                "label": cells[id].label,
                "lr": cells[id].lr,
                "step": int(row.get("step", 0)),
                "of": cells[id].training.steps,
                "val_loss": row.get("val_loss"),
            }
            for id, row in rows.items()
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
        return speeds(entry for name in self._home.known() for entry in self.of(name).read().entries)


def frame(event: Mapping[str, Any]) -> bytes:
    """A line of a ledger as a server-sent event, whose id is its place."""
    told = {name: event[name] for name in ("at", "event", "cell", "origin", "reused_from") if name in event}
    if spec := event.get("spec"):
        told |= {name: spec[name] for name in TOLD}
    if result := event.get("result"):
        told |= {name: result[name] for name in OF_RESULT if result.get(name) is not None}
        told |= {"reason": result["reason"][-REASON:]} if result.get("reason") else {}
    return format_sse_event(data_str=json.dumps(told), event="ledger", id=str(event["seq"]))
