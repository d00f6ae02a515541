"""The shard format byte by byte, files that it rejects, and reading of windows."""

from __future__ import annotations

import hashlib
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from search_spaces.errors import InvalidInput
from trainers.data import Shards, write_shard
from trainers.data import shards as module


def header(magic: int = 20240520, version: int = 1, count: int = 3) -> bytes:
    return struct.pack("<3i", magic, version, count) + bytes(4 * 253)


def test_format_is_frozen(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.bin", [1, 258, 65535])
    assert (tmp_path / "a.bin").read_bytes() == header() + b"\x01\x00\x02\x01\xff\xff", (
        "the shard format is public: a change would break existing files"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"], "a temporary file was left behind"


@pytest.mark.parametrize("tokens", [[], [[1, 2]], [-1], [65536], [0.5]])
def test_an_invalid_shard_is_not_written(tmp_path: Path, tokens: list[object]) -> None:
    write_shard(tmp_path / "a.bin", [7])
    with pytest.raises(ValueError, match=r"shard is a|do not fit"):
        write_shard(tmp_path / "a.bin", tokens)
    assert Shards((tmp_path / "a.bin",)).tokens == 1
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "0 bytes"),
        (header()[:1000], "1000 bytes"),
        (header(count=0), "has 0 tokens"),
        (header(count=-1), "has -1 tokens"),
        (header() + bytes(4), "has 1028 bytes, but its 3 tokens need 1030"),
        (header() + bytes(8), "has 1032 bytes, but its 3 tokens need 1030"),
        (header(magic=20240801) + bytes(6), "starts with 20240801"),
        (header(version=7) + bytes(6), "version 7"),
    ],
)
def test_bad_file_is_named(tmp_path: Path, content: bytes, problem: str) -> None:
    write_shard(tmp_path / "a.bin", [1, 2])
    (tmp_path / "b.bin").write_bytes(content)
    with pytest.raises(InvalidInput) as caught:
        Shards.match(str(tmp_path / "*.bin"), "data.validation")
    assert caught.value.field == "data.validation"
    assert caught.value.value == str(tmp_path / "b.bin")
    assert problem in caught.value.problem


@pytest.mark.parametrize(
    ("opening", "problem"),
    [
        (lambda folder: Shards.match(str(folder / "*.bin")), "matches no file"),
        (lambda folder: Shards.match(str(folder)), "cannot be read (Is a directory)"),
        (lambda folder: Shards((folder / "gone.bin",)), "cannot be read (No such file or directory)"),
    ],
)
def test_missing_file_is_named(tmp_path: Path, opening: Callable[[Path], Shards], problem: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        opening(tmp_path)
    assert caught.value.field == "data.path"
    assert str(tmp_path) in str(caught.value.value)
    assert problem in caught.value.problem


def test_globs_are_sorted_recursive_and_relative_to_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("2.bin", "10.bin", "sub/1.bin"):
        Path(name).parent.mkdir(exist_ok=True)
        write_shard(Path(name), [1, 2])
    assert [path.name for path in Shards.match("*.bin").paths] == ["10.bin", "2.bin"]
    assert Shards.match("**/*.bin").tokens == 6
    assert all(path.is_absolute() for path in Shards.match("*.bin").paths)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4), T=st.integers(1, 12), data=st.data())
def test_windows_are_slices_of_one_shard(tmp_path: Path, sizes: list[int], T: int, data: st.DataObject) -> None:
    """By definition, each shard is split separately into windows of T inputs, plus one more token as the last
    target."""
    ids = [np.arange(size) + 1000 * shard for shard, size in enumerate(sizes)]
    paths = tuple(tmp_path / f"{shard}.bin" for shard in range(len(sizes)))
    for path, content in zip(paths, ids, strict=True):
        write_shard(path, content)
    expected = [content[i : i + T + 1] for content in ids for i in range(0, len(content) - T, T)]
    shards = Shards(paths)
    assert shards.tokens == sum(sizes)
    assert shards.windows(T) == len(expected)
    wanted = data.draw(st.lists(st.integers(0, len(expected) - 1), max_size=6) if expected else st.just([]))
    read = shards.read(wanted, T)
    assert read.dtype == np.uint16
    assert read.shape == (len(wanted), T + 1)
    assert read.tolist() == [expected[i].tolist() for i in wanted]


@pytest.mark.parametrize("index", [-1, 3])
def test_window_outside_the_shards(tmp_path: Path, index: int) -> None:
    write_shard(tmp_path / "a.bin", range(10))
    shards = Shards((tmp_path / "a.bin",))
    assert shards.windows(3) == 3
    with pytest.raises(IndexError, match=r"of 0\.\.2 for T = 3"):
        shards.read([0, index], 3)


def test_only_the_paths_are_pickled(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.bin", np.arange(60_000))
    shards = Shards((tmp_path / "a.bin",))
    shards.read([0], 8)
    pickled = pickle.dumps(shards)
    assert len(pickled) < 1000, "the pickle contains the tokens"
    assert pickle.loads(pickled).read([1], 8).tolist() == shards.read([1], 8).tolist()


def test_a_token_outside_the_vocabulary_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SCAN_TOKENS", 16)
    write_shard(tmp_path / "a.bin", np.zeros(100, dtype=np.uint16))
    tokens = np.zeros(100, dtype=np.uint16)
    tokens[[37, 61]] = 999, 1000
    write_shard(tmp_path / "b.bin", tokens)
    shards = Shards.match(str(tmp_path / "*.bin"))
    shards.check_vocabulary(1001)
    with pytest.raises(InvalidInput, match=rf"token id 999 at position 37 of {tmp_path / 'b.bin'}") as caught:
        shards.check_vocabulary(999)
    assert (caught.value.field, caught.value.value) == ("data.vocab_size", 999)


@pytest.mark.parametrize("whole", [True, False])
def test_digest_depends_on_content_length_and_division(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    if not whole:
        monkeypatch.setattr(module, "WHOLE_DIGEST_BYTES", 1024)
        monkeypatch.setattr(module, "BLOCK_BYTES", 64)
    number = iter(range(100))

    def digest(*contents: np.ndarray) -> str:
        folder = tmp_path / str(next(number))
        folder.mkdir()
        paths = tuple(folder / f"{i}.bin" for i in range(len(contents)))
        for path, content in zip(paths, contents, strict=True):
            write_shard(path, content)
        return Shards(paths).digest

    tokens = np.arange(5000)
    others = [tokens[:-1], tokens[1:], np.append(tokens, 0), tokens[::-1]]
    digests = {digest(tokens), digest(tokens[:2500], tokens[2500:]), *(digest(other) for other in others)}
    assert len(digests) == 6
    assert digest(tokens) == digest(tokens.copy()), "the digest depends on more than the tokens"
    if whole:
        content = (5000).to_bytes(8, "little") + tokens.astype("<u2").tobytes()
        assert digest(tokens) == hashlib.sha256(content).hexdigest(), "cells of older homes would get other ids"
