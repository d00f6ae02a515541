"""Token shards: the one format that the loop reads, and the one of the public GPT-2 token sets.

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

from search_spaces.errors import InvalidInput
from trainers.storage.files import atomic_writer

MAGIC, VERSION = 20240520, 1
HEADER_BYTES = 256 * 4
TOKEN = np.dtype("<u2")
SCAN_TOKENS = 1 << 22
"""Tokens looked at in one go by a scan: 8 MiB, in cache for most of it."""
WHOLE_DIGEST_BYTES = 64 << 20
BLOCK_BYTES = 1 << 20


def write_shard(path: Path, tokens: ArrayLike) -> None:
    """Write ``tokens`` (any integers in 0..65535, one dimension) as a shard; a reader sees all of it or nothing.

    Raises:
        ValueError: no tokens, no integers, more than one dimension, or an id that uint16 can not hold.
    """
    ids = np.asarray(tokens)
    if ids.ndim != 1 or not ids.size or ids.dtype.kind not in "iu":
        raise ValueError(f"a shard takes one dimension of one integer or more, not {ids.dtype} of shape {ids.shape}")
    if ids.dtype != TOKEN:
        if ids.min() < 0 or ids.max() > np.iinfo(TOKEN).max:
            raise ValueError(f"token ids {ids.min()}..{ids.max()} do not fit uint16")
        ids = ids.astype(TOKEN)
    header = np.zeros(256, dtype="<i4")
    header[:3] = MAGIC, VERSION, ids.size
    with atomic_writer(path) as file:
        file.write(header.tobytes())
        file.write(np.ascontiguousarray(ids).data)


def match(pattern: str) -> list[Path]:
    """The files and folders that a glob matches, absolute and sorted; ``**`` and ``~`` are understood."""
    path = Path(pattern).expanduser().absolute()
    return sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))


@dataclass(frozen=True)
class Shards:
    """Memory-mapped shards, read in windows. Opening checks each file's header against its size.

    It pickles as its paths, which are absolute, and opens them anew where it is unpickled.

    Raises:
        InvalidInput: a file is missing, empty, truncated, or of another format; names ``origin`` and the file.
    """

    paths: tuple[Path, ...]
    origin: str = field(default="data.path", compare=False)
    """The study's field that named the files; errors name it too."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "paths", tuple(Path(path).absolute() for path in self.paths))
        for path in self.paths:
            self._check(path)

    def __reduce__(self) -> tuple[type[Shards], tuple[tuple[Path, ...], str]]:
        return type(self), (self.paths, self.origin)

    @classmethod
    def match(cls, pattern: str, origin: str = "data.path") -> Shards:
        """The shards that match a glob, in the order of their names.

        Raises:
            InvalidInput: nothing matches, or see the class.
        """
        if not (paths := match(pattern)):
            raise InvalidInput(
                origin, pattern, f"matches no file (from {Path.cwd()})", "give the glob of existing token shards"
            )
        return cls(tuple(paths), origin)

    @cached_property
    def tokens(self) -> int:
        """Tokens in all shards."""
        return sum(len(ids) for ids in self._maps)

    def windows(self, T: int) -> int:
        """Windows of T inputs and one target; their inputs do not overlap, and none crosses a shard's end."""
        return int(self._first_windows(T)[-1])

    def read(self, indices: Sequence[int] | NDArray[np.integer], T: int) -> NDArray[np.uint16]:
        """The windows ``indices`` as a new array (n, T + 1): inputs are ``[:, :-1]``, targets ``[:, 1:]``.

        Raises:
            IndexError: an index outside ``0..windows(T) - 1``.
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
        """Look at every token.

        Raises:
            InvalidInput: a token id is ``vocab_size`` or above; names the first, its file and its position.
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
        """SHA-256, as 64 hexadecimal digits, over each shard's token count and tokens.

        Above 64 MiB in total not all tokens are read: of each shard, its count and blocks of 1 MiB at even
        distances, from its first to its last, about 64 over all shards and at least two of each.
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
        """The tokens of each shard; plain arrays over the maps, since ``np.memmap`` slices ten times slower."""
        return tuple(np.memmap(path, TOKEN, "r", HEADER_BYTES).view(np.ndarray) for path in self.paths)

    @cached_property
    def _counts(self) -> NDArray[np.int64]:
        return np.array([len(ids) for ids in self._maps], dtype=np.int64)

    def _first_windows(self, T: int) -> NDArray[np.int64]:
        """Number of the first window of each shard, and behind them the number of windows."""
        return np.concatenate([[0], np.cumsum((self._counts - 1) // T)])

    def _check(self, path: Path) -> None:
        def bad(problem: str, remedy: str) -> InvalidInput:
            return InvalidInput(self.origin, str(path), problem, remedy)

        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                start = file.read(HEADER_BYTES)
        except OSError as error:
            raise bad(f"can not be read ({type(error).__name__})", "give token shards that exist") from error
        if len(start) < HEADER_BYTES:
            raise bad(
                f"is no token shard: {size} bytes, a header has {HEADER_BYTES}", "give token shards, or make it again"
            )
        magic, version, count = (int(n) for n in np.frombuffer(start, "<i4", 3))
        if magic != MAGIC:
            raise bad(f"is no token shard: it starts with {magic}, not {MAGIC}", "give uint16 token shards")
        if version != VERSION:
            raise bad(f"is a token shard of version {version}", f"make it again in version {VERSION} (uint16)")
        if count <= 0:
            raise bad(f"holds {count} tokens", "leave it out, or make it again")
        if size != (expected := HEADER_BYTES + count * TOKEN.itemsize):
            raise bad(f"has {size} bytes, its {count} tokens need {expected}", "fetch or make it again")


def _sampled(ids: NDArray[np.uint16], blocks: int) -> Iterator[NDArray[np.uint16]]:
    size = BLOCK_BYTES // TOKEN.itemsize
    for start in np.linspace(0, max(0, len(ids) - size), blocks).astype(np.int64).tolist():
        yield ids[start : start + size]
