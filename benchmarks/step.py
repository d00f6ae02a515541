"""Throughput of the trainer's step against a plain eager loop of the same model, interleaved in one run.

``python -m benchmarks.step [--scale tiny] [--small] [--seconds 40] [--no-compile] [--against CHECKOUT]``

The plain loop is the straightforward implementation: the model of ``benchmarks.plain``, ``F.cross_entropy`` of all
logits, ``clip_grad_norm_``, ``torch.optim.Adam`` and the cells' weight decay, in its own process with the allocator's
defaults. All loops start from the same weights and see the same batches, and their first 20 losses are compared. With
``--method`` the plain loop remains the baseline, so the ratio includes the method's cost. At a high learning rate, such
as ``--lr 1``, rounding alone makes the losses differ, and the plain loop is slowed down by denormals. At nano and tiny,
or with ``--compile``, the trainer with ``torch.compile`` is measured as well. ``--small`` has steps of 128 tokens, in
which the calls cost more than the arithmetic. ``--against`` adds the trainer of another checkout, for example from
``git worktree add``, to measure the effect of a change within one run.

The benchmark compares single loops with one thread, which measures the code, and the whole machine, on which a sweep
runs one cell per core and a handwritten loop uses torch's default threads. Then it prints where the trainer's step
spends its time, and a lower bound: the matrix products and the attention of that step, replayed on their own.

Ratios of the whole machine are only valid on an idle machine: a multithreaded loop waits for its slowest thread, so
other work, including that of other guests on the same host, makes it look worse. The benchmark therefore prints the
load before the run, and ignores a round in which the host gave more than ``UNDISTURBED`` of the CPU time to other
guests.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import cycle, pairwise
from multiprocessing import get_context
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.plain import PlainGPT
from search_spaces.cell import Cell
from search_spaces.methods import METHODS
from search_spaces.scales import SCALES
from search_spaces.training_spec import ModelSpec, TrainingSpec
from trainers.allocator import keep_freed_memory
from trainers.engine import Engine
from trainers.model import GPT
from trainers.projection import Precision
from trainers.world import World

CORES = os.cpu_count() or 1
CHECKED_STEPS = 20
LOSS_TOLERANCE = 1e-4
"""Relative, for the first steps."""
ARITHMETIC = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "mkldnn::_linear_pointwise")
ATTENTION = "aten::_scaled_dot_product_flash_attention"
UNDISTURBED = 0.05
"""Maximum share of CPU time that the host may take from a round."""


class Round(NamedTuple):
    """Some steps of all concurrent loops."""

    steps_per_s: float
    """Sum over the loops."""
    processor_s: float
    """CPU seconds of a step in the fastest loop."""
    stolen: float
    """Share of the machine's CPU time that its host gave to other guests."""


def tokens_of(cell: Cell, batches: int) -> list[np.ndarray]:
    spec = cell.training
    shape = (batches, spec.batch_size, spec.sequence_length + 1)
    return list(np.random.default_rng(0).integers(0, cell.V, shape, dtype=np.uint16))


def engine_of(cell: Cell, device: torch.device, compile: bool) -> Engine:
    keep_freed_memory()
    torch.set_flush_denormal(True)  # both as in Trainer
    engine = Engine(cell, World(0, 1, device), compile=compile)
    engine.warm_up(cell.training.batch_size)
    return engine


def trainer_step(cell: Cell, device: torch.device, compile: bool = False) -> Callable[[], float]:
    engine = engine_of(cell, device, compile)
    batches = cycle(tokens_of(cell, 16))
    return lambda: engine.step(next(batches), step=0, lr=cell.lr, micro_batch=cell.training.batch_size).loss


def plain_step(cell: Cell, device: torch.device) -> Callable[[], float]:
    spec = cell.training
    start = GPT(cell.shape, cell.model, cell.V, spec.sequence_length)
    start.reset_parameters(cell.seed)
    model = PlainGPT(cell.shape, cell.V, spec.sequence_length).to(device)
    model.take(start.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), lr=cell.lr, betas=spec.betas, eps=spec.eps)
    batches = cycle(tokens_of(cell, 16))

    def step() -> float:
        tokens = torch.from_numpy(next(batches).astype(np.int64)).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=spec.precision == "bfloat16"):
            logits = model(tokens[:, :-1])
            if spec.logits_dtype == "bfloat16":
                logits = logits.bfloat16()
            loss = F.cross_entropy(logits.float().view(-1, cell.V), tokens[:, 1:].reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), spec.grad_clip)
        if spec.weight_decay:
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.dim() >= 2:
                        parameter.mul_(1 - spec.weight_decay)
        optimizer.step()
        return loss.item()

    return step


