"""Whether token files still are what was written: a disk or a copy that went wrong shows in no loss."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import Field

from search_spaces.errors import InvalidInput
from trainers.storage.files import sha256, write_atomically

MANIFEST = "manifest.json"
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
"""A file of the manifest's own folder: nothing that leads out of it."""
SMALL_BYTES = 64 << 20
"""Up to here a file is read every time: a tenth of a second. A memo can not see what a disk did to it."""


def verify(paths: Iterable[Path], memo: Path) -> None:
    """Compare files with the SHA-256 that the ``manifest.json`` beside them has, if it has one.

    Args:
        memo: remembers the large files by size and time of change, so that they are read once.

    Raises:
        InvalidInput: a file has other content; names it.
    """
    paths = list(paths)
    checksums = {folder: _checksums(folder) for folder in {path.parent for path in paths}}
    before = _recalled(memo)
    known = dict(before)
    for path in paths:
        if not (written := checksums[path.parent].get(path.name)):
            continue
        stat = path.stat()
        seen = f"{written} {stat.st_size} {stat.st_mtime_ns}"
        if stat.st_size > SMALL_BYTES and known.get(str(path)) == seen:
            continue
        if sha256(path) != written:
            remedy = "delete its folder, and it is made again; or restore it, or prepare it again with the same command"
            raise InvalidInput("data", str(path), "has other content than when it was written (SHA-256)", remedy)
        if stat.st_size > SMALL_BYTES:
            known[str(path)] = seen
    if known != before:
        memo.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(memo, json.dumps(known, indent=1))


def _checksums(folder: Path) -> dict[str, str]:
    """By file name, what either kind of our manifests says; nothing without one, or with somebody else's."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        if isinstance(files, dict):
            return {name: entry["sha256"] for name, entry in files.items()}
        return {entry["name"]: entry["sha256"] for entry in files}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _recalled(memo: Path) -> dict[str, str]:
    try:
        content = json.loads(memo.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
