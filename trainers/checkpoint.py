"""Checkpoints: a file of tensors and a JSON file that makes it valid, see ``trainers.tensor_files``."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from trainers import tensor_files
from trainers.tensor_files import DamagedFile

MAX_CHECKPOINTS = 2
"""The newest, and the previous one in case the newest is damaged."""


@dataclass(frozen=True)
class Checkpoint:
    tensors: dict[str, Tensor]
    """On the CPU."""
    progress: dict[str, Any]
    """The state of the run beside its tensors, as JSON values."""


def save(folder: Path, cell_id: str, step: int, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
    """Writes the checkpoint of ``step`` and removes all but the ``MAX_CHECKPOINTS`` newest.

    If writing fails, for example on a full disk, no file of ``step`` is left behind.
    """
    data = tensor_files.path_for(folder, step)
    content = {"progress": progress}
    tensor_files.write(data, lambda path: save_tensors(tensors, path), cell=cell_id, step=step, content=content)
    newest = {path.stem for path in sorted(folder.glob("step-*.json"))[-MAX_CHECKPOINTS:]}
    for path in folder.iterdir():
        if path.stem not in newest:
            path.unlink()


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def load_latest(folder: Path, cell_id: str) -> Checkpoint | None:
    """Returns the newest valid checkpoint of the cell, or None. Warns about each invalid checkpoint that it skips."""
    for data in sorted(folder.glob("step-*.safetensors"), reverse=True):
        try:
            content = tensor_files.read_verified(data, cell_id)
            return Checkpoint(load_file(data), content["progress"])
        except DamagedFile as error:
            warnings.warn(f"checkpoint {data} skipped: {error}", stacklevel=2)
    return None


def remove(folder: Path) -> None:
    """Removes every checkpoint in ``folder``, and the folder."""
    if folder.is_dir():
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
