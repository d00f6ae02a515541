"""Embedding matrices in files of weights, of our models or others, as safetensors or as NumPy's ``.npy``. No pickle: a
``.pt`` file can run arbitrary code when it is read."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from search_spaces.errors import InvalidInput

OUTPUT = re.compile(r"(^|\.)(lm_head|embed_out|output)(\.embedding)?\.weight$")
"""Common names of the output embedding."""
INPUT = re.compile(r"(^|\.)(embedding|wte|embed_tokens|embed_in|tok_embeddings)\.weight$")
"""Common names of the input embedding, the only one in a tied model."""
NUMPY_DTYPES = ("F64", "F32", "F16")
DTYPES = (*NUMPY_DTYPES, "BF16")


def embeddings(path: Path, name: str | None = None) -> dict[str, NDArray[np.floating]]:
    """Returns the output embedding, ``(V, D)``, as ``output``, and a separate input embedding as ``input``.

    Args:
        name: name of the output embedding in the file. Only that matrix is read. Default: common names.

    Raises:
        InvalidInput: the file cannot be read, or has no such matrix.
    """
    if path.suffix == ".npy":
        return {"output": _npy(path)}
    try:
        with safe_open(path, "np") as file:
            tensors = {key: _Tensor(file, key) for key in file.keys()}  # noqa: SIM118  # it is not a mapping
            names = {"output": name} if name else _find_names(path, tensors)
            for key in names.values():
                _check(path, key, tensors)
            return {which: _read(path, key, tensors[key]) for which, key in names.items()}
    except (OSError, SafetensorError) as error:
        problem = f"cannot be read as safetensors ({type(error).__name__}: {error})"
        raise InvalidInput("--weights", str(path), problem, "give a .safetensors or .npy file") from error


class _Tensor:
    """Shape and dtype of a tensor, from the header of a file."""

    def __init__(self, file: safe_open, name: str) -> None:
        header = file.get_slice(name)  # type: ignore[no-untyped-call]
        self.shape, self.dtype = tuple(header.get_shape()), str(header.get_dtype())

    def __str__(self) -> str:
        return f"{' x '.join(map(str, self.shape))} {self.dtype}"

    @property
    def is_matrix(self) -> bool:
        return len(self.shape) == 2 and min(self.shape) > 0 and self.dtype in DTYPES


def _find_names(path: Path, tensors: dict[str, _Tensor]) -> dict[str, str]:
    matrices = [name for name, tensor in tensors.items() if tensor.is_matrix]
    outputs = [name for name in matrices if OUTPUT.search(name)]
    inputs = [name for name in matrices if INPUT.search(name) and name not in outputs]
    candidates = outputs or inputs
    if len(candidates) != 1:
        problem = f"has {len(candidates)} matrices with a common name of an output embedding"
        raise InvalidInput("--weights", str(path), problem, f"name it with --embedding: {_list_matrices(tensors)}")
    return {"output": candidates[0]} | ({"input": inputs[0]} if outputs and len(inputs) == 1 else {})


def _check(path: Path, name: str, tensors: dict[str, _Tensor]) -> None:
    remedy = f"choose from {_list_matrices(tensors)}"
    if name not in tensors:
        raise InvalidInput("--embedding", name, f"is not in {path}", remedy)
    if not tensors[name].is_matrix:
        raise InvalidInput("--embedding", name, f"is not a matrix ({tensors[name]})", remedy)


def _list_matrices(tensors: dict[str, _Tensor]) -> str:
    matrices = [f"{name} ({tensor})" for name, tensor in tensors.items() if tensor.is_matrix]
    return ", ".join(matrices) or "no matrix"


def _read(path: Path, name: str, tensor: _Tensor) -> NDArray[np.floating]:
    if tensor.dtype in NUMPY_DTYPES:
        with safe_open(path, "np") as file:
            matrix: NDArray[np.floating] = file.get_tensor(name)
            return matrix
    with safe_open(path, "pt") as file:  # NumPy has no bfloat16; this imports torch, which takes seconds
        narrow: NDArray[np.floating] = file.get_tensor(name).float().numpy()
        return narrow


def _npy(path: Path) -> NDArray[np.floating]:
    try:
        with path.open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        problem = f"cannot be read as .npy ({type(error).__name__}: {error})"
        raise InvalidInput("--weights", str(path), problem, "give a .safetensors or .npy file") from error
    if not isinstance(array, np.ndarray) or array.ndim != 2 or not array.size or array.dtype.kind != "f":
        problem = f"is not a matrix of floating-point numbers ({array.dtype} of shape {array.shape})"
        raise InvalidInput("--weights", str(path), problem, "give the output embedding, with one row per token")
    return array
