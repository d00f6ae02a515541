"""The ledger: the durable truth about the cells of one study.

Append-only JSON lines with one writer, each line flushed and synced before the sweep proceeds. A line cut short by a
crash is dropped on the next opening; any other damage is refused, with its place. The order is that of the lines
(``seq``), never the clock. Everything else (MLflow, Optuna, the report) is a view that can be rebuilt from it.
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import Any, Literal

from search_spaces.cell import AnyCell, parse_cell
from search_spaces.errors import InvalidInput
from search_spaces.factors import CurveKey, to_json
from search_spaces.record import NO_RESULT, STATES, TERMINAL, CellResult, Origin, Outcome, State, columns_from
from service.home.bucket_ledger import BucketLedger
from service.home.writer import LedgerLocked, Writer, lock

FORMAT = 1
CELL_COLUMNS = columns_from("cell")
RETRYABLE: frozenset[State] = frozenset({"planned", "running", "crashed"})
"""States that a cell may leave."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEvent:
    """One line of a ledger."""

    seq: int
    """1, 2, 3 ..."""
    at: str
    event: Literal["open"] | State
    cell: str = ""
    """Id of the cell; empty for ``open``."""
    spec: AnyCell | None = None
    origin: Origin = "grid"
    """``spec`` and ``origin``: with ``planned``."""
    result: CellResult | None = None
    """With a terminal state."""
    reused_from: str | None = None
    """With a terminal state: the study that trained the cell, if not this one."""
    study: str = ""
    format: int = FORMAT
    """``study`` and ``format``: with ``open``."""

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> LedgerEvent:
        """
        Raises:
            KeyError, TypeError, ValueError: it is not a line of a ledger.
        """
        kind = line["event"]
        if kind not in ("open", *STATES):
            raise ValueError(f"unknown event {kind!r}")
        given = {name: line[name] for name in ("seq", "at", "event", "cell", "origin", "reused_from", "study", "format")
                 if name in line}  # fmt: skip
        if kind == "planned":
            given["spec"] = parse_cell(line["spec"])
            if (cell_id := given["spec"].id) != line["cell"]:
                raise ValueError(f"cell {line['cell']} has the content of {cell_id}")
        if kind in TERMINAL:
            given["result"] = CellResult.from_record(kind, line.get("result", {}))
        return cls(**given)

    def to_json(self) -> dict[str, Any]:
        line: dict[str, Any] = {"seq": self.seq, "at": self.at, "event": self.event}
        if self.event == "open":
            return line | {"format": self.format, "study": self.study}
        line["cell"] = self.cell
        if self.spec:
            line |= {"origin": self.origin, "spec": self.spec.model_dump(mode="json")}
        if self.result:
            line["result"] = self.result.record()
        if self.reused_from:
            line["reused_from"] = self.reused_from
        return line


@dataclass
class Entry:
    """What the ledger knows about one cell."""

    id: str
    cell: AnyCell
    origin: Origin
    state: State = "planned"
    result: CellResult = NO_RESULT
    reused_from: str | None = None
    """The study that trained it, if not this one."""

    @property
    def outcome(self) -> Outcome:
        return Outcome.of(self.state, self.result.val_loss, self.result.l_init)

    @property
    def share_done(self) -> float:
        """The share of its steps that the cell took until its end; 1 if their number is unknown."""
        return self.cell.share_done(self.result.steps or 0) if self.cell.steps else 1.0

    def record(self, study: str) -> dict[str, Any]:
        """The cell as one row of a table of runs."""
        cell = {name: getattr(self.cell, name) for name in CELL_COLUMNS} | {"factors": to_json(self.cell.factors)}
        own = {"study": study, "cell": self.id, **cell, "state": self.state, "origin": self.origin}
        return own | self.result.record()


