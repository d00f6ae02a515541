"""What every stream of metrics has in common: records as they appear, read incrementally."""

from __future__ import annotations

import glob
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any, Protocol

from search_spaces.metrics_spec import MetricsSpec
from trainers.storage.bucket import SET_ASIDE

ESCAPED = re.compile(r"\[([*?[])\]")
"""What ``glob.escape`` makes of a character with a meaning."""


@dataclass(frozen=True)
class Record:
    """Values that a command has written together."""

    values: Mapping[str, Any]
    """By the command's own keys; anything that is not a number is ignored."""
    step: int | None = None
    """The step that the source itself gives."""
    restarts: bool = False
    """Whether it is the first of a file that is read from its start: the records may repeat earlier ones."""


class Stream(Protocol):
    """A source of records. Torn lines, and files that are truncated, replaced or not there yet, are normal."""

    def __init__(self, spec: MetricsSpec, path: str) -> None:
        """
        Args:
            path: a glob, or the URI of a database; empty for the output.
        """

    def own_files(self) -> set[Path]:
        """The files that this source consists of. They only show that a command has started, not that it can resume."""

    def read(self, *, ended: bool = False) -> list[Record]:
        """The records since the last call, which may repeat some after a file was replaced.

        Args:
            ended: nothing more will be written, so a last line without its end is complete.
        """

    def seen(self) -> str:
        """What is there, as a clause for the message that no metric was found."""


class Tail:
    """New complete lines of a text file, or bytes of a binary one, whose path may be a glob: the newest file counts."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.path: Path | None = None
        self.restarted = False
        """Whether the last read began at the start of a file."""
        self._unmarked = False
        self._identity: tuple[int, int] | None = None
        self._offset = 0
        self._rest = b""

    def read(self) -> bytes:
        """The bytes since the last call; from the start if the file is another one, or shorter than before."""
        self.restarted = False
        path = newest(self.pattern)
        if path is None:
            return b""
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                identity = status.st_dev, status.st_ino
                if identity != self._identity or status.st_size < self._offset:
                    self.path, self._identity, self._offset, self._rest = path, identity, 0, b""
                self.restarted = self._offset == 0
                self._unmarked |= self.restarted
                file.seek(self._offset)
                data = file.read()
                self._offset += len(data)
                return data
        except OSError:  # it is being replaced
            return b""

    def lines(self, *, ended: bool = False) -> list[str]:
        """The complete lines since the last call; with ``ended``, also one that lacks its end."""
        data = self.read()
        *lines, self._rest = (self._rest + data).split(b"\n")
        if ended and self._rest:
            lines, self._rest = [*lines, self._rest], b""
        return [line.decode(errors="replace") for line in lines]

    def marked(self, records: list[Record]) -> list[Record]:
        """The records of a read, the first of which says whether the file was read from its start for it."""
        if self._unmarked and records:
            self._unmarked = False
            return [replace(records[0], restarts=True), *records[1:]]
        return records

    def restart(self) -> None:
        """Read the file from its start the next time."""
        self._offset, self._rest = 0, b""

    def seen(self) -> str:
        return f"{self.path} exists" if self.path else f"{unescape(self.pattern)} does not exist"


def newest(pattern: str) -> Path | None:
    """The file of this path, or the newest one that a glob matches."""
    if (path := Path(pattern)).is_file():
        return path
    return max(files(pattern), key=_modified, default=None)


def files(pattern: str) -> list[Path]:
    """The files that a glob matches, without those that were set aside."""
    parts = Path(pattern).parts
    fixed = list(takewhile(lambda part: not glob.has_magic(ESCAPED.sub("", part)), parts))
    root, variable = Path(*map(unescape, fixed)), Path(*parts[len(fixed) :])
    try:
        found = list(root.glob(str(variable))) if variable.parts else [root]
    except FileNotFoundError:  # a folder was just removed, such as an old checkpoint; the next call finds the others
        return []
    below = ((path, path.relative_to(root).parts) for path in found if path.is_file())
    return [path for path, parts in below if not any(part.startswith(SET_ASIDE) for part in parts)]


def unescape(pattern: str) -> str:
    """The inverse of ``glob.escape``."""
    return ESCAPED.sub(r"\1", pattern)


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # it has just been removed
        return 0.0


def group_by_step(points: Iterable[tuple[str, int, float]]) -> list[Record]:
    """One record per step of ``(key, step, value)``, in the order of the steps."""
    by_step: dict[int, dict[str, float]] = defaultdict(dict)
    for key, step, value in points:
        by_step[step][key] = value
    return [Record(values, step) for step, values in sorted(by_step.items())]


def keys_seen(keys: Iterable[str]) -> str:
    """Names the keys that were found, as a clause."""
    found = sorted(keys)
    return f"it has {', '.join(map(repr, found[:20]))}" if found else "it has no value yet"
