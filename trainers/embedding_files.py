"""Embedding matrices in files of weights: our own, and those of other people's models, as safetensors or as NumPy's
``.npy``. No pickle: a ``.pt`` file can run what it likes when it is read."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from search_spaces.errors import InvalidInput

OUTPUT = re.compile(r"(^|\.)(lm_head|embed_out|output)(\.embedding)?\.weight$")
"""Names that models give to their output embedding."""
INPUT = re.compile(r"(^|\.)(embedding|wte|embed_tokens|embed_in|tok_embeddings)\.weight$")
"""And to their input embedding, which a tied model has alone."""
NUMPY_DTYPES = ("F64", "F32", "F16")
DTYPES = (*NUMPY_DTYPES, "BF16")


def embeddings(path: Path, name: str | None = None) -> dict[str, NDArray[np.floating]]:
    """The output embedding, ``(V, D)``, as ``output``, and the input embedding as ``input`` where it is another matrix.

    Args:
        name: of the output embedding in the file, which then is all that is read; found by usual names without.

    Raises:
        InvalidInput: the file cannot be read, or has no such matrix.
    """
    if path.suffix == ".npy":
        return {"output": _npy(path)}
    try:
        with safe_open(path, "np") as file:
            there = {key: _Tensor(file, key) for key in file.keys()}  # noqa: SIM118  # it is no mapping
            names = {"output": name} if name else _found(path, there)
            for of in names.values():
                _check(path, of, there)
            return {which: _read(path, of, there[of]) for which, of in names.items()}
    except (OSError, SafetensorError) as error:
        problem = f"cannot be read as safetensors ({type(error).__name__}: {error})"
        raise InvalidInput("--weights", str(path), problem, "give a .safetensors or .npy file") from error


class _Tensor:
    """What the head of a file says of a tensor."""

    def __init__(self, file: safe_open, name: str) -> None:
        told = file.get_slice(name)  # type: ignore[no-untyped-call]
        self.shape, self.dtype = tuple(told.get_shape()), str(told.get_dtype())

    def __str__(self) -> str:
        return f"{' x '.join(map(str, self.shape))} {self.dtype}"

    @property
    def is_matrix(self) -> bool:
        return len(self.shape) == 2 and min(self.shape) > 0 and self.dtype in DTYPES


def _found(path: Path, there: dict[str, _Tensor]) -> dict[str, str]:
    matrices = [name for name, tensor in there.items() if tensor.is_matrix]
    outputs = [name for name in matrices if OUTPUT.search(name)]
    inputs = [name for name in matrices if INPUT.search(name) and name not in outputs]
    found = outputs or inputs
    if len(found) != 1:
        problem = f"has {len(found)} matrices with a usual name of an output embedding"
        raise InvalidInput("--weights", str(path), problem, f"name it by --embedding: {_listed(there)}")
    return {"output": found[0]} | ({"input": inputs[0]} if outputs and len(inputs) == 1 else {})


def _check(path: Path, name: str, there: dict[str, _Tensor]) -> None:
    if name not in there:
        raise InvalidInput("--embedding", name, f"is not in {path}", f"choose from {_listed(there)}")
    if not there[name].is_matrix:
        raise InvalidInput("--embedding", name, f"is no matrix ({there[name]})", f"choose from {_listed(there)}")


def _listed(there: dict[str, _Tensor]) -> str:
    listed = [f"{name} ({tensor})" for name, tensor in there.items() if tensor.is_matrix]
    return ", ".join(listed) or "no matrix"


def _read(path: Path, name: str, tensor: _Tensor) -> NDArray[np.floating]:
    if tensor.dtype in NUMPY_DTYPES:
        with safe_open(path, "np") as file:
            matrix: NDArray[np.floating] = file.get_tensor(name)
            return matrix
    with safe_open(path, "pt") as file:  # bfloat16, which NumPy does not have; imports torch: seconds
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
        problem = f"holds no matrix of floating-point numbers ({array.dtype} of shape {array.shape})"
        raise InvalidInput("--weights", str(path), problem, "give the output embedding, a row a token")
    return array
