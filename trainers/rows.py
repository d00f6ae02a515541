"""``metrics.jsonl``: one JSON object per evaluation, a line each, appended during the run."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import overload

from search_spaces.errors import InvalidInput
from search_spaces.record import Row
from trainers.storage.files import write_atomically


class Rows:
    """The metrics file of one run, of which this is the only writer."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def keep_until(self, step: int) -> None:
        """Drop the rows after ``step`` and a torn last line: a run that resumes at ``step`` writes them again."""
        kept = [json.dumps(row.to_json()) + "\n" for row in read(self.path) if row.step <= step]
        write_atomically(self.path, "".join(kept))

    def append(self, row: Row) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row.to_json(), allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())


class LazyRows(Sequence[Row]):
    """The rows of a metrics file, each parsed on access: a page shows a few of many.

    Empty if there is no file; a torn last line is ignored. Accessing a damaged row raises InvalidInput.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        content = path.read_bytes() if path.is_file() else b""
        self._lines = content[: content.rfind(b"\n") + 1].split(b"\n")[:-1]

    def __len__(self) -> int:
        return len(self._lines)

    @overload
    def __getitem__(self, at: int) -> Row: ...

    @overload
    def __getitem__(self, at: slice) -> list[Row]: ...

    def __getitem__(self, at: int | slice) -> Row | list[Row]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        return _row(self._path, at % len(self) + 1 if at < 0 else at + 1, self._lines[at])


def read(path: Path) -> list[Row]:
    """The complete rows of a metrics file, none if there is no file; a torn last line is ignored.

    Raises:
        InvalidInput: the file is damaged before its last line.
    """
    return list(LazyRows(path))


def _row(path: Path, number: int, line: bytes) -> Row:
    try:
        return Row.from_json(json.loads(line))
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # not JSON, not UTF-8, no step, not an object
        problem = f"is damaged ({type(error).__name__}: {error})"
        remedy = "remove that line; views will lack one point"
        raise InvalidInput("metrics", f"{path}:{number}", problem, remedy) from error
