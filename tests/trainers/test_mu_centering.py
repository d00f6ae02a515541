"""Mu-centering in difficult cases: tied weights, two processes, accumulation, sigma-reparam."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch.multiprocessing as mp
from pair import joined
from tiny import cell

from search_spaces.cell import Cell
from search_spaces.training_spec import ModelSpec
from trainers.engine import Engine
from trainers.world import World

WORLD = World.single()
LIMIT = 1e-6


def centered(attention_norm: str = "qk-norm", *, tied: bool = True, **training: object) -> Cell:
    this = cell("mu-centering", lr=1e-2, model=ModelSpec(tied=tied), **training)
    return this.model_copy(update={"attention_norm": attention_norm})


def mu_norm(engine: Engine) -> float:
    return float(engine.objective.model.E_VD.detach().double().mean(dim=0).norm())


def train(engine: Engine, batches: list[np.ndarray], micro_batch: int) -> list[float]:
    """Takes one step per batch, checks that the state is finite and the output embedding centered, and returns the
    losses."""
    losses = []
    for i, batch_BU in enumerate(batches):
        step = engine.step(batch_BU, step=i, lr=1e-2, micro_batch=micro_batch)
        assert step.finite, i
        assert all(x.isfinite().all() for x in engine.state().values()), i
        assert mu_norm(engine) < LIMIT, i
        losses.append(step.loss)
    return losses


def batches(tokens, n: int, rank: int = 0, size: int = 1) -> list[np.ndarray]:
    """Returns a rank's part of ``n`` global batches of four sequences."""
    share = 4 // size
    starts = [4 * (i % 100) + share * rank for i in range(n)]
    return [tokens.train.read(range(start, start + share), tiny.T) for start in starts]


@pytest.mark.parametrize("attention_norm", ["qk-norm", "sigma-reparam"])
def test_200_steps_with_tied_weights_at_a_high_rate_without_nan(tokens, attention_norm):
    """Users of the reference code got NaN here: the one matrix is also centered as the input embedding."""
    engine = Engine(centered(attention_norm), WORLD, compile=False)
    losses = train(engine, batches(tokens, 200), 4)
    assert np.mean(losses[-20:]) < losses[0] - 1
    assert engine.objective.model.E_VD is engine.objective.model.input_embedding_VD


def test_with_untied_weights_the_input_embedding_keeps_its_mean(tokens):
    engine = Engine(centered(tied=False), WORLD, compile=False)
    train(engine, batches(tokens, 5), 4)
    assert float(engine.objective.model.input_embedding_VD.detach().mean(dim=0).norm()) > 1e-3


def test_without_centering_mu_moves(tokens):
    engine = Engine(centered().model_copy(update={"method": "baseline"}), WORLD, compile=False)
    engine.step(batches(tokens, 1)[0], step=0, lr=1e-2, micro_batch=4)
    assert mu_norm(engine) > 1e-3


@pytest.mark.parametrize("attention_norm", ["qk-norm", "sigma-reparam"])
def test_accumulated_micro_batches_are_centered_once_per_step(tokens, attention_norm):
    engine = Engine(centered(attention_norm, logits_dtype="float32"), WORLD, compile=False)
    whole = train(engine, batches(tokens, 5), 4)
    engine.reset(engine.cell)
    assert train(engine, batches(tokens, 5), 1) == pytest.approx(whole, rel=1e-3)


def worker(rank: int, folder: Path) -> None:
    with joined(rank, folder) as world:
        tokens, found = tiny.opened(folder), {}
        for attention_norm in ("qk-norm", "sigma-reparam"):
            engine = Engine(centered(attention_norm, logits_dtype="float32"), world, compile=False)
            engine.warm_up(1)
            losses = train(engine, batches(tokens, 5, rank, 2), 1)
            found[attention_norm] = [*losses, float(engine.objective.model.E_VD.detach().double().square().sum())]
        (folder / f"found-{rank}.json").write_text(json.dumps(found))


def test_in_two_processes_with_accumulation(tmp_path):
    tokens = tiny.tokens(tmp_path)
    mp.spawn(worker, (tmp_path,), nprocs=2)
    first, second = (json.loads((tmp_path / f"found-{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    for attention_norm, pair in first.items():
        engine = Engine(centered(attention_norm, logits_dtype="float32"), WORLD, compile=False)
        assert pair[:-1] == pytest.approx(train(engine, batches(tokens, 5), 4), rel=1e-3)
