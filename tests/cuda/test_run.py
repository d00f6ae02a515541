"""Whole runs on the device: how they end, resumption, fresh processes, and limited memory."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from search_spaces.cell import Cell
from search_spaces.record import CellResult
from tests.cuda.cells import COMPILES, CPU, DEVICE, FLOAT32, bits, equal, world
from tests.trainers import tiny
from tests.trainers.tiny import of
from trainers import micro_batch
from trainers.allocator import CUDA_CONTEXT_BYTES
from trainers.data import Shards, Tokens, write_shard
from trainers.loop import Trainer
from trainers.world import World

INTERVALS: dict[str, Any] = {"evaluate_every": 4, "checkpoint_every": 4}
BOTH = (("ours", DEVICE), ("theirs", CPU))
CHAOS = 1e30
"""A learning rate whose first step leaves weights with which every forward pass overflows, regardless of rounding."""


def run(tokens: Tokens, this: Cell, folder: Path, device: torch.device = DEVICE, **options: Any) -> CellResult:
    trainer = Trainer(world(device), tokens, compile=COMPILES and device == DEVICE)
    return trainer.run(this, folder, **(INTERVALS | options))


def test_a_run_matches_the_cpu(tokens: Tokens, tmp_path: Path) -> None:
    this = of("z-loss", steps=12, **FLOAT32)
    ours, theirs = (run(tokens, this, tmp_path / name, device) for name, device in BOTH)
    assert (ours.state, ours.steps) == (theirs.state, theirs.steps) == ("finished", 12)
    assert [ours.l_init, ours.val_loss, ours.train_loss] == pytest.approx(
        [theirs.l_init, theirs.val_loss, theirs.train_loss], rel=1e-3
    )
    assert set(theirs.metrics) <= set(ours.metrics)


@pytest.mark.parametrize("method", ["baseline", "soft-cap"])
def test_a_cell_diverges_at_the_same_step_and_for_the_same_reason_as_on_the_cpu(
    method: str, tokens: Tokens, tmp_path: Path
) -> None:
    this = of(method, steps=12, **FLOAT32).model_copy(update={"lr": CHAOS})
    ours, theirs = (run(tokens, this, tmp_path / name, device) for name, device in BOTH)
    assert (ours.state, ours.steps, ours.reason) == (theirs.state, theirs.steps, theirs.reason)
    assert ours.state == "diverged"
    assert ours.steps > 0


def test_a_cell_stops_at_the_step_at_which_it_was_asked_to(tokens: Tokens, tmp_path: Path) -> None:
    found = []
    for name, device in BOTH:
        asked = iter(range(100))
        this = of(steps=12, **FLOAT32)
        result = run(tokens, this, tmp_path / name, device, should_stop=lambda: next(asked) == 5)  # noqa: B023
        found.append((result.state, result.steps, result.reason))
    assert found[0] == found[1] == ("stopped", 5, "asked to stop at step 5")


@pytest.mark.parametrize("attention_norm", ["qk-norm", "sigma-reparam"])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    attention_norm: str, tokens: Tokens, tmp_path: Path
) -> None:
    this = of("z-loss", attention_norm=attention_norm, steps=12, precision="bfloat16", deterministic=True)

    def trained(folder: Path, stop_at: int | None = None) -> tuple[CellResult, list[torch.Tensor]]:
        trainer = Trainer(world(), tokens, compile=COMPILES)
        asked = iter(range(100))
        result = trainer.run(this, folder, **INTERVALS, should_stop=lambda: next(asked) == stop_at)
        assert trainer._engine is not None
        return result, bits(trainer._engine.state().values())

    whole, expected = trained(tmp_path / "whole" / "run")
    stopped, _ = trained(tmp_path / "parts" / "run", stop_at=6)
    resumed, weights = trained(tmp_path / "parts" / "run")
    assert (stopped.state, stopped.steps) == ("stopped", 6)
    assert (whole.state, resumed.state) == ("finished", "finished")
    assert (resumed.val_loss, resumed.train_loss) == (whole.val_loss, whole.train_loss)
    assert equal(weights, expected)


def fresh(folder: Path, name: str, this: Cell) -> dict[str, Any]:
    """Runs a cell in its own process."""
    arguments = [str(folder), str(folder / name), this.model_dump_json()]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    command = [sys.executable, "-m", "tests.cuda.test_run", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("method", ["z-loss"])
def test_two_fresh_processes_give_the_same_bits(method: str, tmp_path: Path) -> None:
    tiny.tokens(tmp_path)
    this = of(method, steps=20, batch_size=8, precision="bfloat16", deterministic=True)
    first, second = (fresh(tmp_path, name, this) for name in ("first", "second"))
    assert first == second
    assert first["state"] == "finished"


def in_this_process(folder: Path, out: Path, this: Cell) -> None:
    trainer = Trainer(world(), tiny.opened(folder), compile=COMPILES)
    result = trainer.run(this, out, **INTERVALS)
    assert trainer._engine is not None
    weights = hashlib.sha256()
    for tensor in bits(trainer._engine.state().values()):
        weights.update(tensor.numpy().tobytes())
    losses = {"val_loss": result.val_loss, "train_loss": result.train_loss}
    print(json.dumps({"state": result.state, **losses, "weights": weights.hexdigest()}))


GIBIBYTES = 24
WIDE, LONG = 50_304, 2048


@pytest.mark.device
def test_a_share_of_the_device_is_not_exceeded_and_is_enough(tmp_path: Path) -> None:
    """The micro batch is halved until a step fits into the share; compiled steps, evaluations and diagnostics then fit,
    too."""
    for name, n in (("train", 600_000), ("validation", 200_000)):
        write_shard(tmp_path / f"{name}.bin", np.random.default_rng(0).integers(0, WIDE, n).astype(np.uint16))
    shards = [Shards((tmp_path / f"{name}.bin",)) for name in ("train", "validation")]
    wide = Tokens(train=shards[0], validation=shards[1], vocab_size=WIDE, V=WIDE, digest="test")
    this = of("z-loss", scale="57M", steps=3, batch_size=64, sequence_length=LONG, eval_sequences=16)
    this = this.model_copy(update={"V": WIDE})
    this = this.model_copy(update={"training": this.training.model_copy(update={"precision": "bfloat16"})})
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    share = GIBIBYTES * 2**30 / total
    if share >= 1:
        pytest.skip(f"the device has less than {GIBIBYTES} GiB")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    trainer = Trainer(World(0, 1, DEVICE, share), wide, compile=True, micro_batch_memo=tmp_path / "memo.json")
    result = trainer.run(this, tmp_path / "run", evaluate_every=2, checkpoint_every=100)
    assert result.state == "finished"
    (found,) = json.loads((tmp_path / "memo.json").read_text()).values()
    assert 1 <= found < 64, "the micro batch was never halved"
    assert torch.cuda.max_memory_reserved() <= share * total - CUDA_CONTEXT_BYTES
    assert micro_batch.RESERVED_SHARE > 0


if __name__ == "__main__":
    in_this_process(Path(sys.argv[1]), Path(sys.argv[2]), Cell.model_validate_json(sys.argv[3]))
