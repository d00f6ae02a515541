"""The micro batch is the largest that fits, equal on all ranks, and remembered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import cell

from trainers import micro_batch
from trainers.engine import Engine
from trainers.world import World


@pytest.fixture
def engine() -> Engine:
    return Engine(cell(batch_size=8), World.single(), compile=False)


def test_it_is_the_largest_divisor_that_fits_and_is_remembered(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memo = tmp_path / "memo.json"
    room = 3.5 * micro_batch.saved_bytes(engine) / micro_batch.MAX_SAVED_SHARE
    monkeypatch.setattr(micro_batch, "available_bytes", lambda: room)
    assert micro_batch.choose(engine, 4, None) == 2
    assert micro_batch.choose(engine, 3, memo) == 3
    monkeypatch.setattr(micro_batch, "available_bytes", lambda: 0)
    assert micro_batch.choose(engine, 3, memo) == 3
    assert micro_batch.choose(engine, 4, memo) == 1
    memo.write_text("torn {")
    assert micro_batch.choose(engine, 3, memo) == 1


def test_saved_bytes_grow_with_the_sequence() -> None:
    engines = (Engine(cell(sequence_length=T), World.single(), compile=False) for T in (32, 64))
    short, long = map(micro_batch.saved_bytes, engines)
    assert short > 32 * 64 * 4 * 10  # at least ten tensors of hidden states
    assert 1.9 < long / short < 2.6


class Room:
    """Limits an engine's calls to a number of sequences, above which they run out of memory as on an accelerator."""

    def __init__(self, engine: Engine, **room: int) -> None:
        self.calls: list[tuple[str, int]] = []
        for name in ("dry_run_step", "warm_up"):
            setattr(engine, name, self._limited(engine, name, getattr(engine, name), room.get(name, 8)))

    def _limited(self, engine: Engine, name: str, call: Callable[[int], None], room: int) -> Callable[[int], None]:
        def limited(sequences: int) -> None:
            self.calls.append((name, sequences))
            call(sequences)
            if sequences > room:
                engine.optimizer.gradient.fill_(1.0)  # an interrupted step leaves a gradient, and the halted flag
                engine.optimizer.halted.fill_(1.0)
                raise torch.OutOfMemoryError("raised by a test")

        return limited


@pytest.mark.parametrize(
    ("room", "size", "last"),
    [
        ({}, 8, ("warm_up", 8)),
        ({"dry_run_step": 2}, 2, ("warm_up", 2)),
        ({"warm_up": 2}, 2, ("warm_up", 2)),  # a compiled step may hold what an eager one does not
        ({"dry_run_step": 4, "warm_up": 1}, 1, ("warm_up", 1)),
        ({"dry_run_step": 0}, 0, ("dry_run_step", 1)),
    ],
    ids=str,
)
def test_sizes_are_tried_in_order_eager_and_then_compiled(
    engine: Engine, room: dict[str, int], size: int, last: tuple[str, int]
) -> None:
    rooms = Room(engine, **room)
    weights = engine.optimizer.values.clone()
    assert micro_batch._try_sizes(engine, [8, 4, 2, 1]) == size
    assert rooms.calls[-1] == last
    tried = [sequences for name, sequences in rooms.calls if name == "dry_run_step"]
    assert tried == [n for n in (8, 4, 2, 1) if n >= size]
    assert float(engine.optimizer.halted) == 0
    assert not engine.optimizer.gradient.any()
    assert torch.equal(engine.optimizer.values, weights)


def test_trying_sizes_frees_the_programs_of_other_cells(engine: Engine) -> None:
    """Captured steps hold memory that the new cell may need."""
    engine.warm_up(4)
    assert len(engine.programs) == 1
    micro_batch._try_sizes(engine, [8])
    assert [key[0] for key in engine.programs] == [8]


def test_several_ranks_do_not_warm_up_while_one_may_still_run_out(engine: Engine) -> None:
    """A warm-up is collective: a rank that failed would leave the others waiting."""
    rooms = Room(engine)
    engine.world = World(0, 2, torch.device("cpu"))
    assert micro_batch._try_sizes(engine, [8, 4]) == 8
    assert rooms.calls == [("dry_run_step", 8)]


def test_other_errors_are_not_mistaken_for_a_lack_of_memory(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(sequences: int) -> None:
        raise RuntimeError("raised by a test")

    monkeypatch.setattr(engine, "dry_run_step", fails)
    with pytest.raises(RuntimeError, match="raised by a test"):
        micro_batch._try_sizes(engine, [8, 4])


def test_if_nothing_fits_the_error_names_the_sequence(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(micro_batch, "_estimate_size", micro_batch._try_sizes)
    Room(engine, dry_run_step=0)
    with pytest.raises(torch.OutOfMemoryError, match=r"not even one sequence of 32 tokens at tiny"):
        micro_batch.choose(engine, 8, None)
