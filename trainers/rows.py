"""``metrics.jsonl``: one JSON object a line and an evaluation, appended as the run goes."""

from __future__ import annotations

import json
import os
from pathlib import Path

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
    """The whole rows of a metrics file, none if there is no file; a torn last line is left out."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line[-1] == "\n"]
