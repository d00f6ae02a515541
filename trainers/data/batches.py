"""Which tokens a step reads, and a thread that reads them ahead of time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from functools import lru_cache
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import InvalidInput
from trainers.data.shards import Shards

BLOCK_TOKENS = 1 << 17
"""Tokens that the reading thread passes on at a time: passing them on costs more than reading a tiny model's batch."""
BLOCKS_AHEAD = 4


def batch_windows(seed: int, step: int, batch_size: int, windows: int) -> NDArray[np.int64]:
    """Returns the windows ``(batch_size,)`` of the global batch of ``step``, out of ``windows``.

    The stream of all batches is a sequence of permutations of the windows. Each window is read once per epoch, and a
    batch may span two epochs. The window at a position depends only on (seed, step, position).
    """
    out = np.empty(batch_size, dtype=np.int64)
    start = step * batch_size
    end = start + batch_size
    for epoch in range(start // windows, (end - 1) // windows + 1):
        first = epoch * windows
        low, high = max(start, first), min(end, first + windows)
        out[low - start : high - start] = _permutation(seed, epoch, windows)[low - first : high - first]
    return out


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, windows: int) -> NDArray[np.int64]:
    """Returns a permutation keyed by (seed, epoch): the order of raw Philox words.

    NumPy guarantees the raw words of a bit generator across versions, but not ``permutation``.
    """
    words = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(windows)
    order: NDArray[np.int64] = np.argsort(words, kind="stable")
    order.setflags(write=False)
    return order


class Prefetcher:
    """Reads the local batches of the steps ``start_step`` to ``end_step - 1`` ahead of time in a background thread.

    Use it as a context manager and iterate over it once: it yields uint16 arrays ``(batch_size / world_size, T + 1)``
    in step order. Rank r reads the positions ``[r * B / W, (r + 1) * B / W)`` of each global batch. The iteration
    raises the thread's exceptions. Leaving the context ends the thread at any point of the iteration.

    Raises:
        InvalidInput: the batch cannot be divided evenly among the ranks, or no window fits into the shards.
    """

    def __init__(
        self,
        shards: Shards,
        *,
        seed: int,
        T: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
        end_step: int,
    ) -> None:
        if batch_size % world_size:
            raise InvalidInput(
                "training.batch_size", batch_size, f"is not divisible by {world_size} workers", "use a multiple of it"
            )
        self._windows = shards.windows(T)
        if not self._windows:
            raise InvalidInput(
                "training.sequence_length",
                T,
                f"is longer than every shard ({shards.tokens} tokens in total)",
                "shorten it",
            )
        self._shards, self._seed, self._T, self._batch_size = shards, seed, T, batch_size
        self._local = batch_size // world_size
        self._places = slice(rank * self._local, (rank + 1) * self._local)
        self._steps = range(start_step, end_step)
        self._blocks: queue.Queue[NDArray[np.uint16] | Exception | None] = queue.Queue(BLOCKS_AHEAD)
        self._closing = False
        self._thread = threading.Thread(target=self._read_ahead, name="prefetch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[NDArray[np.uint16]]:
        while isinstance(block := self._blocks.get(), np.ndarray):
            yield from block
        self._blocks.put(block)  # the thread has ended: a second iteration must end too, instead of waiting for it
        if block is not None:
            raise block

    def close(self) -> None:
        """Ends the thread and waits for it. Emptying the queue unblocks a ``put`` that it may be waiting in."""
        self._closing = True
        while not self._blocks.empty():
            self._blocks.get_nowait()
        self._thread.join()
        self._blocks.put(None)

    def _read_ahead(self) -> None:
        try:
            stride = max(1, BLOCK_TOKENS // (self._local * (self._T + 1)))
            for start in range(self._steps.start, self._steps.stop, stride):
                steps = range(start, min(start + stride, self._steps.stop))
                windows = [batch_windows(self._seed, s, self._batch_size, self._windows)[self._places] for s in steps]
                block = self._shards.read(np.concatenate(windows), self._T)
                self._blocks.put(block.reshape(len(steps), self._local, self._T + 1))
                if self._closing:
                    return
            self._blocks.put(None)
        except Exception as error:
            self._blocks.put(error)
