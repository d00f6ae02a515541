"""The cost of the diagnostics as a share of a run's training time, at the default interval between evaluations.

``python -m benchmarks.diagnostics [--seconds 20] [--threads 1]``

Steps, diagnostics and validation passes of one engine alternate; their medians give the shares for runs of several
lengths. The last row measures more tokens than the others, so it is timed separately. Validation is not part of the
diagnostics; its share depends only on ``eval_sequences``.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from search_spaces.cell import Cell
from search_spaces.study import default_interval
from search_spaces.training_spec import ModelSpec, TrainingSpec
from trainers import diagnostics
from trainers.data import Shards, write_shard
from trainers.engine import Engine
from trainers.world import World

LR = 3e-3
ROUND = 4
"""Steps between two measurements of the diagnostics."""
SHAPES = (
    # scale, V, batch, sequence length, steps of the runs
    ("tiny", 1024, 8, 128, (160, 1000)),
    ("16M", 50_304, 8, 256, (1000,)),
)


def cell_of(scale: str, V: int, batch: int, T: int, steps: int) -> Cell:
    return Cell(
        scale=scale,
        method="baseline",
        gamma=None,
        lr=LR,
        seed=0,
        data="random",
        V=V,
        model=ModelSpec(),
        training=TrainingSpec(
            steps=steps, warmup_steps=0, batch_size=batch, sequence_length=T, precision="float32", eval_sequences=32
        ),
    )


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def medians(cell: Cell, device: torch.device, budget: float) -> dict[str, float]:
    """Returns the median seconds of a step, of a row's diagnostics, of the last row's, and of one validation pass."""
    engine = Engine(cell, World(0, 1, device), compile=False)
    spec = cell.training
    engine.warm_up(spec.batch_size)
    random = np.random.default_rng(0)
    batch_BU = random.integers(0, cell.V, (spec.batch_size, spec.sequence_length + 1), dtype=np.uint16)
    validation_NU = torch.from_numpy(random.integers(0, cell.V, (spec.eval_sequences, spec.sequence_length + 1)))
    validation_NU = validation_NU.to(device)
    row_NU = diagnostics.row_batch(validation_NU, spec)
    final_NU = final_batch(cell).to(device)
    works: dict[str, Callable[[], object]] = {
        "step": lambda: engine.step(batch_BU, step=0, lr=LR, micro_batch=spec.batch_size),
        "row": lambda: diagnostics.measure(engine.objective, row_NU, cell.method, engine.gamma),
        "last row": lambda: diagnostics.measure(engine.objective, final_NU, cell.method, engine.gamma),
        "validation": lambda: engine.loss(validation_NU, spec.batch_size),
    }
    times: dict[str, list[float]] = {name: [] for name in works}
    ends = time.perf_counter() + budget
    while time.perf_counter() < ends or len(times["step"]) < 3 * ROUND:
        for name, work in works.items():
            found = [seconds(work) for _ in range(ROUND if name == "step" else 1)]
            times[name] += found
    # The first round is a warm-up.
    return {name: statistics.median(found[ROUND if name == "step" else 1 :]) for name, found in times.items()}


def final_batch(cell: Cell) -> torch.Tensor:
    """Returns the batch of the cell's last row, from a validation set that is large enough."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "validation.bin"
        write_shard(
            path, np.random.default_rng(0).integers(0, cell.V, 2 * diagnostics.MAX_FINAL_TOKENS, dtype=np.uint16)
        )
        return diagnostics.final_batch(Shards((path,)), cell.training)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each shape")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for scale, V, batch, T, runs in SHAPES:
        for steps in runs:
            cell = cell_of(scale, V, batch, T, steps)
            found = medians(cell, torch.device(args.device), args.seconds)
            step, tokens = found["step"], final_batch(cell).numel()
            print(f"{scale}, V {V:,}, {batch} x {T} tokens a step of {step * 1e3:.1f} ms")
            evaluations = 1 + steps // default_interval(steps)
            looked = (evaluations - 1) * found["row"] + found["last row"]
            shares = {"diagnostics": looked, "validation": evaluations * found["validation"]}
            told = "   ".join(f"{name} {spent / (steps * step):.2%}" for name, spent in shares.items())
            print(f"  {steps:>5} steps, {evaluations} evaluations: {told} of the training time")
            print(f"         a row {found['row'] * 1e3:.1f} ms, the last one, of {tokens:,} tokens, ", end="")
            print(f"{found['last row'] * 1e3:.1f} ms, {found['last row'] / (steps * step):.2%}")


if __name__ == "__main__":
    main()
