"""Checksums of token files: large files are read once, small ones every time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from search_spaces.errors import InvalidInput
from trainers.data import Recipe, tokenize, verification
from trainers.data.verification import verify


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Writes token files like ``oec data prepare``."""
    (tmp_path / "a.txt").write_text("to be or not to be\n" * 100)
    recipe = Recipe(source=str(tmp_path / "a.txt"), tokenizer="bytes", shard_tokens=1000, val_tokens=200)
    tokenize(recipe, tmp_path / "out", workers=1)
    return sorted((tmp_path / "out").glob("*.bin"))


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treats every file as large."""
    monkeypatch.setattr(verification, "SMALL_BYTES", 0)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_flipped_byte_is_found_even_if_the_time_is_unchanged(files: list[Path], tmp_path: Path) -> None:
    verify(files, tmp_path / "memo.json")
    before = files[1].stat()
    flip(files[1])
    os.utime(files[1], ns=(before.st_atime_ns, before.st_mtime_ns))  # like a disk error
    with pytest.raises(InvalidInput, match=rf"{files[1].name}.*has changed since"):
        verify(files, tmp_path / "memo.json")


@pytest.mark.usefixtures("large")
def test_a_large_file_is_read_once_and_again_when_it_has_changed(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    sha256 = verification.sha256
    monkeypatch.setattr(verification, "sha256", lambda path: read.append(path.name) or sha256(path))
    for _ in range(2):
        verify(files, tmp_path / "memo.json")
    assert read == [path.name for path in files]
    flip(files[0])
    with pytest.raises(InvalidInput, match=rf"{files[0].name}.*has changed since"):
        verify(files, tmp_path / "memo.json")
    (tmp_path / "memo.json").write_text("torn")
    flip(files[0])
    verify(files, tmp_path / "memo.json")


@pytest.mark.parametrize("manifest", [None, "[]", '{"files": ["train.bin"]}', "no JSON"])
def test_shards_without_a_manifest_of_ours_are_not_verified(tmp_path: Path, manifest: str | None) -> None:
    (tmp_path / "train.bin").write_bytes(b"anything")
    if manifest:
        (tmp_path / "manifest.json").write_text(manifest)
    verify([tmp_path / "train.bin"], tmp_path / "memo.json")
    assert not (tmp_path / "memo.json").exists()
