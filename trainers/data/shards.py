"""Token shards: the only format that the trainer reads, and the format of the public GPT-2 token sets.

A shard is 256 little-endian int32 (magic, version, token count, zeros), then the tokens as little-endian uint16.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from search_spaces.errors import InvalidInput, expand, reason
from trainers.storage.files import atomic_writer

MAGIC, VERSION = 20240520, 1
HEADER_BYTES = 256 * 4
TOKEN = np.dtype("<u2")
SCAN_TOKENS = 1 << 22
"""Tokens that a scan processes at a time: 8 MiB, which mostly fit into cache."""
WHOLE_DIGEST_BYTES = 64 << 20
BLOCK_BYTES = 1 << 20


def write_shard(path: Path, tokens: ArrayLike) -> None:
    """Atomically writes ``tokens``, a one-dimensional array of integers in 0..65535, as a shard.

    Raises:
        ValueError: the array is empty, not one-dimensional or not of integers, or an id does not fit into uint16.
    """
    ids = np.asarray(tokens)
    if ids.ndim != 1 or not ids.size or ids.dtype.kind not in "iu":
        raise ValueError(
            f"a shard is a non-empty one-dimensional array of integers, not {ids.dtype} of shape {ids.shape}"
        )
    if ids.dtype != TOKEN:
        if ids.min() < 0 or ids.max() > np.iinfo(TOKEN).max:
            raise ValueError(f"token ids {ids.min()}..{ids.max()} do not fit into uint16")
        ids = ids.astype(TOKEN)
    header = np.zeros(256, dtype="<i4")
    header[:3] = MAGIC, VERSION, ids.size
    with atomic_writer(path) as file:
        file.write(header.tobytes())
        file.write(np.ascontiguousarray(ids).data)


def match(pattern: str, origin: str = "data.path") -> list[Path]:
    """Returns the absolute, sorted paths that a glob matches; ``**`` and ``~`` are supported.

    A pattern that is the name of a file matches this file, whatever characters it has.

    Raises:
        InvalidInput: it is not a valid pattern.
    """
    path = expand(pattern, origin)
    if path.is_file():
        return [path]
    try:
        return sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
    except ValueError as error:  # e.g. "a**"
        raise InvalidInput(origin, pattern, f"is not a valid glob ({error})", "correct it") from error


@dataclass(frozen=True)
class Shards:
    """Memory-mapped shards, read in windows. Opening them checks each file's header against its size.

    It pickles as its absolute paths, and opens them again when it is unpickled.

    Raises:
        InvalidInput: a file is missing, empty, truncated, or in another format; it names ``origin`` and the file.
    """

    paths: tuple[Path, ...]
    origin: str = field(default="data.path", compare=False)
    """The study's field that gave the files, for error messages."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "paths", tuple(Path(path).absolute() for path in self.paths))
        for path in self.paths:
            self._check(path)

    def __reduce__(self) -> tuple[type[Shards], tuple[tuple[Path, ...], str]]:
        return type(self), (self.paths, self.origin)

    @classmethod
    def match(cls, pattern: str, origin: str = "data.path") -> Shards:
        """Returns the shards that match a glob, sorted by name.

        Raises:
            InvalidInput: nothing matches, or see the class.
        """
        if not (paths := match(pattern, origin)):
            raise InvalidInput(
                origin, pattern, f"matches no file (from {Path.cwd()})", "give the glob of existing token shards"
            )
        return cls(tuple(paths), origin)

    @cached_property
    def tokens(self) -> int:
        """Total number of tokens."""
        return sum(len(ids) for ids in self._maps)

    def windows(self, T: int) -> int:
        """Returns the number of windows of T + 1 tokens. Inputs do not overlap, and no window spans two shards."""
        return int(self._first_windows(T)[-1])

    def read(self, indices: Sequence[int] | NDArray[np.integer], T: int) -> NDArray[np.uint16]:
        """Returns the windows ``indices`` as an array ``(n, T + 1)``: inputs are ``[:, :-1]``, targets ``[:, 1:]``.

        Raises:
            IndexError: an index is outside of ``0..windows(T) - 1``.
        """
        first = self._first_windows(T)
        indices = np.asarray(indices, dtype=np.int64)
        if indices.size and not 0 <= indices.min() <= indices.max() < first[-1]:
            raise IndexError(f"windows {indices.min()}..{indices.max()} of 0..{first[-1] - 1} for T = {T}")
        shards = np.searchsorted(first, indices, side="right") - 1
        starts = (indices - first[shards]) * T
        out = np.empty((len(indices), T + 1), dtype=np.uint16)
        for row, shard, start in zip(out, shards.tolist(), starts.tolist(), strict=True):
            row[:] = self._maps[shard][start : start + T + 1]
        return out

    def check_vocabulary(self, vocab_size: int) -> None:
        """Checks every token.

        Raises:
            InvalidInput: a token id is not below ``vocab_size``; it names the first such id, its file and position.
        """
        for path, ids in zip(self.paths, self._maps, strict=True):
            for start in range(0, len(ids), SCAN_TOKENS):
                chunk = ids[start : start + SCAN_TOKENS]
                if chunk.max() >= vocab_size:
                    place = int(np.argmax(chunk >= vocab_size))
                    raise InvalidInput(
                        "data.vocab_size",
                        vocab_size,
                        f"is too small for token id {chunk[place]} at position {start + place} of {path}",
                        "give the vocabulary that these shards were made with",
                    )

    @cached_property
    def digest(self) -> str:
        """SHA-256 over each shard's token count and tokens, in hexadecimal.

        Shards of more than 64 MiB in total are sampled: the digest covers each shard's token count and evenly spaced
        blocks of 1 MiB, including its first and its last. There are about 64 blocks in total, at least two per shard.
        """
        total = hashlib.sha256()
        whole = self.tokens * TOKEN.itemsize <= WHOLE_DIGEST_BYTES
        blocks = max(2, WHOLE_DIGEST_BYTES // BLOCK_BYTES // max(1, len(self.paths)))
        for ids in self._maps:
            total.update(len(ids).to_bytes(8, "little"))
            for part in [ids] if whole else _sampled(ids, blocks):
                total.update(np.ascontiguousarray(part).data)
        return total.hexdigest()

    @cached_property
    def _maps(self) -> tuple[NDArray[np.uint16], ...]:
        """The tokens of each shard, as plain arrays over the maps: slicing an ``np.memmap`` is ten times slower."""
        return tuple(np.memmap(path, TOKEN, "r", HEADER_BYTES).view(np.ndarray) for path in self.paths)

    @cached_property
    def _counts(self) -> NDArray[np.int64]:
        return np.array([len(ids) for ids in self._maps], dtype=np.int64)

    def _first_windows(self, T: int) -> NDArray[np.int64]:
        """Returns the index of each shard's first window, followed by the total number of windows."""
        return np.concatenate([[0], np.cumsum((self._counts - 1) // T)])

    def _check(self, path: Path) -> None:
        def bad(problem: str, remedy: str) -> InvalidInput:
            return InvalidInput(self.origin, str(path), problem, remedy)

        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                start = file.read(HEADER_BYTES)
        except OSError as error:
            raise bad(f"cannot be read ({reason(error)})", "give token shards that exist") from error
        if len(start) < HEADER_BYTES:
            raise bad(
                f"is not a token shard: it has {size} bytes, a header has {HEADER_BYTES}",
                "give token shards, or write it again",
            )
        magic, version, count = (int(n) for n in np.frombuffer(start, "<i4", 3))
        if magic != MAGIC:
            raise bad(f"is not a token shard: it starts with {magic}, not {MAGIC}", "give uint16 token shards")
        if version != VERSION:
            raise bad(f"is a token shard of version {version}", f"write it again in version {VERSION} (uint16)")
        if count <= 0:
            raise bad(f"has {count} tokens", "remove it, or write it again")
        if size != (expected := HEADER_BYTES + count * TOKEN.itemsize):
            raise bad(f"has {size} bytes, but its {count} tokens need {expected}", "download it or write it again")


def _sampled(ids: NDArray[np.uint16], blocks: int) -> Iterator[NDArray[np.uint16]]:
    size = BLOCK_BYTES // TOKEN.itemsize
    for start in np.linspace(0, max(0, len(ids) - size), blocks).astype(np.int64).tolist():
        yield ids[start : start + size]
