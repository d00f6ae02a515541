"""Checkpoints: a file of tensors and a JSON file that makes it valid, see ``trainers.described``."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from trainers import described
from trainers.described import Damaged

KEPT = 2
"""Checkpoints kept: the newest, and the one before it in case the newest is damaged."""


@dataclass(frozen=True)
class Checkpoint:
    tensors: dict[str, Tensor]
    """On the processor."""
    progress: dict[str, Any]
    """What the run carries beside its tensors, as JSON values."""


def save(folder: Path, cell_id: str, step: int, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
    """Writes the checkpoint of ``step`` and removes all but the ``KEPT`` newest.

    What can not be written, as on a full storage, leaves no file of ``step`` behind.
    """
    data = described.path_of(folder, step)
    described.write(
        data, lambda path: save_tensors(tensors, path), cell=cell_id, step=step, content={"progress": progress}
    )
    newest = {path.stem for path in sorted(folder.glob("step-*.json"))[-KEPT:]}
    for path in folder.iterdir():
        if path.stem not in newest:
            path.unlink()


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


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
    content = described.verified(data, cell_id)
    return Checkpoint(load_file(data), content["progress"])
