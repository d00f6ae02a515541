"""Cells, engines and comparisons of the tests of this folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from search_spaces.cell import Cell
from tests.trainers.tape import Tape
from tests.trainers.tiny import batches
from trainers import engine as engines
from trainers import head
from trainers.engine import Engine
from trainers.world import World

DEVICE = torch.device(os.environ.get("OEC_TEST_DEVICE", "cuda"))
DRY = DEVICE.type != "cuda"
COMPILES = not DRY
"""A processor would take minutes to compile what an accelerator compiles in seconds."""
CPU = torch.device("cpu")
FLOAT32: dict[str, Any] = {"precision": "float32", "logits_dtype": "float32"}


def world(device: torch.device = DEVICE) -> World:
    return World.single(device)


class Replayed:
    """``trainers.engine.CapturedGraph`` of a processor: the calls on a tape."""

    def __init__(self, work: Callable[[], Tensor], pool: object) -> None:
        work()
        with Tape() as self._tape:
            self.result = work()

    def __call__(self) -> Tensor:
        self._tape.replay()
        return self.result.clone()  # which ``PendingStep`` copies on a device, and keeps on a processor


class Recordings:
    """Counts the recordings that engines make."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made = 0
        kind: Any = Replayed if DRY else engines.CapturedGraph

        def recorded(work: Callable[[], Tensor], pool: object) -> Any:
            self.made += 1
            return kind(work, pool)

        monkeypatch.setattr(engines, "CapturedGraph", recorded)


def settled(this: Cell, micro_batch: int, engine: Engine | None = None) -> Engine:
    """An engine, a new one unless given, whose steps of this cell are recorded: compiled on a device."""
    if engine is None:
        engine = Engine(this, world(), compile=COMPILES)
    else:
        engine.reset(this)
    if not DRY:
        engine.warm_up(micro_batch)
        assert engine.compile, "it fell back to eager mode; the warning says why"
        return engine
    engine.objective.chunk = head.compute_chunk
    if engine._program_key(micro_batch) not in engine.programs:
        engine.optimizer.halted.fill_(1.0)
        engine.programs[engine._program_key(micro_batch)] = engine._capture_step(micro_batch)
        engine.optimizer.halted.zero_()
    return engine


def trained(engine: Engine, steps: int, micro_batch: int, lr: float = 1e-2) -> list[tuple[float, float]]:
    """Loss and gradient norm of some steps."""
    found = []
    for i, batch_BU in enumerate(batches(engine.cell, steps)):
        step = engine.step(batch_BU, step=i, lr=lr / (i + 1), micro_batch=micro_batch)
        found.append((step.loss, step.grad_norm))
    return found


def apart(a: Tensor, b: Tensor) -> float:
    """The norm of the difference as a share of that of ``b``."""
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    return float((a - b).norm() / b.norm().clamp_min(1e-300))


def bits(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [tensor.detach().cpu().clone() for tensor in tensors]


def equal(a: Iterable[Tensor], b: Iterable[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
