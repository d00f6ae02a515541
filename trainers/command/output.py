"""What a command has printed, in two files of bounded size.

``output.log`` is appended to. When it is full it becomes ``output.log.1``, as in log rotation, and the older one goes:
a command that never stops printing takes ``MAX_BYTES`` of the disk.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from pathlib import Path

NAME, PREVIOUS = "output.log", "output.log.1"
MAX_BYTES = 4 * 2**20
"""Of both files together."""
TAIL_LINES, TAIL_BYTES = 20, 4000
"""How much of the output a reason quotes."""

logger = logging.getLogger(__name__)


class Output:
    """Writes the output of one cell; there is only one writer.

    Storage that is full loses output and does not end the cell: rows and checkpoints decide about that.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path, self._previous = folder / NAME, folder / PREVIOUS
        self._file = self._path.open("ab", buffering=0)
        self._size = self._file.tell()
        self._failed = False
        self._tail = b""

    def begin(self, words: Sequence[str]) -> None:
        """Write the command itself, before its output."""
        self._append(f"$ {shlex.join(words)}\n".encode())

    def write(self, data: bytes) -> None:
        self._tail = (self._tail + data)[-TAIL_BYTES:]
        self._append(data)

    def _append(self, data: bytes) -> None:
        try:
            if self._size and self._size + len(data) > MAX_BYTES // 2:
                self._file.close()
                self._path.replace(self._previous)
                self._file = self._path.open("ab", buffering=0)
                self._size = 0
            self._size += self._file.write(data)
        except OSError as error:
            if not self._failed:
                logger.warning("%s loses output: %s", self._path, error)
            self._failed = True

    def close(self) -> None:
        self._file.close()

    def last_lines(self) -> str:
        """The end of what the command has printed."""
        lines = self._tail.decode(errors="replace").replace("\r", "\n").splitlines()
        return "\n".join([line.rstrip() for line in lines if line.strip()][-TAIL_LINES:])


def read_output(folder: Path) -> str | None:
    """What is kept of a cell's output; None if there is none."""
    kept = [path.read_bytes() for path in (folder / PREVIOUS, folder / NAME) if path.is_file()]
    return b"".join(kept).decode(errors="replace") if kept else None