OTHER = "trainer of "
LOOPS = {"trainer": trainer_step, "compiled trainer": partial(trainer_step, compile=True), "plain loop": plain_step}


def serve(connection: Connection, loop: str, threads: int, cell: Cell, device: str) -> None:
    """A loop in its own process: for each number of steps received, it sends wall seconds, CPU seconds and the
    losses."""
    torch.set_num_threads(threads)
    step = LOOPS[loop](cell, torch.device(device))
    while steps := connection.recv():
        wall, processor = time.perf_counter(), time.process_time()
        losses = [step() for _ in range(steps)]
        connection.send((time.perf_counter() - wall, time.process_time() - processor, losses))


ELSEWHERE = """
import sys
sys.path.insert(0, sys.argv[1])
from multiprocessing.connection import Client
from benchmarks.step import serve
from search_spaces.cell import Cell
loop, threads, cell, device = sys.argv[3:]
serve(Client(sys.argv[2]), loop, int(threads), Cell.model_validate_json(cell), device)
"""
"""The other end of a loop in another checkout, which imports nothing from this one."""


class Worker:
    """This process's end of one loop."""

    def __init__(self, loop: str, threads: int, cell: Cell, device: str) -> None:
        context = get_context("spawn")
        if loop.startswith(OTHER):
            self._start_elsewhere(loop.removeprefix(OTHER), threads, cell, device)
            return
        self.connection, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, loop, threads, cell, device), daemon=True)
        process.start()
        theirs.close()  # so that a dead loop raises an EOFError here

    def _start_elsewhere(self, checkout: str, threads: int, cell: Cell, device: str) -> None:
        """Only the explicitly set fields are passed on: the other checkout may not know the others."""
        with Listener() as listener:
            given = cell.model_dump_json(exclude_unset=True)
            arguments = [checkout, listener.address, "trainer", str(threads), given, device]
            subprocess.Popen([sys.executable, "-c", ELSEWHERE, *arguments], cwd=checkout)
            self.connection = listener.accept()

    def losses(self, steps: int) -> np.ndarray:
        self.connection.send(steps)
        return np.array(self.connection.recv()[2])


def run(workers: list[Worker], steps: int) -> Round:
    """Runs all workers concurrently, each for ``steps``."""
    started, stolen = time.perf_counter(), stolen_s()
    for worker in workers:
        worker.connection.send(steps)
    walls, processors, _ = zip(*(worker.connection.recv() for worker in workers), strict=True)
    available_s = (time.perf_counter() - started) * CORES
    return Round(sum(steps / wall for wall in walls), min(processors) / steps, (stolen_s() - stolen) / available_s)


def stolen_s() -> float:
    """Returns the CPU seconds that the host gave to other guests; 0 if the system does not report them."""
    counters = Path("/proc/stat")
    return int(counters.read_text().split()[8]) / os.sysconf("SC_CLK_TCK") if counters.is_file() else 0.0


