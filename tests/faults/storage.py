"""Storage that really is full or read-only: a small file system mounted for the test."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(path: Path, size: str) -> Iterator[None]:
    """Mounts a tmpfs of ``size`` at ``path``. Skips the test if mounting is not allowed."""
    path.mkdir(parents=True, exist_ok=True)
    result = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], capture_output=True)
    if result.returncode:
        pytest.skip(f"needs the right to mount a file system: {result.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def remount(path: Path, options: str) -> None:
    """Changes the options of a mounted file system, such as ``size=64m``, ``ro`` or ``rw``."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(path)], check=True)


def fill(path: Path, leaving: int) -> None:
    """Fills the file system at ``path`` until ``leaving`` bytes, a multiple of its block size, are free."""
    room = os.statvfs(path)
    with (path / "filler").open("wb") as file:
        file.write(b"\0" * (room.f_bavail * room.f_frsize - leaving))
