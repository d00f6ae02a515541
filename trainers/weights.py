"""Weights that outlive a run: ``weights/step-00001000.safetensors`` in a cell's folder, with a JSON file that makes it
valid and describes it, see ``trainers.tensor_files``.

Tensors have the names of the model's parameters: ``lm_head.weight`` is E, or ``embedding.weight`` in a tied model.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from search_spaces.cell import Cell
from trainers import tensor_files
from trainers.tensor_files import DamagedFile

if TYPE_CHECKING:
    from torch import Tensor

FOLDER = "weights"
OUTPUT, TIED = "lm_head.weight", "embedding.weight"
"""Names of the output embedding, untied and tied; in an untied model the second is the input embedding."""


@dataclass(frozen=True)
class KeptWeights:
    """A file of weights. A reader still has to check its SHA-256."""

    path: Path
    cell: Cell
    step: int


def save(folder: Path, cell: Cell, step: int, tensors: Mapping[str, Tensor]) -> None:
    """Writes the weights of ``step``. If writing fails, for example on a full disk, no file of it is left behind."""
    from trainers.checkpoint import save_tensors  # imports torch, which takes seconds and which readers do not need

    content = {
        "spec": cell.model_dump(mode="json"),
        "shape": asdict(cell.shape),
        "tensors": {
            name: {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}
            for name, tensor in tensors.items()
        },
    }
    data = tensor_files.path_for(folder, step)
    tensor_files.write(data, lambda path: save_tensors(tensors, path), cell=cell.id, step=step, content=content)


def remove_after(folder: Path, step: int) -> None:
    """Removes weights of later steps, which a run that resumes at ``step`` writes again, and temporary files."""
    for path in sorted(folder.glob(tensor_files.PATTERN)):  # the JSON file before the tensors that it makes valid
        if is_after(path.name, step) or path.suffix.endswith("-tmp"):
            path.unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def is_after(name: str, step: int) -> bool:
    """Returns whether a file of a weights folder belongs to a later step."""
    return int(name.removeprefix("step-").partition(".")[0]) > step


def find_kept(folder: Path, cell_id: str) -> Iterator[KeptWeights]:
    """Yields the weights in a folder by step. Warns about each invalid file that it skips.

    If the home is in a bucket, the JSON files are enough: the tensors may not have been downloaded.
    """
    files = (path for path in folder.glob(tensor_files.PATTERN) if path.suffix in (tensor_files.SUFFIX, ".json"))
    for data in sorted({path.with_suffix(tensor_files.SUFFIX) for path in files}):
        try:
            content = tensor_files.read_description(data, cell_id)
            yield KeptWeights(data, Cell.model_validate(content["spec"]), content["step"])
        except (DamagedFile, ValidationError) as error:
            reason = error if isinstance(error, DamagedFile) else "they are of another version"
            warnings.warn(f"weights {data} skipped: {reason}", stacklevel=2)