def compare(cell: Cell, device: str, budget: float, loops: list[str]) -> None:
    """Prints the agreement of the losses, the throughputs, and their ratios."""
    print(f"{CORES} cores, load average {os.getloadavg()[0]:.1f} before the run")
    a_core = {loop: [Worker(loop, 1, cell, device) for _ in range(CORES)] for loop in loops}
    threaded = {loop: [Worker(loop, CORES, cell, device)] for loop in ("trainer", "plain loop")}
    # Another checkout may have other initial weights.
    ours = {loop: workers[0] for loop, workers in a_core.items() if not loop.startswith(OTHER)}
    losses = {loop: worker.losses(CHECKED_STEPS) for loop, worker in ours.items()}
    apart = max(float(np.max(np.abs(found / losses["plain loop"] - 1))) for found in losses.values())
    said = "equal" if apart <= LOSS_TOLERANCE else "NOT EQUAL"
    print(f"losses {said}: at most {apart:.1e} apart, relative, over {CHECKED_STEPS} steps\n")

    setups = {f"1 {loop}, 1 thread": workers[:1] for loop, workers in a_core.items()}
    setups |= {f"{CORES} {loop}s, 1 thread each": workers for loop, workers in a_core.items()}
    setups |= {f"1 {loop}, {CORES} threads": workers for loop, workers in threaded.items()}
    for workers in setups.values():
        run(workers, 1)  # the first step of a process includes one-time work
    steps = max(1, round(0.2 * run(setups["1 trainer, 1 thread"], 1).steps_per_s))
    rounds: dict[str, list[Round]] = {name: [] for name in setups}
    ends = time.perf_counter() + budget
    while time.perf_counter() < ends or not rounds["1 plain loop, 1 thread"]:
        for name, workers in setups.items():
            rounds[name].append(run(workers, steps))

    tokens = cell.training.batch_size * cell.training.sequence_length
    # The minimum CPU time: other work on the machine can only add to it.
    processor_ms = {name: min(found.processor_s for found in rounds[name]) * 1e3 for name in setups}
    for name, found in rounds.items():
        rate, counted = tokens * _median([r.steps_per_s for r in found if _counts(r)]), sum(map(_counts, found))
        print(f"{name:38} {rate:8.0f} tokens/s of {counted:3} rounds   {processor_ms[name]:8.2f} ms a step")
    print(
        f"rates: medians of those of {len(found)} rounds, of {steps} steps each, from which the host took at most\n"
        f"{UNDISTURBED:.0%} of the processors; ms a step: processor time of the fastest round\n"
    )
    plain, plain_all = "1 plain loop, 1 thread", f"1 plain loop, {CORES} threads"
    for loop in loops:
        if loop == "plain loop":
            continue
        alone, all_cores = f"1 {loop}, 1 thread", f"{CORES} {loop}s, 1 thread each"
        print(f"{processor_ms[plain] / processor_ms[alone]:6.2f} x by processor time: {alone}, against {plain}")
        if loop.startswith(OTHER):
            best = [name for name in loops if not name.startswith(OTHER) and name != "plain loop"][-1]
            gain = processor_ms[alone] / processor_ms[f"1 {best}, 1 thread"]
            print(f"{gain:6.2f} x by processor time: 1 {best}, 1 thread, against {alone}")
            _print_ratio(rounds, f"1 {best}, 1 thread", alone)
            _print_ratio(rounds, f"{CORES} {best}s, 1 thread each", all_cores)
        _print_ratio(rounds, alone, plain)
        _print_ratio(rounds, all_cores, f"{CORES} plain loops, 1 thread each")
        _print_ratio(rounds, all_cores, plain_all)
    _print_ratio(rounds, f"{CORES} trainers, 1 thread each", f"1 trainer, {CORES} threads")
    for workers in (*a_core.values(), *threaded.values()):
        for worker in workers:
            worker.connection.send(0)


def _counts(found: Round) -> bool:
    return found.stolen <= UNDISTURBED


def _median(values: list[float]) -> float:
    return float(np.median(values)) if values else float("nan")


def _print_ratio(rounds: dict[str, list[Round]], ours: str, theirs: str) -> None:
    """Prints the median ratio of adjacent rounds, because the speed of a machine varies over time."""
    pairs = zip(rounds[ours], rounds[theirs], strict=True)
    ratios = [a.steps_per_s / b.steps_per_s for a, b in pairs if _counts(a) and _counts(b)]
    print(f"{_median(ratios):6.2f} x by the clock, {len(ratios):3} pairs: {ours}, against {theirs}")


