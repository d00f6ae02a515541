"""Metrics in text: JSON lines, CSV, and the command's own output."""

from __future__ import annotations

import csv
import json
import re
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from search_spaces.metrics_spec import MetricsSpec
from trainers.metric_streams.base import Record, Tail, files, keys_seen

MAX_LINE = 1 << 16
"""Bytes after which a line of output without an end is taken as a line."""


class TextFile:
    """A text file that grows."""

    def __init__(self, spec: MetricsSpec, path: str) -> None:
        self._tail, self._keys = Tail(path), set[str]()

    def own_files(self) -> set[Path]:
        return set(files(self._tail.pattern))

    def seen(self) -> str:
        return f"{self._tail.seen()}; {keys_seen(self._keys)}" if self._tail.path else self._tail.seen()


class JsonLines(TextFile):
    """One JSON object per line. Other lines are ignored, because a log may have both."""

    def read(self, *, ended: bool = False) -> list[Record]:
        records = []
        for line in self._tail.lines(ended=ended):
            try:
                content = json.loads(line)
            except ValueError:
                continue
            if isinstance(content, dict):
                values = dict(flatten(content))
                self._keys |= set(values)
                records.append(Record(values))
        return self._tail.marked(records)


def flatten(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested objects, under keys that are joined by dots and, as loggers do, by slashes."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
            yield from flatten(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


class Csv(TextFile):
    """A CSV file with a header. It is read again when the header changes: Lightning rewrites it for a new column."""

    def __init__(self, spec: MetricsSpec, path: str) -> None:
        super().__init__(spec, path)
        self._header, self._first = list[str](), ""

    def read(self, *, ended: bool = False) -> list[Record]:
        if self._first and self._tail.path and _first_line(self._tail) != self._first:
            self._tail.restart()
        lines = self._tail.lines(ended=ended)
        if self._tail.restarted:
            self._first = ""
        if not self._first and lines:
            self._first, *lines = lines
            self._header = next(csv.reader([self._first]))
            self._keys = set(self._header)
        records = [Record(dict(zip(self._header, row, strict=False))) for row in csv.reader(lines) if row]
        return self._tail.marked(records)


def _first_line(tail: Tail) -> str:
    assert tail.path is not None
    try:
        with tail.path.open("rb") as file:
            return file.readline().removesuffix(b"\n").decode(errors="replace")
    except OSError:  # it is being replaced
        return ""


class Stdout:
    """Regular expressions over each line of the output. A carriage return ends a line, as in a progress bar."""

    def __init__(self, spec: MetricsSpec, path: str) -> None:
        self._expressions = [re.compile(text) for text in spec.stdout]
        self._lines: deque[str] = deque()
        self._rest = b""
        self._count = 0
        self._lock = threading.Lock()

    def own_files(self) -> set[Path]:
        return set()

    def feed(self, data: bytes) -> None:
        """Called by the thread that reads the output. Only lines that match are kept."""
        *lines, rest = re.split(rb"[\r\n]", self._rest + data)
        if len(rest) > MAX_LINE:
            lines, rest = [*lines, rest], b""
        self._rest = rest
        self._count += len(lines)
        texts = [line[:MAX_LINE].decode(errors="replace") for line in lines]
        found = [text for text in texts if any(expression.search(text) for expression in self._expressions)]
        with self._lock:
            self._lines.extend(found)

    def read(self, *, ended: bool = False) -> list[Record]:
        if ended and self._rest:
            self.feed(b"\n")
        with self._lock:
            lines = list(self._lines)
            self._lines.clear()
        found = (match for line in lines for expression in self._expressions if (match := expression.search(line)))
        return [
            Record({key: value for key, value in match.groupdict().items() if value is not None}) for match in found
        ]

    def seen(self) -> str:
        return f"none of {self._count} lines of output matched" if self._count else "there was no output"
