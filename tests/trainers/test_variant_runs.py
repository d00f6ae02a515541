"""Whole runs of every optimizer, parametrization and attention norm, and of mu-centering: one process, two processes, a
resumed run, and a run after others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import torch.multiprocessing as mp
from pair import joined
from tiny import of
from torch import Tensor

from search_spaces.attention_norms import ATTENTION_NORMS
from search_spaces.cell import Cell
from search_spaces.training_spec import ModelSpec
from trainers import checkpoint, qk_clip
from trainers.engine import Engine
from trainers.loop import Trainer
from trainers.world import World

WORLD = World.single()
INTERVALS = {"evaluate_every": 3, "checkpoint_every": 2}
CENTERED = {"method": "mu-centering", "model": ModelSpec(tied=True)}
VARIANTS: dict[str, dict[str, Any]] = {
    **{name: {"attention_norm": name} for name in ATTENTION_NORMS},
    **tiny.OPTIMIZERS,
    "mu-centering": CENTERED,
    "mu-centering of sigma-reparam": CENTERED | {"attention_norm": "sigma-reparam"},
}
SMALL_TAU = 0.05
"""A tau of qk-clip that the logits of a tiny model exceed."""
Pair = tuple[dict[str, list[float]], dict[str, list[float]], Path]


@pytest.fixture(autouse=True)
def small_tau(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qk_clip, "QK_CLIP_TAU", SMALL_TAU)


def three_steps(name: str, world: World, folder: Path) -> list[float]:
    """Returns loss and gradient norm of three steps on the same global batches, and a checksum of the state."""
    this = of(logits_dtype="float32", batch_size=4, **VARIANTS[name])
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
    """Runs all variants in one pair of processes, because starting a pair takes seconds."""
    qk_clip.QK_CLIP_TAU = SMALL_TAU
    with joined(rank, folder) as world:
        found = {name: three_steps(name, world, folder) for name in VARIANTS}
        (folder / f"found-{rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("pair")
    tiny.tokens(folder)
    mp.spawn(worker, (folder,), nprocs=2)
    first, second = (json.loads((folder / f"found-{rank}.json").read_text()) for rank in (0, 1))
    return first, second, folder


@pytest.mark.parametrize("name", VARIANTS)
def test_two_processes_match_one(pair: Pair, name: str) -> None:
    first, second, folder = pair
    assert first[name] == second[name]
    assert first[name][:6] == pytest.approx(three_steps(name, WORLD, folder)[:6], rel=1e-4)


def test_every_variant_is_a_different_run(pair: Pair) -> None:
    assert len({tuple(found) for found in pair[0].values()}) == len(VARIANTS)


@pytest.mark.parametrize("name", VARIANTS)
def test_resumed_equals_uninterrupted_bit_for_bit(tokens, tmp_path: Path, name: str) -> None:
    this, asked = of(steps=6, **VARIANTS[name]), iter(range(100))
    whole, resumed = Trainer(WORLD, tokens), Trainer(WORLD, tokens)
    uninterrupted = whole.run(this, tmp_path / "a", **INTERVALS)
    stopped = Trainer(WORLD, tokens).run(this, tmp_path / "b", **INTERVALS, should_stop=lambda: next(asked) == 3)
    assert (stopped.state, stopped.steps) == ("stopped", 3)
    saved = checkpoint.load_latest(tmp_path / "b" / "checkpoints", this.id)
    assert any("v_PI" in tensor for tensor in saved.tensors) == (this.attention_norm == "sigma-reparam")
    result = resumed.run(this, tmp_path / "b", **INTERVALS)
    assert (result.val_loss, result.train_loss) == (uninterrupted.val_loss, uninterrupted.train_loss)
    for tensor, x in resumed._engine.state().items():
        assert torch.equal(x, whole._engine.state()[tensor]), tensor


@pytest.mark.parametrize("name", VARIANTS)
def test_a_cell_repeats_bit_for_bit_after_others_in_one_trainer(tokens, tmp_path: Path, name: str) -> None:
    """After another cell on the same engine, and after the variant before it, which may share the engine."""
    trainer = Trainer(WORLD, tokens)

    def run(this: Cell, folder: str) -> tuple[float | None, dict[str, Tensor]]:
        result = trainer.run(this, tmp_path / folder, **INTERVALS)
        return result.val_loss, {tensor: x.clone() for tensor, x in trainer._engine.state().items()}

    this, before = of(steps=4, **VARIANTS[name]), list(VARIANTS)[list(VARIANTS).index(name) - 1]
    same_engine = {"method": "z-loss", "lr": 1e-1, "seed": 7, "steps": 2}
    loss, state = run(this, "first")
    run(of(**VARIANTS[name] | same_engine), "same engine")
    loss_again, again = run(this, "again")
    run(of(steps=1, **VARIANTS[before]), "variant before")
    loss_anew, anew = run(this, "anew")
    assert loss == loss_again == loss_anew
    for tensor in state:
        assert torch.equal(state[tensor], again[tensor]), tensor
        assert torch.equal(state[tensor], anew[tensor]), tensor
