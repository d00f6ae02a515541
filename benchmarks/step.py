"""Tokens per second of the trainer's step against a plain eager loop of the same model, in one interleaved run.

``python -m benchmarks.step [--scale tiny] [--seconds 10] [--threads 1]``

The plain loop is what one writes first: logits, ``F.cross_entropy``, ``clip_grad_norm_``, ``torch.optim.AdamW`` with
its defaults, and a random slice of the tokens for each sequence. For the baseline both compute the same function; with
``--method`` the plain loop stays the baseline's and the ratio has the method's cost in it. After the ratio comes where
the trainer's step spends its time: data, forward, backward, optimizer, and the most expensive operations.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import cycle, pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from search_spaces.cell import Cell, ModelSpec, TrainingSpec
from search_spaces.methods import METHODS
from search_spaces.scales import SCALES
from trainers.engine import Engine
from trainers.head import Precision
from trainers.model import GPT
from trainers.optimizer import clip
from trainers.world import World

LR = 3e-3
ROUND = 5
"""Steps of one loop before it is the other's turn."""


def tokens_of(cell: Cell, batches: int) -> list[np.ndarray]:
    spec = cell.training
    shape = (batches, spec.batch_size, spec.sequence_length + 1)
    return list(np.random.default_rng(0).integers(0, cell.V, shape, dtype=np.uint16))


def trainer_step(cell: Cell, device: torch.device, compile: bool) -> Callable[[], object]:
    engine = Engine(cell, World(0, 1, device), compile=compile)
    engine.settle(cell.training.batch_size)
    batches = cycle(tokens_of(cell, 16))
    return lambda: engine.step(next(batches), step=0, lr=LR, micro_batch=cell.training.batch_size)


def plain_step(cell: Cell, device: torch.device) -> Callable[[], object]:
    spec = cell.training
    model = GPT(cell.shape, cell.model, cell.V, spec.sequence_length).to(device)
    model.reset_parameters(cell.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=spec.betas, eps=spec.eps, weight_decay=0.1)
    corpus = np.concatenate([batch.ravel() for batch in tokens_of(cell, 16)])
    T = spec.sequence_length

    def step() -> float:
        starts = torch.randint(len(corpus) - T - 1, (spec.batch_size,)).tolist()
        x = torch.stack([torch.from_numpy(corpus[i : i + T].astype(np.int64)) for i in starts]).to(device)
        y = torch.stack([torch.from_numpy(corpus[i + 1 : i + 1 + T].astype(np.int64)) for i in starts]).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=spec.precision == "bfloat16"):
            logits = F.linear(model(x), model.E_VD)
            if spec.logits_dtype == "bfloat16":
                logits = logits.bfloat16()
            loss = F.cross_entropy(logits.float().view(-1, cell.V), y.view(-1))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), spec.grad_clip)
        optimizer.step()
        return loss.item()

    return step


def seconds(step: Callable[[], object]) -> float:
    started = time.perf_counter()
    for _ in range(ROUND):
        step()
    return (time.perf_counter() - started) / ROUND


def compare(cell: Cell, device: torch.device, budget: float, compile: bool) -> Callable[[], object]:
    """Prints both rates and their ratio; returns the trainer's step."""
    loops = {"trainer": trainer_step(cell, device, compile), "plain": plain_step(cell, device)}
    for step in loops.values():
        seconds(step)
    times: dict[str, list[float]] = {name: [] for name in loops}
    ends = time.perf_counter() + budget
    while time.perf_counter() < ends:
        for name, step in loops.items():
            times[name].append(seconds(step))
    tokens = cell.training.batch_size * cell.training.sequence_length
    for name, values in times.items():
        median = statistics.median(values)
        print(
            f"{name:8} {tokens / median:10.0f} tokens/s   {median * 1e3:8.2f} ms a step, median of {len(values)} rounds"
        )
    ratio = statistics.median(p / t for p, t in zip(times["plain"], times["trainer"], strict=True))
    print(f"ratio    {ratio:10.2f}  (above 1: the trainer is faster)\n")
    return loops["trainer"]


def shares(cell: Cell, device: torch.device, compile: bool) -> None:
    """Prints where a step's wall time goes, its parts timed one by one on the trainer's own objects."""
    engine = Engine(cell, World(0, 1, device), compile=compile)
    engine.settle(cell.training.batch_size)
    spent = dict.fromkeys(("data", "forward", "backward", "optimizer"), 0.0)
    for batch_BU in tokens_of(cell, 20):
        clock = [time.perf_counter()]
        tokens_BU = engine.to_device(batch_BU)
        clock.append(time.perf_counter())
        objective = engine.wrapped(tokens_BU, cell.method, engine.strength).objective
        clock.append(time.perf_counter())
        objective.backward()
        clock.append(time.perf_counter())
        clip([p.grad for p in engine.optimizer.parameters], cell.training.grad_clip)
        engine.optimizer.step(LR)
        engine.optimizer.adam.zero_grad()
        clock.append(time.perf_counter())
        for part, (start, end) in zip(spent, pairwise(clock), strict=True):
            spent[part] += end - start
    print("   ".join(f"{part} {seconds / sum(spent.values()):.1%}" for part, seconds in spent.items()), "\n")


def table(step: Callable[[], object]) -> None:
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(ROUND):
            step()
    print(profiled.key_averages().table(sort_by="self_cpu_time_total", row_limit=22, max_name_column_width=48))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", default="tiny", choices=SCALES)
    parser.add_argument("--method", default="baseline", choices=METHODS)
    parser.add_argument("--vocabulary", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--logits-dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--seconds", type=float, default=10.0, help="for the comparison")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    precision: Precision = args.precision
    training = TrainingSpec(
        batch_size=args.batch, sequence_length=args.length, precision=precision, logits_dtype=args.logits_dtype
    )
    strength = METHODS[args.method].strength
    cell = Cell(
        scale=args.scale,
        method=args.method,
        gamma=strength.default if strength else None,
        lr=LR,
        seed=0,
        data="random",
        V=args.vocabulary,
        model=ModelSpec(),
        training=training,
    )
    device = torch.device(args.device)
    step = compare(cell, device, args.seconds, args.compile)
    shares(cell, device, args.compile)
    table(step)


if __name__ == "__main__":
    main()