class Ledger:
    """Replays the file at ``path``; with ``write``, holds its lock and appends to it."""

    def __init__(
        self,
        path: Path,
        study: str,
        *,
        write: bool = False,
        unread: bool = False,
        bucket_ledger: BucketLedger | None = None,
    ) -> None:
        """
        Args:
            unread: read nothing yet, so that ``refresh`` returns every event from the first.
            bucket_ledger: with ``write``, the same ledger in a bucket. Its content replaces that of ``path``, and every
                line is written there first.

        Raises:
            InvalidInput: the file is damaged before its last line.
            LedgerLocked: ``write``, and another process holds it.
        """
        self.path, self.study, self._owner_file = path, study, path.with_suffix(".owner")
        self.entries: dict[str, Entry] = {}
        self.off_grid: list[Entry] = []
        """Cells that are not on the study's grid."""
        self._curves: defaultdict[CurveKey, list[Entry]] = defaultdict(list)
        self._changes: Counter[CurveKey] = Counter()
        self._scales: defaultdict[str, Counter[State]] = defaultdict(lambda: Counter(dict.fromkeys(STATES, 0)))
        """Cells by state, by scale. All states are keys from the start: progress iterates in its own thread."""
        self.seq = 0
        """Number of the last line."""
        self.size = 0
        """Bytes of the file that were read."""
        self._file: FileIO | None = None
        self._bucket_ledger = bucket_ledger if write else None
        if write:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)  # a buffer would write the rest of a failed line later
            self._become_writer(self._file)
        if not unread and path.exists():
            self.refresh()
            if self._file:
                self._file.truncate(self.size)
        if self._file and self.seq == 0:
            self._append([{"event": "open", "study": study}])

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._file:
            if self._bucket_ledger:
                self._bucket_ledger.close()
            self._file.close()
            self._file = None
            self._owner_file.unlink(missing_ok=True)

    def plan(self, cells: Iterable[AnyCell], origin: Origin = "grid") -> None:
        """Add the cells that are not there yet."""
        new = {cell_id: cell for cell in cells if (cell_id := cell.id) not in self.entries}
        self._append(
            {"event": "planned", "cell": cell_id, "origin": origin, "spec": cell} for cell_id, cell in new.items()
        )

    def start(self, cell_id: str) -> None:
        """Record that a cell is being trained; one that has its result keeps it."""
        if self.entries[cell_id].state in RETRYABLE:
            self._append([{"event": "running", "cell": cell_id}])

    def end(self, cell_id: str, result: CellResult, reused_from: str | None = None) -> None:
        """Record a cell's result, once.

        Raises:
            ValueError: the cell already has one (a crashed one may be tried again).
        """
        before = self.entries[cell_id].state
        if result.state not in TERMINAL or before not in RETRYABLE:
            raise ValueError(f"cell {cell_id} of study {self.study} is {before} and cannot become {result.state}")
        self._append([{"event": result.state, "cell": cell_id, "result": result, "reused_from": reused_from}])

    def refresh(self) -> list[LedgerEvent]:
        """Apply the complete lines that another process has appended since the last call; returns them.

        Raises:
            InvalidInput: the file is damaged before its last line.
        """
        with self.path.open("rb") as file:
            file.seek(self.size)
            return self._replay(file.read())

    def records(self) -> list[dict[str, Any]]:
        """Every cell as a row of a table of runs."""
        return [entry.record(self.study) for entry in self.entries.values()]

    def counts(self) -> Counter[State]:
        return sum(list(self._scales.values()), Counter())

    def left(self) -> dict[str, int]:
        """Cells that have not ended, by scale."""
        return {scale: counts["planned"] + counts["running"] for scale, counts in list(self._scales.items())}

    def curve(self, key: CurveKey) -> tuple[int, list[Entry]]:
        """How many changes a curve has seen, and its cells, those off the grid included."""
        return self._changes[key], list(self._curves.get(key, []))

    def ended(self) -> list[Entry]:
        """Cells in a terminal state, crashed ones included."""
        return [entry for entry in self.entries.values() if entry.state in TERMINAL]

    def missing(self, *, retry_crashed: bool = False) -> list[AnyCell]:
        """Cells that still have to be trained, in the order in which they were planned."""
        done = TERMINAL - {"crashed"} if retry_crashed else TERMINAL
        return [entry.cell for entry in self.entries.values() if entry.state not in done]

    def _become_writer(self, file: FileIO) -> None:
        """Lock the file; with a bucket, become the writer there too, and start from its content."""
        try:
            lock(file)
        except OSError as error:
            owner = self._owner_file.read_text(encoding="utf-8") if self._owner_file.exists() else "unknown"
            file.close()
            raise LedgerLocked.by(owner, self.study) from error
        self._owner_file.write_text(str(Writer.this()), encoding="utf-8")
        if self._bucket_ledger:
            try:
                self._bucket_ledger.take()
                file.truncate(0)
                self._write(self._bucket_ledger.content())
            except BaseException:
                self.close()
                raise

    def _append(self, events: Iterable[dict[str, Any]]) -> None:
        """Write events, given without number and time, as lines, durably; then apply them.

        Raises:
            OSError: the storage is full or gone; the ledger is as it was, in the file and in memory.
            LedgerLocked: another process has taken it over, in a bucket.
        """
        if self._file is None:
            raise ValueError(f"the ledger {self.path} was opened for reading")
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        numbered = [LedgerEvent(seq=self.seq + i, at=now, **event) for i, event in enumerate(events, start=1)]
        content = "".join(json.dumps(event.to_json(), separators=(",", ":")) + "\n" for event in numbered).encode()
        if self._bucket_ledger and content:
            self._bucket_ledger.append(self.seq + 1, content)
        before = os.fstat(self._file.fileno()).st_size
        try:
            self._write(content)
        except OSError:
            self._file.truncate(before)
            raise
        for event in numbered:
            self._apply(event)

    def _write(self, content: bytes) -> None:
        assert self._file is not None
        unwritten = memoryview(content)
        while unwritten:
            unwritten = unwritten[self._file.write(unwritten) :]
        os.fsync(self._file.fileno())

    def _replay(self, content: bytes) -> list[LedgerEvent]:
        """Apply and return every complete line."""
        whole = content.rfind(b"\n") + 1
        events = []
        for number, line in enumerate(content[:whole].splitlines(), start=self.seq + 1):
            try:
                event = LedgerEvent.from_json(json.loads(line))
                self._apply(event)
            except (ValueError, KeyError, TypeError) as error:
                problem = f"is damaged ({type(error).__name__}: {error})"
                remedy = "restore the file from a backup, or remove that line if the cell may be trained again"
                raise InvalidInput("ledger", f"{self.path}:{number}", problem, remedy) from error
            events.append(event)
        self.size += whole
        return events

    def _apply(self, event: LedgerEvent) -> None:
        if event.seq != self.seq + 1:
            raise ValueError(f"seq {event.seq} follows {self.seq}")
        if event.event == "open":
            if event.format != FORMAT:
                raise ValueError(f"format {event.format} is not {FORMAT}")
        elif event.event == "planned":
            assert event.spec is not None
            self.entries[event.cell] = entry = Entry(event.cell, event.spec, event.origin)
            self._curves[entry.cell.curve].append(entry)
            self._count(entry, None)
            if entry.origin != "grid":
                self.off_grid.append(entry)
        else:
            entry = self.entries[event.cell]
            before = entry.state
            # The result first: progress, in its thread, reads the state before it reads the result.
            entry.result, entry.state = event.result or NO_RESULT, event.event
            entry.reused_from = event.reused_from
            self._count(entry, before)
        self.seq = event.seq

    def _count(self, entry: Entry, before: State | None) -> None:
        """Keep counts up to date, so that nothing iterates over a long ledger whenever a cell ends."""
        counts = self._scales[entry.cell.scale]
        counts[entry.state] += 1
        if before:
            counts[before] -= 1
        self._changes[entry.cell.curve] += 1
