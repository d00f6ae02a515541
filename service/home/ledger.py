"""The ledger: the durable truth about the cells of one study.

Append-only JSON lines with one writer, each line flushed and synced before the sweep goes on. A line cut short by
a crash is dropped at the next opening; any other damage is refused by name. Order is the order of the lines
(``seq``), never the clock. Everything else (MLflow, Optuna, the report) is a view that can be rebuilt from it.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from search_spaces.cell import Cell, CurveKey
from search_spaces.errors import InvalidInput

if TYPE_CHECKING:
    from service.home.bucket_ledger import Journal

FORMAT = 1
LOCK_TRIES, LOCK_PAUSE_S = 10, 0.02
State = Literal["planned", "running", "finished", "diverged", "crashed", "pruned"]
STATES: tuple[State, ...] = get_args(State)
TERMINAL: frozenset[State] = frozenset({"finished", "diverged", "crashed", "pruned"})
Origin = Literal["grid", "refine", "edge"]
"""Why a cell was planned: the study's grid, a proposal of Optuna, the search for an edge."""
IDENTITY = ("cell", "state", "scale", "attention_norm", "method", "gamma", "lr", "seed")
"""Columns of a runs table that every line of a cell tells anyway, and its result does not repeat."""


@dataclass
class Entry:
    """What the ledger knows of one cell."""

    cell: Cell
    origin: Origin
    state: State = "planned"
    result: dict[str, Any] = field(default_factory=dict)
    """The columns of a runs table that the cell's end gave, see ``dashboards.runs``."""
    reused_from: str | None = None
    """The study that trained it, if it was not this one."""

    def record(self, study: str, cell_id: str | None = None) -> dict[str, Any]:
        """The cell as one row of a runs table; its id, a hash, may be given where it is known."""
        identity = {"cell": cell_id or self.cell.id, "state": self.state}
        identity |= {name: getattr(self.cell, name) for name in IDENTITY if name not in identity}
        return {"study": study, **identity, "origin": self.origin, **self.result}


class LedgerLocked(InvalidInput):
    """Another process is writing this ledger."""

    @classmethod
    def by(cls, writer: object, study: str) -> LedgerLocked:
        """``writer`` prints as who it is."""
        return cls("study", study, f"is being run by another process ({writer})", "wait for it, or stop it")


