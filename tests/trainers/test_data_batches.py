"""Which windows a step reads, and the thread that reads them ahead of time."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces.errors import InvalidInput
from trainers.data import Prefetcher, Shards, batch_windows, write_shard
from trainers.data import batches as module

T = 8


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    folder = tmp_path_factory.mktemp("shards")
    for name, size in (("a", 300), ("b", 173)):
        write_shard(folder / f"{name}.bin", np.random.default_rng(size).integers(0, 1000, size))
    return Shards.match(str(folder / "*.bin"))


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_order_is_frozen() -> None:
    """Changing it changes the result of every cell, so that the ids of trained cells would be wrong."""
    assert batch_windows(1, 0, 8, 100).tolist() == [2, 41, 20, 19, 21, 0, 1, 52]
    assert batch_windows(1, 12, 8, 100).tolist() == [90, 35, 91, 44, 10, 7, 46, 80]
    assert batch_windows(2, 0, 8, 100).tolist() == [9, 90, 16, 91, 6, 80, 13, 42]


@settings(deadline=None)
@given(seed=st.integers(0, 2**40), windows=st.integers(1, 60), batch_size=st.integers(1, 20), epochs=st.integers(1, 3))
def test_every_window_is_read_once_per_epoch(seed: int, windows: int, batch_size: int, epochs: int) -> None:
    steps = -(-epochs * windows // batch_size)
    stream = np.concatenate([batch_windows(seed, step, batch_size, windows) for step in range(steps)])
    for epoch in range(epochs):
        assert sorted(stream[epoch * windows : (epoch + 1) * windows].tolist()) == list(range(windows))


@settings(deadline=None)
@given(seed=st.integers(0, 9), a=st.integers(1, 12), b=st.integers(1, 12))
def test_only_the_position_in_the_stream_matters(seed: int, a: int, b: int) -> None:
    """The stream does not depend on the batch size, or on the order in which steps are requested."""
    by_a = [batch_windows(seed, step, a, 17) for step in reversed(range(b))][::-1]
    by_b = [batch_windows(seed, step, b, 17) for step in range(a)]
    assert np.concatenate(by_a).tolist() == np.concatenate(by_b).tolist()


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(batch_windows(seed, epoch, 50, 50).tolist()) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


@settings(max_examples=25, deadline=None)
@given(world_size=st.sampled_from([1, 2, 3, 4, 6, 12]), start=st.integers(0, 20), steps=st.integers(0, 15))
def test_tokens_do_not_depend_on_workers_or_start(shards: Shards, world_size: int, start: int, steps: int) -> None:
    """The batches of all ranks, from any step on, form the global batch that a direct read returns."""
    ranks = []
    for rank in range(world_size):
        with Prefetcher(
            shards,
            seed=3,
            T=T,
            batch_size=12,
            rank=rank,
            world_size=world_size,
            start_step=start,
            end_step=start + steps,
        ) as batches:
            ranks.append(list(batches))
    direct = [shards.read(batch_windows(3, step, 12, shards.windows(T)), T) for step in range(start, start + steps)]
    assert all(batch.dtype == np.uint16 and batch.shape == (12 // world_size, T + 1) for r in ranks for batch in r)
    assert [np.concatenate(parts).tolist() for parts in zip(*ranks, strict=True)] == [
        batch.tolist() for batch in direct
    ]


def test_blocks_join_without_a_gap(shards: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_TOKENS", 3 * 4 * (T + 1))
    with Prefetcher(shards, seed=1, T=T, batch_size=4, end_step=50) as batches:
        read = list(batches)
    direct = [shards.read(batch_windows(1, step, 4, shards.windows(T)), T) for step in range(50)]
    assert np.array_equal(read, direct)


@pytest.mark.parametrize("taken", [0, 1, 30])
def test_leaving_early_ends_the_thread(shards: Shards, monkeypatch: pytest.MonkeyPatch, taken: int) -> None:
    monkeypatch.setattr(module, "BLOCK_TOKENS", 1)
    with Prefetcher(shards, seed=1, T=T, batch_size=4, end_step=10**9) as batches:
        assert len([batch for _, batch in zip(range(taken), batches, strict=False)]) == taken
        assert readers()
    assert not readers(), "the reading thread is still running after its context has ended"


def test_a_second_iteration_ends_instead_of_hanging(shards: Shards) -> None:
    with Prefetcher(shards, seed=1, T=T, batch_size=4, end_step=3) as batches:
        assert len(list(batches)) == 3
        assert list(batches) == []
    assert list(batches) == []


def test_error_of_the_thread_reaches_the_consumer(shards: Shards) -> None:
    """NumPy rejects a negative seed, which happens in the thread."""
    with (
        pytest.raises(ValueError, match="non-negative"),
        Prefetcher(shards, seed=-1, T=T, batch_size=4, end_step=5) as batches,
    ):
        next(iter(batches))
    assert not readers()


@pytest.mark.parametrize(
    ("change", "field"),
    [({"world_size": 3}, "training.batch_size"), ({"T": 300}, "training.sequence_length")],
)
def test_bad_input(shards: Shards, change: dict[str, int], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Prefetcher(shards, **{"seed": 1, "T": T, "batch_size": 4, "end_step": 5} | change)
    assert caught.value.field == field
