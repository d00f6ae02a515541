"""The output embedding in weight files, of our models and of others."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from search_spaces.errors import InvalidInput
from trainers.embedding_files import embeddings

E_VD = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
OTHER_VD = E_VD + 1


def written(folder: Path, **tensors: torch.Tensor) -> Path:
    path = folder / "model.safetensors"
    save_file({name.replace("__", "."): tensor.clone() for name, tensor in tensors.items()}, path)
    return path


@pytest.mark.parametrize(
    ("output", "input_"),
    [
        ("lm_head__weight", "embedding__weight"),  # ours
        ("lm_head__embedding__weight", "transformer__wte__weight"),  # the published code's
        ("_orig_mod__lm_head__embedding__weight", "_orig_mod__transformer__wte__weight"),  # a compiled model's
        ("lm_head__weight", "model__embed_tokens__weight"),
        ("embed_out__weight", "gpt_neox__embed_in__weight"),
    ],
)
def test_common_names(tmp_path: Path, output: str, input_: str) -> None:
    path = written(tmp_path, **{output: E_VD, input_: OTHER_VD, "blocks__0__weight": E_VD, "norm__weight": E_VD[0]})
    found = embeddings(path)
    np.testing.assert_array_equal(found["output"], E_VD.numpy())
    np.testing.assert_array_equal(found["input"], OTHER_VD.numpy())


def test_a_tied_model_has_one(tmp_path: Path) -> None:
    found = embeddings(written(tmp_path, embedding__weight=E_VD, norm__weight=E_VD[0]))
    assert list(found) == ["output"]
    np.testing.assert_array_equal(found["output"], E_VD.numpy())


def test_one_by_name(tmp_path: Path) -> None:
    found = embeddings(written(tmp_path, lm_head__weight=E_VD, mine=OTHER_VD), "mine")
    assert list(found) == ["output"]
    np.testing.assert_array_equal(found["output"], OTHER_VD.numpy())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_types_of_numbers(tmp_path: Path, dtype: torch.dtype) -> None:
    found = embeddings(written(tmp_path, lm_head__weight=E_VD.to(dtype)))["output"]
    np.testing.assert_array_equal(found.astype(np.float64), E_VD.to(dtype).double().numpy())


def test_npy(tmp_path: Path) -> None:
    np.save(tmp_path / "E.npy", E_VD.numpy())
    np.testing.assert_array_equal(embeddings(tmp_path / "E.npy")["output"], E_VD.numpy())


@pytest.mark.parametrize(
    ("tensors", "name", "words"),
    [
        ({"lm_head__weight": E_VD, "embed_out__weight": E_VD}, None, r"has 2 matrices .*lm_head.weight \(9 x 4 F32\)"),
        ({"a": E_VD, "b": E_VD[0]}, None, r"has 0 matrices .* name it with --embedding: a \(9 x 4 F32\)"),
        ({"a": E_VD[0]}, None, "has 0 matrices .* no matrix"),
        ({"lm_head__weight": E_VD.int()}, None, "has 0 matrices"),
        ({"lm_head__weight": E_VD}, "lm_head", r"--embedding: 'lm_head' is not in .*choose from lm_head.weight"),
        ({"lm_head__weight": E_VD, "norm": E_VD[0]}, "norm", r"'norm' is not a matrix \(4 F32\)"),
    ],
)
def test_a_file_without_it_lists_its_matrices(
    tmp_path: Path, tensors: dict[str, torch.Tensor], name: str | None, words: str
) -> None:
    with pytest.raises(InvalidInput, match=words):
        embeddings(written(tmp_path, **tensors), name)


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('it ran')",)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", b""),
        ("model.safetensors", b"\xff" * 100),
        ("model.pt", pickle.dumps({"lm_head.weight": Bomb()})),
        ("E.npy", b"\x93NUMPY"),
        ("E.npy", b"PK"),
        ("E.npy", b""),
    ],
)
def test_a_file_that_is_not_a_model_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInput, match=rf"--weights: .*{name}' cannot be read as"):
        embeddings(tmp_path / name)


def test_npy_of_objects_is_not_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "E.npy", np.array([[Bomb()]]), allow_pickle=True)
    with pytest.raises(InvalidInput, match=r"cannot be read as \.npy"):
        embeddings(tmp_path / "E.npy")


@pytest.mark.parametrize("array", [np.zeros(3), np.zeros((2, 2), dtype=int), np.zeros((0, 3))])
def test_npy_with_another_shape_or_type(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "E.npy", array)
    with pytest.raises(InvalidInput, match="is not a matrix of floating-point numbers"):
        embeddings(tmp_path / "E.npy")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for name in ("model.safetensors", "E.npy"):
        with pytest.raises(InvalidInput, match="cannot be read"):
            embeddings(tmp_path / name)
