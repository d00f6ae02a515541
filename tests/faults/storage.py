"""Storage that is full or read-only, for real: a small file system of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(path: Path, size: str) -> Iterator[None]:
    """A tmpfs of ``size`` at ``path``; skips the test where mounting is not allowed."""
    path.mkdir(parents=True, exist_ok=True)
    result = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], capture_output=True)
    if result.returncode:
        pytest.skip(f"needs the right to mount a file system: {result.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def remount(path: Path, options: str) -> None:
    """Change a mounted one: ``size=64m``, ``ro``, ``rw``."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(path)], check=True)


def fill(path: Path, leaving: int) -> None:
    """Leave ``leaving`` bytes in the file system at ``path``, a multiple of its blocks."""
    room = os.statvfs(path)
    with (path / "filler").open("wb") as file:
        file.write(b"\0" * (room.f_bavail * room.f_frsize - leaving))
