"""Whole runs with every optimizer and parametrization: one process, two processes, and a resumed run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import torch.multiprocessing as mp
from pair import joined
from tiny import cell
from torch import Tensor

from trainers.engine import Engine
from trainers.loop import Trainer
from trainers.world import World

WORLD = World.single()
CAUTIOUS: dict[str, Any] = {"weight_decay": 1e-2, "cautious_weight_decay": True}
MUP = {"parametrization": "mup", "mup_base": "nano"}
KINDS: dict[str, dict[str, Any]] = {
    "cautious": CAUTIOUS,
    "muon": {"optimizer": "muon", "muon_lr_ratio": 2.0},
    "cautious muon": {"optimizer": "muon"} | CAUTIOUS,
    "mup": MUP,
    "mup of muon": MUP | {"optimizer": "muon"},
}


def three_steps(kind: str, world: World, folder: Path) -> list[float]:
    """Returns loss and gradient norm of three steps on the same global batches, and a checksum of the state."""
    this = cell(logits_dtype="float32", batch_size=4, **KINDS[kind])
    train, engine = tiny.opened(folder).train, Engine(this, world, compile=False)
    engine.warm_up(2)
    found: list[float] = []
    share = 4 // world.size
    for i in range(3):
        first = 4 * i + share * world.rank
        batch_BU = train.read(range(first, first + share), tiny.T)
        found += engine.step(batch_BU, step=i, lr=1e-3, micro_batch=1)[:2]
    return [*found, sum(float(x.double().sum()) for x in engine.state().values())]


def worker(rank: int, folder: Path) -> None:
    with joined(rank, folder) as world:
        found = {kind: three_steps(kind, world, folder) for kind in KINDS}
        (folder / f"found-{rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, list[float]], dict[str, list[float]], Path]:
    folder = tmp_path_factory.mktemp("pair")
    tiny.tokens(folder)
    mp.spawn(worker, (folder,), nprocs=2)
    first, second = (json.loads((folder / f"found-{rank}.json").read_text()) for rank in (0, 1))
    return first, second, folder


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_are_one(pair, kind):
    first, second, folder = pair
    assert first[kind] == second[kind]
    assert first[kind][:6] == pytest.approx(three_steps(kind, WORLD, folder)[:6], rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_equals_uninterrupted_bit_for_bit(tokens, tmp_path, kind):
    this, intervals = cell(steps=6, **KINDS[kind]), {"evaluate_every": 3, "checkpoint_every": 2}
    whole = Trainer(WORLD, tokens)
    uninterrupted = whole.run(this, tmp_path / "a", **intervals)
    asked = iter(range(100))
    stopped = Trainer(WORLD, tokens).run(this, tmp_path / "b", **intervals, should_stop=lambda: next(asked) == 3)
    assert (stopped.state, stopped.steps) == ("stopped", 3)
    resumed = Trainer(WORLD, tokens)
    result = resumed.run(this, tmp_path / "b", **intervals)
    assert (result.val_loss, result.train_loss) == (uninterrupted.val_loss, uninterrupted.train_loss)
    for name, x in resumed._engine.state().items():
        assert torch.equal(x, whole._engine.state()[name]), name


def test_a_cell_repeats_bit_for_bit_after_other_kinds_in_one_trainer(tokens, tmp_path):
    """Adam, Muon and muP follow each other; the first two share an engine."""
    trainer = Trainer(WORLD, tokens)
    kinds = {"adam": {}} | KINDS

    def run(kind: str, folder: str) -> list[Tensor]:
        trainer.run(cell(steps=3, **kinds[kind]), tmp_path / folder, evaluate_every=3, checkpoint_every=3)
        return [x.clone() for x in trainer._engine.state().values()]

    first = {kind: run(kind, f"{kind} 1") for kind in kinds}
    again = {kind: run(kind, f"{kind} 2") for kind in reversed(kinds)}
    for kind in kinds:
        assert all(torch.equal(a, b) for a, b in zip(first[kind], again[kind], strict=True)), kind
    assert len({float(tensors[0].sum()) for tensors in first.values()}) == len(kinds), "every kind is another run"
