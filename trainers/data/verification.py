"""Checks that token files are unchanged: a loss does not reveal a disk error or a failed copy."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import Field

from search_spaces.errors import InvalidInput
from trainers.storage.files import sha256
from trainers.storage.memo import load_memo, save_memo

MANIFEST = "manifest.json"
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
"""A file in the manifest's own folder; no path out of it."""
SMALL_BYTES = 64 << 20
"""Up to this size a file is read every time, which takes a tenth of a second: a memo does not detect disk errors."""


def verify(paths: Iterable[Path], memo: Path) -> None:
    """Checks files against their SHA-256 in the ``manifest.json`` in their folder, if there is one.

    Args:
        memo: remembers the large files by size and modification time, so that they are read only once.

    Raises:
        InvalidInput: a file has changed; it names the file.
    """
    paths = list(paths)
    checksums = {folder: _checksums(folder) for folder in {path.parent for path in paths}}
    before = load_memo(memo)
    known = dict(before)
    for path in paths:
        if not (checksum := checksums[path.parent].get(path.name)):
            continue
        stat = path.stat()
        version = f"{checksum} {stat.st_size} {stat.st_mtime_ns}"
        if stat.st_size > SMALL_BYTES and known.get(str(path)) == version:
            continue
        if sha256(path) != checksum:
            remedy = "delete its folder to write it again; or restore it, or prepare it again with the same command"
            raise InvalidInput("data", str(path), "has changed since it was written (SHA-256)", remedy)
        if stat.st_size > SMALL_BYTES:
            known[str(path)] = version
    if known != before:
        save_memo(memo, known)


def _checksums(folder: Path) -> dict[str, str]:
    """Returns the checksums by file name from either kind of our manifests; nothing for a missing or foreign one."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        if isinstance(files, dict):
            return {name: entry["sha256"] for name, entry in files.items()}
        return {entry["name"]: entry["sha256"] for entry in files}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
