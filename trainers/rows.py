"""``metrics.jsonl``: one JSON object a line and an evaluation, appended as the run goes."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import overload

from search_spaces.errors import InvalidInput
from trainers.storage.files import write_atomically

NUMBERS = frozenset((int, float))


class Rows:
    """The metrics file of one run, of which this is the only writer."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def keep_until(self, step: int) -> None:
        """Drops the rows after ``step`` and a torn last line: what a run that resumes at ``step`` writes anew."""
        kept = [json.dumps(row) + "\n" for row in read(self.path) if row["step"] <= step]
        write_atomically(self.path, "".join(kept))

    def append(self, row: dict[str, float]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())


class Lines(Sequence[dict[str, float]]):
    """The whole rows of a metrics file, each read when it is asked for, as a page shows a few of many; none if there is
    no file, and a torn last line is left out.

    Asking for a row that is damaged raises InvalidInput.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        content = path.read_bytes() if path.is_file() else b""
        self._lines = content[: content.rfind(b"\n") + 1].split(b"\n")[:-1]

    def __len__(self) -> int:
        return len(self._lines)

    @overload
    def __getitem__(self, at: int) -> dict[str, float]: ...

    @overload
    def __getitem__(self, at: slice) -> list[dict[str, float]]: ...

    def __getitem__(self, at: int | slice) -> dict[str, float] | list[dict[str, float]]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        return _row(self._path, at % len(self) + 1 if at < 0 else at + 1, self._lines[at])


def read(path: Path) -> list[dict[str, float]]:
    """The whole rows of a metrics file, none if there is no file; a torn last line is left out.

    Raises:
        InvalidInput: the file is damaged elsewhere than in its last line.
    """
    return list(Lines(path))


def _row(path: Path, number: int, line: bytes) -> dict[str, float]:
    try:
        row: dict[str, float] = json.loads(line)
        if "step" in row and NUMBERS.issuperset(map(type, row.values())):
            return row
        problem = "holds something else than numbers"
    except (ValueError, KeyError, TypeError) as error:  # no JSON, not of UTF-8, no step, no object
        problem = f"is damaged ({type(error).__name__}: {error})"
    raise InvalidInput("metrics", f"{path}:{number}", problem, "remove that line: a view lacks one point then")
