"""Two ranks on one device, over gloo, because NCCL does not allow two ranks on one device."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from tests.cuda.cells import COMPILES, DEVICE, DRY, FLOAT32, Recordings, warm_engine, world
from tests.trainers import tiny
from tests.trainers.pair import joined
from tests.trainers.tiny import batches, of
from trainers import engine as engines
from trainers.loop import Trainer

CELL = of("z-loss", steps=8, batch_size=8, **FLOAT32)


def worker(rank: int, folder: Path) -> None:
    with joined(rank, folder, DEVICE, share=0.5, timeout_s=120) as both:
        trainer = Trainer(both, tiny.opened(folder), compile=COMPILES, micro_batch_memo=folder / "memo.json")
        result = trainer.run(CELL, folder / "run", evaluate_every=4, checkpoint_every=4)
        assert trainer._engine is not None
        kinds = [type(program).__name__ for program in trainer._engine.programs.values()]
        asked = iter(range(100))
        other = CELL.model_copy(update={"seed": 2})
        stopped = trainer.run(
            other,
            folder / "stopped",
            evaluate_every=4,
            checkpoint_every=4,
            should_stop=lambda: rank == 1 and next(asked) == 3,
        )
        found = [result.state, result.steps, result.val_loss, result.train_loss]
        content = {"found": found, "stopped": [stopped.state, stopped.steps], "programs": kinds}
        (folder / f"found-{rank}.json").write_text(json.dumps(content))


def test_two_ranks_on_one_device_match_one_with_the_whole_batch(tmp_path: Path) -> None:
    """Their step is one graph before the sum over ranks and one after it."""
    tiny.tokens(tmp_path)
    mp.spawn(worker, (tmp_path,), nprocs=2)
    first, second = (json.loads((tmp_path / f"found-{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first["stopped"] == ["stopped", 3]
    assert first["programs"] == (["partial"] if DRY else ["function"]), (
        "each step must be captured, which makes it a function"
    )
    alone = Trainer(world(), tiny.opened(tmp_path), compile=False).run(
        CELL, tmp_path / "alone", evaluate_every=4, checkpoint_every=4
    )
    assert first["found"][:2] == [alone.state, alone.steps]
    assert first["found"][2:] == pytest.approx([alone.val_loss, alone.train_loss], rel=1e-4)


def test_graphs_around_a_sum_match_the_step(recordings: Recordings) -> None:
    """Runs in a single process, where the sum over ranks has no effect."""
    this = of("z-loss", weight_decay=1e-2, **FLOAT32)
    whole = warm_engine(this, micro_batch=2)
    tokens_BU = torch.zeros(this.training.batch_size, this.training.sequence_length + 1, dtype=torch.int64).to(DEVICE)
    losses = []
    halves = warm_engine(this, micro_batch=2)
    halves.optimizer.halted.fill_(1.0)
    backward = engines.CapturedGraph(lambda: halves._local_backward(tokens_BU, 2), halves.pool)
    update = engines.CapturedGraph(lambda: halves._update(backward.result), halves.pool)
    halves.reset(this)
    whole.reset(this)
    for i, batch_BU in enumerate(batches(this, 4)):
        expected = whole.step(batch_BU, step=i, lr=1e-2, micro_batch=2)
        halves._set_controls(1e-2, stop=False)
        tokens_BU.copy_(halves.to_device(batch_BU))
        backward()
        loss, stops, norm = update().tolist()
        assert stops == 0
        losses += [(loss, expected.loss), (norm, expected.grad_norm)]
    assert recordings.made == 4
    assert [a for a, _ in losses] == pytest.approx([b for _, b in losses], rel=1e-5)
