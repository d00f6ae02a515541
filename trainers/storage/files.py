"""Atomic writes: after a crash a file has the old content or the new, never a mixture."""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

UNFINISHED = re.compile(r"\..+-[0-9a-f]{32}")
"""Names of the temporary files of ``atomic_writer``."""


def sha256(path: Path) -> str:
    """SHA-256 of a file's content as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that replaces ``path`` if the block ends without an error.

    Raises:
        OSError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        file = temporary.open("xb")
    except OSError as error:
        error.filename = str(path)  # not that of the temporary file, which means nothing to a user
        raise
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> list[Path]:
    """Remove temporary files of killed processes from ``folder``, and return them. No other process may write there."""
    leftovers = [path for path in folder.glob(".*-*") if UNFINISHED.fullmatch(path.name)]
    for path in leftovers:
        path.unlink(missing_ok=True)
    return leftovers


def write_atomically(path: Path, text: str) -> None:
    """Replace the content of ``path`` with ``text``."""
    with atomic_writer(path) as file:
        file.write(text.encode())
