"""Files that a crash leaves whole: the old content or the new, never a half."""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

LEFT = re.compile(r"\..+-[0-9a-f]{32}")
"""Names of files that ``replacing`` has not finished."""


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of ``path`` once the block ends without an error.

    Raises:
        OSError: it can not be written.
    """
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        file = temporary.open("xb")
    except OSError as error:
        error.filename = str(path)  # the name that whoever reads this knows
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
    """Remove what a kill left of ``replacing`` in ``folder``, which nobody else writes to; returns what that was."""
    left = [path for path in folder.glob(".*-*") if LEFT.fullmatch(path.name)]
    for path in left:
        path.unlink(missing_ok=True)
    return left


def write_atomically(path: Path, text: str) -> None:
    """Replace the content of ``path`` by ``text``."""
    with replacing(path) as file:
        file.write(text.encode())
