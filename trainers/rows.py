"""``metrics.jsonl``: one JSON object per line and evaluation, appended during the run."""

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
    """Writes the metrics file of one run; there is only one writer."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def keep_until(self, step: int) -> None:
        """Remove the rows after ``step`` and an incomplete last line: a run that resumes at ``step`` repeats them."""
        kept = [json.dumps(row.to_json()) + "\n" for row in read(self.path) if row.step <= step]
        write_atomically(self.path, "".join(kept))

    def append(self, row: Row) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row.to_json(), allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())


class LazyRows(Sequence[Row]):
    """The rows of a metrics file, parsed on access, because a page shows only few of many.

    Empty if the file does not exist. An incomplete last line is ignored. Accessing a damaged row raises InvalidInput.
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
    """The rows of a metrics file; none if the file does not exist. An incomplete last line is ignored.

    Raises:
        InvalidInput: the file is damaged before its last line.
    """
    return list(LazyRows(path))


def _row(path: Path, number: int, line: bytes) -> Row:
    try:
        return Row.from_json(json.loads(line))
    # Not JSON, UTF-8 or an object, or no step.
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"is damaged ({type(error).__name__}: {error})"
        remedy = "remove that line; figures will lack one point"
        raise InvalidInput("metrics", f"{path}:{number}", problem, remedy) from error
