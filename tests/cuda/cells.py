"""Cells, engines and comparisons for the tests in this folder."""

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
"""A CPU would take minutes to compile what takes seconds for a GPU."""
CPU = torch.device("cpu")
FLOAT32: dict[str, Any] = {"precision": "float32", "logits_dtype": "float32"}


def world(device: torch.device = DEVICE) -> World:
    return World.single(device)


class Replayed:
    """``trainers.engine.CapturedGraph`` for a CPU, which records calls on a tape."""

    def __init__(self, work: Callable[[], Tensor], pool: object) -> None:
        work()
        with Tape() as self._tape:
            self.result = work()

    def __call__(self) -> Tensor:
        self._tape.replay()
        return self.result.clone()  # ``PendingStep`` copies it on a GPU, but not on a CPU


class Recordings:
    """Counts the graphs that engines capture."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made = 0
        kind: Any = Replayed if DRY else engines.CapturedGraph

        def recorded(work: Callable[[], Tensor], pool: object) -> Any:
            self.made += 1
            return kind(work, pool)

        monkeypatch.setattr(engines, "CapturedGraph", recorded)


def warm_engine(this: Cell, micro_batch: int, engine: Engine | None = None) -> Engine:
    """Returns an engine whose steps of this cell are captured and, on a GPU, compiled. Default: a new engine."""
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
    """Returns loss and gradient norm of each step."""
    found = []
    for i, batch_BU in enumerate(batches(engine.cell, steps)):
        step = engine.step(batch_BU, step=i, lr=lr / (i + 1), micro_batch=micro_batch)
        found.append((step.loss, step.grad_norm))
    return found


def relative_difference(a: Tensor, b: Tensor) -> float:
    """Returns the norm of the difference relative to the norm of ``b``."""
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    return float((a - b).norm() / b.norm().clamp_min(1e-300))


def bits(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [tensor.detach().cpu().clone() for tensor in tensors]


def equal(a: Iterable[Tensor], b: Iterable[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
