"""Checkpoints: one safetensors file, and a JSON file with its digest that makes it valid. No pickle.

``step-00000020.safetensors`` is written first and its ``.json`` last, each to a temporary name, synced and renamed:
a crash at any point leaves the checkpoint before it untouched and the new one either valid or visibly not.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from trainers.files import sha256

KEPT = 2
"""Checkpoints kept: the newest, and the one before it in case the newest is damaged."""


@dataclass(frozen=True)
class Checkpoint:
    tensors: dict[str, Tensor]
    """On the processor."""
    progress: dict[str, Any]
    """What the run carries beside its tensors, as JSON values."""


class Damaged(Exception):
    """A checkpoint that can not be trusted; the message says why."""


def save(folder: Path, cell_id: str, step: int, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
    """Writes the checkpoint of ``step`` and removes all but the ``KEPT`` newest.

    What can not be written, as on a full storage, leaves no file of ``step`` behind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"step-{step:08d}.safetensors"
    try:
        _write(data, cell_id, step, tensors, progress)
    except Exception:
        for path in folder.glob(f"{data.stem}.*"):
            path.unlink()
        raise
    newest = {path.stem for path in sorted(folder.glob("step-*.json"))[-KEPT:]}
    for path in folder.iterdir():
        if path.stem not in newest:
            path.unlink()


def _write(data: Path, cell_id: str, step: int, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
    temporary = data.with_suffix(".tensors-tmp")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
    content = {"cell": cell_id, "step": step, "sha256": sha256(temporary), "progress": progress}
    content["digest"] = _digest(content)
    _publish(temporary, data)
    temporary = data.with_suffix(".json-tmp")
    temporary.write_text(json.dumps(content), encoding="utf-8")
    _publish(temporary, data.with_suffix(".json"))


def latest(folder: Path, cell_id: str) -> Checkpoint | None:
    """The newest valid checkpoint of the cell, or None. One that is not valid is named in a warning and passed over."""
    for data in sorted(folder.glob("step-*.safetensors"), reverse=True):
        try:
            return _load(data, cell_id)
        except Damaged as why:
            warnings.warn(f"checkpoint {data} passed over: {why}", stacklevel=2)
    return None


def remove(folder: Path) -> None:
    """Removes every checkpoint in ``folder``, and the folder."""
    if folder.is_dir():
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def _load(data: Path, cell_id: str) -> Checkpoint:
    try:
        content = json.loads(data.with_suffix(".json").read_text(encoding="utf-8"))
        cell, expected, progress = content["cell"], content["sha256"], content["progress"]
        intact = content.pop("digest") == _digest(content)
    except FileNotFoundError as error:
        raise Damaged("its JSON file is missing, so it was never completed") from error
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged("its JSON file is torn") from error
    if cell != cell_id:
        raise Damaged(f"it belongs to cell {cell}, not {cell_id}")
    if not intact:
        raise Damaged("its JSON file has other content than when it was written")
    if sha256(data) != expected:
        raise Damaged("its content does not match its SHA-256")
    return Checkpoint(load_file(data), progress)


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
