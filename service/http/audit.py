"""``<home>/service/audit.jsonl``: who changed what. Append-only, and two lines a change: asked, and what came of it.

The first is on the storage before anything is done, so that nothing happens without a line, whatever dies.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

COMMAND_LINE = "(command line)"
"""Stands for a token where a change was made by ``oec token``."""


class Audit:
    """The file; any number of processes append to it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "audit.jsonl"
        self.lines = 0
        """Written by this process."""

    @contextmanager
    def change(self, token: str, action: str, what: str) -> Iterator[None]:
        """Around a change by ``token``: the block's error is its outcome, and goes on."""
        change = uuid.uuid4().hex[:12]
        self._append(change, token, action, what, "asked")
        try:
            yield
        except Exception as error:
            self._append(change, token, action, what, f"{type(error).__name__}: {error}"[:500])
            raise
        self._append(change, token, action, what, "done")

    def refused(self, token: str, action: str, what: str, why: str) -> None:
        """A change that was not even begun."""
        self._append(uuid.uuid4().hex[:12], token, action, what, why)

    def _append(self, change: str, token: str, action: str, what: str, outcome: str) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = {"at": now, "change": change, "token": token, "action": action, "study": what, "outcome": outcome}
        file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(file, (json.dumps(line) + "\n").encode())  # one write: lines of several processes do not mix
            os.fsync(file)
        finally:
            os.close(file)
        self.lines += 1
