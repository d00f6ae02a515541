"""Weights that outlive a run: ``weights/step-00001000.safetensors`` in a cell's folder, with a JSON file that makes it
valid and says what it is, see ``trainers.described``.

Tensors are named as the model's parameters: ``lm_head.weight`` is E, ``embedding.weight`` where it is tied.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from search_spaces.cell import Cell
from trainers import described
from trainers.described import Damaged

if TYPE_CHECKING:
    from torch import Tensor

FOLDER = "weights"
OUTPUT, TIED = "lm_head.weight", "embedding.weight"
"""Names of the output embedding, untied and tied; the second is the input embedding where they are two."""


@dataclass(frozen=True)
class Kept:
    """A file of weights, which whoever reads it has yet to compare with its digest."""

    path: Path
    cell: Cell
    step: int


def save(folder: Path, cell: Cell, step: int, tensors: Mapping[str, Tensor]) -> None:
    """What cannot be written, as on a full storage, leaves no file of ``step`` behind."""
    from trainers.checkpoint import save_tensors  # imports torch: seconds, and whoever reads these does without

    content = {
        "spec": cell.model_dump(mode="json"),
        "shape": asdict(cell.shape),
        "tensors": {
            name: {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}
            for name, tensor in tensors.items()
        },
    }
    data = described.path_of(folder, step)
    described.write(data, lambda path: save_tensors(tensors, path), cell=cell.id, step=step, content=content)


def keep_until(folder: Path, step: int) -> None:
    """Remove what was kept after ``step``, and what a kill left: a run that resumes at ``step`` writes it anew."""
    for path in sorted(folder.glob(described.PATTERN)):  # the JSON before what it makes valid
        if comes_after(path.name, step) or path.suffix.endswith("-tmp"):
            path.unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def comes_after(name: str, step: int) -> bool:
    """Whether a file of a folder of weights is of a later step."""
    return int(name.removeprefix("step-").partition(".")[0]) > step


def kept(folder: Path, cell_id: str) -> Iterator[Kept]:
    """The weights in a folder, by step. One that is not valid is named in a warning and passed over.

    Of a home in a bucket only the descriptions may be here yet.
    """
    found = (path for path in folder.glob(described.PATTERN) if path.suffix in (described.SUFFIX, ".json"))
    for data in sorted({path.with_suffix(described.SUFFIX) for path in found}):
        try:
            content = described.description(data, cell_id)
            yield Kept(data, Cell.model_validate(content["spec"]), content["step"])
        except (Damaged, ValidationError) as why:
            what = why if isinstance(why, Damaged) else "they are of another version"
            warnings.warn(f"weights {data} passed over: {what}", stacklevel=2)
