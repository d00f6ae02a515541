"""A file of tensors, and a JSON file with its digest that makes it valid. No pickle.

``step-00000020.safetensors`` is written first and its ``.json`` last, each to a temporary name, synced and renamed: a
crash at any point leaves the files before it untouched and the new ones either valid or visibly not.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trainers.storage.files import sha256

PATTERN = "step-*"
SUFFIX = ".safetensors"


class Damaged(Exception):
    """A file that cannot be trusted; the message says why."""


def path_of(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}{SUFFIX}"


def write(data: Path, save: Callable[[Path], None], *, cell: str, step: int, content: Mapping[str, Any]) -> None:
    """Write ``data`` by ``save``, then its JSON: whose it is, SHA-256 of the data, ``content``, ``digest`` of the rest.

    Files that cannot be written, as on a full storage, leave nothing of this name behind.
    """
    data.parent.mkdir(parents=True, exist_ok=True)
    try:
        temporary = data.with_suffix(".tensors-tmp")
        save(temporary)
        described = {"cell": cell, "step": step, "sha256": sha256(temporary), **content}
        described["digest"] = _digest(described)
        _publish(temporary, data)
        temporary = data.with_suffix(".json-tmp")
        temporary.write_text(json.dumps(described), encoding="utf-8")
        _publish(temporary, data.with_suffix(".json"))
    except Exception:
        for path in data.parent.glob(f"{data.stem}.*"):
            path.unlink()
        raise


def description(data: Path, cell: str) -> dict[str, Any]:
    """The content of the JSON of ``data``, which itself is not read.

    Raises:
        Damaged: there is none, it is not what was written, or it is of another cell.
    """
    try:
        content: dict[str, Any] = json.loads(data.with_suffix(".json").read_text(encoding="utf-8"))
        whose, intact = content["cell"], content.pop("digest") == _digest(content)
    except FileNotFoundError as error:
        raise Damaged("its JSON file is missing, so it was never completed") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged("its JSON file is torn") from error
    if whose != cell:
        raise Damaged(f"it belongs to cell {whose}, not {cell}")
    if not intact:
        raise Damaged("its JSON file has other content than when it was written")
    return content


def verified(data: Path, cell: str) -> dict[str, Any]:
    """The content of the JSON of ``data``, whose bytes are those that were written.

    Raises:
        Damaged: they are not; see also ``description``.
    """
    content = description(data, cell)
    if not data.is_file() or sha256(data) != content["sha256"]:
        raise Damaged("its content does not match its SHA-256")
    return content


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _publish(temporary: Path, path: Path) -> None:
    """Renames so that after a power cut either the whole file is there or none of it."""
    _sync(temporary)
    temporary.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
