"""``<home>/service/audit.jsonl``: an append-only log of changes. Each has two lines: request and outcome.

The first line is synced to disk before the change starts, so no change is missing from the log after a crash.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

COMMAND_LINE = "(command line)"
"""The name in place of a token when ``oec token`` makes a change."""


class Audit:
    """The audit log; any number of processes may append to it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "audit.jsonl"
        self.lines_written = 0
        """By this process."""

    @contextmanager
    def change(self, token: str, action: str, target: str) -> Iterator[None]:
        """Log the change that the block makes. If the block raises, the error is the outcome, and is raised again."""
        change = uuid.uuid4().hex[:12]
        self._append(change, token, action, target, "asked")
        try:
            yield
        except Exception as error:
            self._append(change, token, action, target, f"{type(error).__name__}: {error}"[:500])
            raise
        self._append(change, token, action, target, "done")

    def log_refusal(self, token: str, action: str, target: str, reason: str) -> None:
        """Log a change that was refused before it started."""
        self._append(uuid.uuid4().hex[:12], token, action, target, reason)

    def _append(self, change: str, token: str, action: str, target: str, outcome: str) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = {"at": now, "change": change, "token": token, "action": action, "study": target, "outcome": outcome}
        with open(self._path, "ab", buffering=0, opener=partial(os.open, mode=0o600)) as file:
            file.write((json.dumps(line) + "\n").encode())  # one write, so that lines of several processes never mix
            os.fsync(file)
        self.lines_written += 1