class Ledger:
    """Replays the file at ``path``; with ``write``, holds its lock and appends to it."""

    def __init__(
        self, path: Path, study: str, *, write: bool = False, unread: bool = False, journal: Journal | None = None
    ) -> None:
        """
        Args:
            journal: the ledger's form in a bucket, with ``write``: what it holds is what ``path`` becomes, and every
                line is there before it is here.
            unread: read nothing yet, so that ``refresh`` returns every event from the first.

        Raises:
            InvalidInput: the file is damaged elsewhere than in its last line.
            LedgerLocked: ``write``, and another process holds it.
        """
        self.path, self.study = path, study
        self.entries: dict[str, Entry] = {}
        self.beside: list[Entry] = []
        """Those that are not of the grid."""
        self._curves: defaultdict[CurveKey, list[Entry]] = defaultdict(list)
        self._changes: Counter[CurveKey] = Counter()
        self._scales: defaultdict[str, Counter[State]] = defaultdict(lambda: Counter(dict.fromkeys(STATES, 0)))
        """With every state from the start: progress, in its thread, walks through them."""
        self._seq = 0
        self.size = 0
        """Bytes of the file that were read."""
        self._file: FileIO | None = None
        self._journal = journal if write else None
        if write:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)  # a buffer would write the rest of a failed line later
            self._lock()
            if self._journal:
                self._take_over(self._journal)
        if not unread and path.exists():
            self.refresh()
            if self._file:
                self._file.truncate(self.size)
        if self._file and self._seq == 0:
            self._append([{"event": "open", "format": FORMAT, "study": study}])

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._file:
            if self._journal:
                self._journal.close()
            self._file.close()
            self._file = None
            self._owner_file.unlink(missing_ok=True)

    def plan(self, cells: Iterable[Cell], origin: Origin = "grid") -> None:
        """Add the cells that are not there yet."""
        new = {cell_id: cell for cell in cells if (cell_id := cell.id) not in self.entries}
        self._append(
            {"event": "planned", "cell": cell_id, "origin": origin, "spec": cell.model_dump(mode="json")}
            for cell_id, cell in new.items()
        )

    def running(self, cell_id: str) -> None:
        """Record that a cell is being trained; one that has its result keeps it."""
        if self.entries[cell_id].state not in TERMINAL - {"crashed"}:
            self._append([{"event": "running", "cell": cell_id}])

    def end(self, cell_id: str, state: State, result: Mapping[str, Any], reused_from: str | None = None) -> None:
        """Record a cell's terminal state, once.

        Raises:
            ValueError: the cell already has one (a crashed one may be tried again).
        """
        before = self.entries[cell_id].state
        if state not in TERMINAL or before in TERMINAL - {"crashed"}:
            raise ValueError(f"cell {cell_id} of study {self.study} is {before} and can not become {state}")
        origin = {"reused_from": reused_from} if reused_from else {}
        self._append([{"event": state, "cell": cell_id, "result": dict(result), **origin}])

    def refresh(self) -> list[dict[str, Any]]:
        """Apply the whole lines that another process has appended since; returns them.

        Raises:
            InvalidInput: the file is damaged elsewhere than in its last line.
        """
        with self.path.open("rb") as file:
            file.seek(self.size)
            return self._replay(file.read())

    def records(self) -> list[dict[str, Any]]:
        """Every cell as a row of a runs table."""
        return [entry.record(self.study, cell_id) for cell_id, entry in self.entries.items()]

    def counts(self) -> Counter[State]:
        return sum(list(self._scales.values()), Counter())

    def left(self) -> dict[str, int]:
        """Cells that have not ended, by scale."""
        return {scale: counts["planned"] + counts["running"] for scale, counts in list(self._scales.items())}

    def curve(self, key: CurveKey) -> tuple[int, list[Entry]]:
        """How often anything changed in a curve, and its cells, those beside the grid too."""
        return self._changes[key], list(self._curves.get(key, []))

    def ended(self) -> list[Entry]:
        """Cells in a terminal state, crashed ones included."""
        return [entry for entry in self.entries.values() if entry.state in TERMINAL]

    def missing(self, *, retry_crashed: bool = False) -> list[Cell]:
        """Cells that still have to be trained, in the order in which they were planned."""
        done = TERMINAL - {"crashed"} if retry_crashed else TERMINAL
        return [entry.cell for entry in self.entries.values() if entry.state not in done]

    @property
    def seq(self) -> int:
        """Number of the last line."""
        return self._seq

    @property
    def _owner_file(self) -> Path:
        return self.path.with_suffix(".owner")

    def _lock(self) -> None:
        assert self._file is not None
        try:
            self._try_to_lock()
        except OSError as error:
            owner = self._owner_file.read_text() if self._owner_file.exists() else "unknown"
            self._file.close()
            raise LedgerLocked.by(owner, self.study) from error
        since = datetime.now(UTC).isoformat(timespec="seconds")
        self._owner_file.write_text(f"pid {os.getpid()} on {socket.gethostname()} since {since}")

    def _take_over(self, journal: Journal) -> None:
        """Become the writer in the bucket too, and begin with what is there."""
        assert self._file is not None
        try:
            journal.take()
            self._file.truncate(0)
            self._write(journal.content())
        except BaseException:
            self.close()
            raise

    def _try_to_lock(self) -> None:
        """More than once: whoever asks whether the study is being run holds the lock for a moment.

        Raises:
            OSError: somebody holds it for longer.
        """
        assert self._file is not None
        for left in reversed(range(LOCK_TRIES)):
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError:
                if not left:
                    raise
                time.sleep(LOCK_PAUSE_S)

    def _append(self, events: Iterable[dict[str, Any]]) -> None:
        """Write the events as lines, durably, then apply them.

        Raises:
            OSError: the storage is full or gone; the ledger is as it was, in the file and here.
            LedgerLocked: another process has taken it over, in a bucket.
        """
        if self._file is None:
            raise ValueError(f"the ledger {self.path} was opened for reading")
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        stamped = [{"seq": self._seq + i, "at": now, **event} for i, event in enumerate(events, start=1)]
        content = "".join(json.dumps(event, separators=(",", ":")) + "\n" for event in stamped).encode()
        if self._journal and content:
            self._journal.append(self._seq + 1, content)
        before = os.fstat(self._file.fileno()).st_size
        try:
            self._write(content)
        except OSError:
            self._file.truncate(before)
            raise
        for event in stamped:
            self._apply(event)

    def _write(self, content: bytes) -> None:
        assert self._file is not None
        unwritten = memoryview(content)
        while unwritten:
            unwritten = unwritten[self._file.write(unwritten) :]
        os.fsync(self._file.fileno())

    def _replay(self, content: bytes) -> list[dict[str, Any]]:
        """Apply and return every whole line."""
        whole = content.rfind(b"\n") + 1
        events = []
        for number, line in enumerate(content[:whole].splitlines(), start=self._seq + 1):
            try:
                event = json.loads(line)
                self._apply(event)
            except (ValueError, KeyError, TypeError) as error:
                raise InvalidInput(
                    "ledger",
                    f"{self.path}:{number}",
                    f"is damaged ({type(error).__name__}: {error})",
                    "restore the file from a backup, or remove that line if the cell may be trained again",
                ) from error
            events.append(event)
        self.size += whole
        return events

    def _apply(self, event: Mapping[str, Any]) -> None:
        if event["seq"] != self._seq + 1:
            raise ValueError(f"seq {event['seq']} follows {self._seq}")
        kind = event["event"]
        if kind == "open":
            if event["format"] != FORMAT:
                raise ValueError(f"format {event['format']} is not {FORMAT}")
        elif kind == "planned":
            cell = Cell.model_validate(event["spec"])
            if (cell_id := cell.id) != event["cell"]:  # a hash: dear enough to make once
                raise ValueError(f"cell {event['cell']} has the content of {cell_id}")
            self.entries[cell_id] = entry = Entry(cell, event["origin"])
            self._curves[cell.curve].append(entry)
            self._counted(entry, None)
            if entry.origin != "grid":
                self.beside.append(entry)
        elif kind in STATES:
            entry, before = self.entries[event["cell"]], self.entries[event["cell"]].state
            # Names are shared by all cells: half of what ten thousand results would take. Progress, in its thread, asks
            # the state first.
            result = dict(event.get("result", {}))
            entry.result, entry.state = {sys.intern(name): value for name, value in result.items()}, kind
            entry.reused_from = event.get("reused_from")
            self._counted(entry, before)
        else:
            raise ValueError(f"unknown event {kind!r}")
        self._seq = event["seq"]

    def _counted(self, entry: Entry, before: State | None) -> None:
        """Keep the counts, so that nobody walks through a long ledger at the end of every cell."""
        counts = self._scales[entry.cell.scale]
        counts[entry.state] += 1
        if before:
            counts[before] -= 1
        self._changes[entry.cell.curve] += 1


def finished_elsewhere(ledgers: Iterable[tuple[str, Path]]) -> Iterator[tuple[str, Entry]]:
    """``(study, entry)`` of every finished or diverged cell in the given ledgers of a home."""
    for study, path in ledgers:
        for entry in Ledger(path, study).entries.values():
            if entry.state in ("finished", "diverged"):
                yield study, entry
