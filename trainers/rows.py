"""``metrics.jsonl``: one JSON object a line and an evaluation, appended as the run goes."""

from __future__ import annotations

import json
import os
from pathlib import Path

from search_spaces.errors import InvalidInput
from trainers.files import write_atomically


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


def read(path: Path) -> list[dict[str, float]]:
    """The whole rows of a metrics file, none if there is no file; a torn last line is left out.

    Raises:
        InvalidInput: the file is damaged elsewhere than in its last line.
    """
    if not path.is_file():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    return [_row(path, number, line) for number, line in enumerate(whole.split(b"\n")[:-1], start=1)]


def _row(path: Path, number: int, line: bytes) -> dict[str, float]:
    try:
        row: dict[str, float] = json.loads(line)
        if all(isinstance(row[name], int | float) for name in {"step", *row}):
            return row
        problem = "holds something else than numbers"
    except (ValueError, KeyError, TypeError) as error:  # no JSON, not of UTF-8, no step, no object
        problem = f"is damaged ({type(error).__name__}: {error})"
    raise InvalidInput("metrics", f"{path}:{number}", problem, "remove that line: a view lacks one point then")
