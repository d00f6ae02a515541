"""A file of tensors and a JSON file that describes it and makes it valid. No pickle.

``step-00000020.safetensors`` is written first and its ``.json`` last. Each is written to a temporary name, synced and
renamed: a crash at any point leaves the previous files intact, and the new ones either valid or detectably incomplete.
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


class DamagedFile(Exception):
    """A file that cannot be trusted; the message gives the reason."""


def path_for(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}{SUFFIX}"


def write(data: Path, save: Callable[[Path], None], *, cell: str, step: int, content: Mapping[str, Any]) -> None:
    """Writes ``data`` with ``save``, then its JSON: the cell, the SHA-256 of the data, ``content``, and a digest of it.

    If writing fails, for example on a full disk, no file of this step is left behind.
    """
    data.parent.mkdir(parents=True, exist_ok=True)
    try:
        temporary = data.with_suffix(".tensors-tmp")
        save(temporary)
        description = {"cell": cell, "step": step, "sha256": sha256(temporary), **content}
        description["digest"] = _digest(description)
        _publish(temporary, data)
        temporary = data.with_suffix(".json-tmp")
        temporary.write_text(json.dumps(description), encoding="utf-8")
        _publish(temporary, data.with_suffix(".json"))
    except Exception:
        for path in data.parent.glob(f"{data.stem}.*"):
            path.unlink()
        raise


def read_description(data: Path, cell: str) -> dict[str, Any]:
    """Returns the content of the JSON file of ``data``, without reading ``data`` itself.

    Raises:
        DamagedFile: the JSON file is missing or damaged, or belongs to another cell.
    """
    try:
        content: dict[str, Any] = json.loads(data.with_suffix(".json").read_text(encoding="utf-8"))
        owner, intact = content["cell"], content.pop("digest") == _digest(content)
    except FileNotFoundError as error:
        raise DamagedFile("its JSON file is missing, so it was never completed") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedFile("its JSON file is torn") from error
    if owner != cell:
        raise DamagedFile(f"it belongs to cell {owner}, not {cell}")
    if not intact:
        raise DamagedFile("its JSON file has changed since it was written")
    return content


def read_verified(data: Path, cell: str) -> dict[str, Any]:
    """Returns the content of the JSON file of ``data`` after checking the SHA-256 of ``data``.

    Raises:
        DamagedFile: ``data`` is missing or has changed, or see ``read_description``.
    """
    content = read_description(data, cell)
    if not data.is_file() or sha256(data) != content["sha256"]:
        raise DamagedFile("its content does not match its SHA-256")
    return content


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _publish(temporary: Path, path: Path) -> None:
    """Renames so that a power failure leaves either the whole file or none of it."""
    _sync(temporary)
    temporary.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
