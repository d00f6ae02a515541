"""The trainer's loop and the plain loop, which alternate on a device, for ``benchmarks.gpu``."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.plain import PlainGPT
from benchmarks.step import tokens_of
from search_spaces.cell import Cell
from search_spaces.methods import METHODS
from search_spaces.training_spec import ModelSpec, TrainingSpec
from trainers import micro_batch
from trainers.engine import Engine, PendingStep
from trainers.numerics import numerics_for
from trainers.world import World

PLAIN_MICRO_BATCH = 16
GIB = 2**30
MEMORY = 0.5
"""Share of the device's memory for the trainer's loop beside the plain one."""


@dataclass(frozen=True)
class Bench:
    """The device and the size of the measurements."""

    device: torch.device
    tiny: bool
    turn_s: float
    """Approximate seconds that a loop runs before it is the other's turn."""
    rounds: int

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def V(self) -> int:
        return 512 if self.tiny else 50_304

    def cell(self, scale: str, B: int, T: int, method: str = "baseline", **training: Any) -> Cell:
        if self.tiny:
            scale, B, T = "tiny", 4, 32
        return Cell(
            scale=scale,
            method=method,
            gamma=METHODS[method].default_gamma,
            lr=1e-3,
            seed=0,
            data="random",
            V=self.V,
            model=ModelSpec(),
            training=TrainingSpec(batch_size=B, sequence_length=T, **training),
        )

    def synchronize(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def peak(self) -> int:
        """Returns the peak memory that PyTorch reserved since ``forget``. It includes what a graph keeps for its next
        replay, which no tensor owns."""
        return torch.cuda.max_memory_reserved() if self.cuda else 0

    def forget(self) -> int:
        """Frees unused memory and resets the peak. Returns the bytes that are still reserved."""
        gc.collect()
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        return self.peak()

    def compile(self, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        """Compiles on a GPU only; on a CPU it would take minutes."""
        return torch.compile(function, dynamic=False, **options) if self.cuda else function


class Ours:
    """The trainer's loop."""

    def __init__(self, bench: Bench, cell: Cell, at_once: int | None = None) -> None:
        before, started = bench.forget(), time.perf_counter()
        self.cell, self.bench = cell, bench
        self.engine = Engine(cell, World(0, 1, bench.device, MEMORY), compile=bench.cuda)
        self.micro_batch = at_once or self._chosen()
        with numerics_for(cell.training, bench.device):
            self.engine.warm_up(self.micro_batch)
            if bench.cuda and not self.engine.compile:
                raise RuntimeError("torch.compile failed: see the warning above")
            (self.batch_BU,) = tokens_of(cell, 1)
            self(1)
        self.start_s = time.perf_counter() - started
        bench.forget()
        self(1)
        self.peak_gib = (bench.peak() - before) / GIB

    def _chosen(self) -> int:
        """Returns the micro batch that a run would choose, given the memory of the other loop."""
        found = micro_batch.choose(self.engine, self.cell.training.batch_size, None)
        if self.bench.cuda:
            torch.cuda.set_per_process_memory_fraction(1.0)
        return found

    def __call__(self, steps: int) -> None:
        waiting: PendingStep | None = None
        for step in range(steps):
            launched = self.engine.launch(self.batch_BU, step=step, lr=1e-3, micro_batch=self.micro_batch)
            if waiting:
                waiting.read()
            waiting = launched
        if waiting:
            assert waiting.read().finite


class Plain:
    """The plain loop."""

    def __init__(self, bench: Bench, cell: Cell) -> None:
        before = bench.forget()
        started, spec = time.perf_counter(), cell.training
        self.bench, (self.batch_BU,) = bench, tokens_of(cell, 1)
        torch.manual_seed(0)
        self.model = PlainGPT(cell.shape, cell.V, spec.sequence_length).to(bench.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, betas=spec.betas, eps=spec.eps, fused=True)
        self.loss = bench.compile(lambda tokens_BU: loss_of(self.model, tokens_BU))
        self.at_once = min(PLAIN_MICRO_BATCH, spec.batch_size)
        self(1)
        bench.synchronize()
        self.start_s = time.perf_counter() - started
        bench.forget()
        self(1)
        self.peak_gib = (bench.peak() - before) / GIB

    def __call__(self, steps: int) -> None:
        device = self.bench.device
        for _ in range(steps):
            parts = np.array_split(self.batch_BU, len(self.batch_BU) // self.at_once)
            for part in parts:
                tokens = torch.from_numpy(part.astype(np.int64))
                if self.bench.cuda:
                    tokens = tokens.pin_memory().to(device, non_blocking=True)
                with torch.autocast(device.type, torch.bfloat16):
                    loss = self.loss(tokens)
                (loss / len(parts)).backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        self.bench.synchronize()


def loss_of(model: PlainGPT, tokens_BU: Tensor) -> Tensor:
    logits_BTV = model(tokens_BU[:, :-1])
    return F.cross_entropy(logits_BTV.flatten(0, 1), tokens_BU[:, 1:].reshape(-1))


def seconds(bench: Bench, call: Callable[[], object]) -> float:
    bench.synchronize()
    started = time.perf_counter()
    call()
    bench.synchronize()
    return time.perf_counter() - started


Loop = Callable[[int], object]
"""Takes the given number of steps."""


def in_turns(bench: Bench, *loops: Loop, prepare: Callable[[Loop], object] = id) -> list[list[float]]:
    """Returns the seconds per step of each loop, by rounds. In each round a loop takes as many steps as fill its turn.

    Args:
        prepare: called with a loop before its turn, not timed.
    """

    def turn(loop: Loop, n: int) -> float:
        prepare(loop)
        return seconds(bench, partial(loop, n)) / n

    steps = [max(1, int(bench.turn_s / max(1e-6, turn(loop, 1)))) for loop in loops]
    rounds = [[turn(*pair) for pair in zip(loops, steps, strict=True)] for _ in range(bench.rounds)]
    return [list(times) for times in zip(*rounds, strict=True)]


def ratio(theirs: list[float], ours: list[float]) -> float:
    return median(b / a for a, b in zip(ours, theirs, strict=True))