def shares(engine: Engine) -> None:
    """Prints how a step's wall time is distributed, timing its parts one by one on the trainer's own objects."""
    cell = engine.cell
    spent = dict.fromkeys(("data", "forward", "backward", "optimizer"), 0.0)
    for batch_BU in tokens_of(cell, 20 if cell.scale == "tiny" else 3):
        clock = [time.perf_counter()]
        tokens_BU = engine.to_device(batch_BU)
        clock.append(time.perf_counter())
        objective = engine.ddp_module(tokens_BU, cell.method, engine.gamma).objective
        clock.append(time.perf_counter())
        objective.backward()
        clock.append(time.perf_counter())
        engine.optimizer.clip(cell.training.grad_clip)
        engine.optimizer.step()
        engine.optimizer.zero_grad()
        clock.append(time.perf_counter())
        for part, (start, end) in zip(spent, pairwise(clock), strict=True):
            spent[part] += end - start
    print("\n" + "   ".join(f"{part} {seconds / sum(spent.values()):.1%}" for part, seconds in spent.items()))


class Recorder(TorchDispatchMode):
    """Records the calls of a step that are its arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, Callable[[], object]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        if name in ARITHMETIC or name.startswith(ATTENTION):
            kind = "attention" if name.startswith(ATTENTION) else "matrix products"
            self.calls.append((kind, lambda: func(*args, **kwargs)))
        return func(*args, **kwargs)


@torch.no_grad()
def floor(engine: Engine) -> None:
    """Prints the time of a step's matrix products and attention, each replayed alone with warm caches."""
    cell = engine.cell
    tokens_BU = engine.to_device(tokens_of(cell, 1)[0])

    def step() -> None:
        with torch.enable_grad():
            engine.objective.eager(tokens_BU, cell.method, engine.gamma).objective.backward()
        engine.optimizer.zero_grad()

    with Recorder() as recorder:
        step()
    spent = {"matrix products": 0.0, "attention": 0.0}
    for kind, call in recorder.calls:
        spent[kind] += fastest(call)
    whole = fastest(step)
    print("floor at 1 thread, eager: " + ", ".join(f"{kind} {s * 1e3:.1f} ms" for kind, s in spent.items()), end=", ")
    print(f"{sum(spent.values()) / whole:.0%} of forward and backward, {whole * 1e3:.1f} ms\n")


def fastest(call: Callable[[], object]) -> float:
    """Returns the minimum seconds of five calls."""
    found = []
    for _ in range(5):
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return min(found)


def table(step: Callable[[], object]) -> None:
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(3):
            step()
    print(profiled.key_averages().table(sort_by="self_cpu_time_total", row_limit=16, max_name_column_width=48))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", default="tiny", choices=SCALES)
    parser.add_argument("--method", default="baseline", choices=METHODS)
    parser.add_argument("--vocabulary", type=int, default=1024)
    parser.add_argument("--small", action="store_true", help="2 sequences of 64 tokens a step, in place of 8 of 128")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--length", type=int)
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--logits-dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="the compiled trainer too; at nano and tiny it is"
    )
    parser.add_argument("--against", metavar="CHECKOUT", help="another checkout, whose trainer takes part")
    parser.add_argument("--seconds", type=float, default=40.0, help="for the comparison")
    args = parser.parse_args()
    compile = args.scale in ("nano", "tiny") if args.compile is None else args.compile
    args.batch = args.batch or (2 if args.small else 8)
    args.length = args.length or (64 if args.small else 128)
    precision: Precision = args.precision
    training = TrainingSpec(
        batch_size=args.batch,
        sequence_length=args.length,
        precision=precision,
        logits_dtype=args.logits_dtype,
        weight_decay=0.0,  # explicit, because other versions had another default
    )
    cell = Cell(
        scale=args.scale,
        method=args.method,
        gamma=METHODS[args.method].default_gamma,
        lr=args.lr,
        seed=0,
        data="random",
        V=args.vocabulary,
        model=ModelSpec(),
        training=training,
    )
    loops = [loop for loop in LOOPS if compile or loop != "compiled trainer"]
    if args.against:
        loops.append(OTHER + str(Path(args.against).resolve()))
    compare(cell, args.device, args.seconds, loops)
    torch.set_num_threads(1)
    eager = engine_of(cell, torch.device(args.device), False)
    shares(eager)
    floor(eager)
    engine = engine_of(cell, torch.device(args.device), compile)
    batches = cycle(tokens_of(cell, 3))
    table(lambda: engine.step(next(batches), step=0, lr=args.lr, micro_batch=args.batch))


if __name__ == "__main__":
    main()
