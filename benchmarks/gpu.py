"""Speed of the trainer on a GPU: ``python -m benchmarks.gpu [--seconds 300] [--out FILE] [PART ...]``.

Parts, the most important first (default: all):

  step        steps of 16M, 64 x 2,048 tokens, against the plain loop
  small       steps of 16M, 8 x 512, and tiny, 8 x 128, against the plain loop
  head        the head alone, 32,768 tokens at D 224 and 832, for every method, against torch's own functions compiled
  methods     the cost that each method adds to a step of 16M
  cells       four small cells sharing the device, against one alone
  evaluation  evaluation and diagnostics, as a share of a run at the default intervals
  big         steps of 221M and 57M, 64 x 2,048, against the plain loop
  exact       the cost of ``training.deterministic``

The plain loop is the straightforward GPU implementation: the model of ``benchmarks.plain`` and ``F.cross_entropy``
compiled as a whole under bfloat16 autocast, micro batches of 16 sequences, ``clip_grad_norm_`` and fused AdamW. It
never waits for a loss. Both loops alternate within one run, and a ratio is the median over rounds of the ratio within a
round. The trainer is timed the way it runs: each step is launched while the previous one is still in progress.

If a part fails, the last lines of its traceback are kept and the next part starts. No part starts after ``--seconds``.
``--device cpu --tiny`` is a dry run of every line.
"""

from __future__ import annotations

import argparse
import json
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu_loops import GIB, Bench, Loop, Ours, Plain, in_turns, ratio, seconds
from search_spaces.cell import Cell
from search_spaces.methods import METHODS
from trainers import diagnostics, head
from trainers.loop import Trainer
from trainers.world import World

RUN_STEPS, RUN_EVALUATIONS = 100_000, 21
"""Steps and evaluations of a run with the defaults: one evaluation before the first step and twenty during the run."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the table."""

    part: str
    case: str
    ms: float | None = None
    against_ms: float | None = None
    ratio: float | None = None
    """The other loop's time divided by ours, or the ratio that the case describes."""
    tokens_per_s: float | None = None
    tflops: float | None = None
    of_product: float | None = None
    """Share of the speed of a large matrix product."""
    peak_gib: float | None = None
    against_gib: float | None = None
    start_s: float | None = None
    """Seconds until the first step: initialization, micro batch, compilation."""
    note: str = ""


def product_rate(bench: Bench) -> float:
    """Returns the FLOP/s of a large bfloat16 product, with which other speeds are compared."""
    n = 8192 if bench.cuda else 256
    a = torch.randn(n, n, device=bench.device, dtype=torch.bfloat16)
    return 2 * n**3 / min(seconds(bench, lambda: a @ a) for _ in range(10))


def against_plain(bench: Bench, part: str, scale: str, B: int, T: int, product: float) -> Row:
    cell = bench.cell(scale, B, T)
    ours, plain = Ours(bench, cell), Plain(bench, cell)
    own, theirs = in_turns(bench, ours, plain)
    tokens = cell.training.batch_size * cell.training.sequence_length
    rate = tokens / median(own)
    flops = rate * cell.shape.flops_per_token(cell.V, cell.training.sequence_length)
    return Row(
        part=part,
        case=f"{scale}, {B} x {T}",
        ms=median(own) * 1e3,
        against_ms=median(theirs) * 1e3,
        ratio=ratio(theirs, own),
        tokens_per_s=rate,
        tflops=flops / 1e12,
        of_product=flops / product,
        peak_gib=ours.peak_gib,
        against_gib=plain.peak_gib,
        start_s=ours.start_s,
        note=f"micro batch {ours.micro_batch}; the plain loop starts in {plain.start_s:.0f} s",
    )


def steps(bench: Bench, product: float) -> Iterator[Row]:
    yield against_plain(bench, "step", "16M", 64, 2048, product)


def small(bench: Bench, product: float) -> Iterator[Row]:
    yield against_plain(bench, "small", "16M", 8, 512, product)
    yield against_plain(bench, "small", "tiny", 8, 128, product)


def big(bench: Bench, product: float) -> Iterator[Row]:
    for scale in ("221M", "57M"):
        yield against_plain(bench, "big", scale, 64, 2048, product)


def heads(bench: Bench, product: float) -> Iterator[Row]:
    N, widths = (256, (16, 24)) if bench.tiny else (32_768, (224, 832))
    chunk = bench.compile(head.compute_chunk, fullgraph=True, options=head.COMPILE_OPTIONS)
    torchs = bench.compile(lambda h_ND, E_VD, targets_N: F.cross_entropy(F.linear(h_ND, E_VD), targets_N))
    for D in widths:
        bench.forget()
        torch.manual_seed(0)
        h_ND = torch.randn(N, D, device=bench.device).requires_grad_()
        E_VD = (torch.randn(bench.V, D, device=bench.device) * D**-0.5).requires_grad_()
        targets_N = torch.randint(bench.V, (N,), device=bench.device)

        def plain(n: int, h_ND: Tensor = h_ND, E_VD: Tensor = E_VD, targets_N: Tensor = targets_N) -> None:
            for _ in range(n):
                h_ND.grad = E_VD.grad = None
                with torch.autocast(bench.device.type, torch.bfloat16):
                    loss = torchs(h_ND, E_VD, targets_N)
                torch.autograd.backward(loss)

        def ours(
            n: int,
            method: str,
            gamma: Tensor,
            h_ND: Tensor = h_ND,
            E_VD: Tensor = E_VD,
            targets_N: Tensor = targets_N,
        ) -> None:
            for _ in range(n):
                h_ND.grad = E_VD.grad = None
                with torch.autocast(bench.device.type, torch.bfloat16):
                    found = head.losses(h_ND[None], E_VD, targets_N[None], method, gamma, "bfloat16", chunk)
                torch.autograd.backward(found.objective)

        for method in METHODS if widths[0] == D else ("baseline",):
            gamma = torch.tensor(METHODS[method].default_gamma or 0.0, device=bench.device)
            loop = partial(ours, method=method, gamma=gamma)
            gib = []
            for one in (loop, plain):
                one(1)
                bench.forget()
                before = torch.cuda.memory_allocated() if bench.cuda else 0
                one(1)
                gib.append((torch.cuda.max_memory_allocated() - before) / GIB if bench.cuda else 0.0)
            mine, theirs = in_turns(bench, loop, plain)
            yield Row(
                part="head",
                case=f"D {D}, {N} tokens, {method}",
                ms=median(mine) * 1e3,
                against_ms=median(theirs) * 1e3,
                ratio=ratio(theirs, mine),
                of_product=6 * N * D * bench.V / median(mine) / product,
                peak_gib=gib[0],
                against_gib=gib[1],
            )


def methods(bench: Bench, product: float) -> Iterator[Row]:
    """Measures each method against the baseline on the same engine. The baseline against itself gives the noise
    level."""
    ours = Ours(bench, bench.cell("16M", 64, 2048))
    loops: dict[str, Loop] = {method: partial(ours) for method in METHODS}
    of = {id(loop): bench.cell("16M", 64, 2048, method) for method, loop in loops.items()}

    def prepare(loop: Loop) -> None:
        ours.engine.reset(of[id(loop)])
        ours.engine.warm_up(ours.micro_batch)

    again: Loop = partial(ours)
    of[id(again)] = of[id(loops["baseline"])]
    for method, loop in loops.items():
        prepare(loop)
        loop(1)
        own, base = in_turns(bench, loop, again, prepare=prepare)
        note = f"{ratio(own, base) - 1:+.2%} over the baseline"
        yield Row(part="methods", case=method, ms=median(own) * 1e3, against_ms=median(base) * 1e3, note=note)


def exact(bench: Bench, product: float) -> Iterator[Row]:
    loops = [Ours(bench, bench.cell("16M", 64, 2048, deterministic=flag), 16) for flag in (True, False)]
    own, base = in_turns(bench, *loops)
    note = f"{ratio(own, base) - 1:+.2%} over the same without"
    yield Row(part="exact", case="deterministic", ms=median(own) * 1e3, against_ms=median(base) * 1e3, note=note)


def evaluation(bench: Bench, product: float) -> Iterator[Row]:
    cell = bench.cell("16M", 64, 2048)
    ours, spec = Ours(bench, cell), cell.training
    (step,) = in_turns(bench, ours)
    shape = (spec.eval_sequences, spec.sequence_length + 1)
    validation_NU = torch.randint(cell.V, shape, device=bench.device)
    looked_at = diagnostics.row_batch(validation_NU, spec)

    def evaluate() -> None:
        ours.engine.loss(validation_NU, ours.micro_batch)

    def diagnose() -> None:
        diagnostics.measure(ours.engine.objective, looked_at, cell.method, ours.engine.gamma)

    for name, call in (("evaluation", evaluate), ("diagnostics", diagnose)):
        call()
        once = min(seconds(bench, call) for _ in range(2))
        share = RUN_EVALUATIONS * once / (RUN_STEPS * median(step))
        note = f"{share:.2%} of a run of {RUN_STEPS:,} steps"
        yield Row(part="evaluation", case=name, ms=once * 1e3, against_ms=median(step) * 1e3, note=note)


SERVED = 50
"""Steps between two readings of the clock."""


def serve(connection: Connection, device: str, share: float, cell: Cell, tiny: bool) -> None:
    """Runs a cell in its own process: sends its startup time, then steps per second for each duration that it
    receives."""
    torch.set_num_threads(1)
    bench = Bench(torch.device(device), tiny, 0.0, 1)
    Trainer(World(0, 1, bench.device, share), None)  # type: ignore[arg-type]  # sets this process's allocators
    ours = Ours(bench, cell, cell.training.batch_size)
    connection.send(ours.start_s)
    while length := connection.recv():
        ends, n, started = time.perf_counter() + length, 0, time.perf_counter()
        while time.perf_counter() < ends:
            ours(SERVED)
            n += SERVED
        connection.send(n / (time.perf_counter() - started))


def cells(bench: Bench, product: float) -> Iterator[Row]:
    """The processes reuse what the first one compiled, so their startup has a warm compiler cache."""
    many = 2 if bench.tiny else 4
    for scale, B, T in (("16M", 8, 512), ("tiny", 8, 128)):
        cell, context = bench.cell(scale, B, T), get_context("spawn")
        pipes = [context.Pipe() for _ in range(many)]
        processes = [
            context.Process(target=serve, args=(theirs, str(bench.device), 1 / many, cell, bench.tiny), daemon=True)
            for _, theirs in pipes
        ]
        for process, (_, theirs) in zip(processes, pipes, strict=True):
            process.start()
            theirs.close()  # so that a dead process raises an EOFError here
        connections = [own for own, _ in pipes]
        start_s = max(connection.recv() for connection in connections)

        def rates(count: int, connections: list[Connection] = connections) -> list[float]:
            for connection in connections[:count]:
                connection.send(3 * bench.turn_s)
            return [connection.recv() for connection in connections[:count]]

        alone, together = zip(*[(rates(1)[0], rates(many)) for _ in range(3)], strict=True)
        for connection, process in zip(connections, processes, strict=True):
            connection.send(0)
            process.join(30)
        gain = median(sum(all_of) / one for one, all_of in zip(alone, together, strict=True))
        tokens = cell.training.batch_size * cell.training.sequence_length
        yield Row(
            part="cells",
            case=f"{many} of {scale}, {B} x {T}",
            ms=1e3 / median(sum(all_of) / many for all_of in together),
            against_ms=1e3 / median(alone),
            ratio=gain,
            tokens_per_s=tokens * median(sum(all_of) for all_of in together),
            start_s=start_s,
            note=f"{gain:.2f} x one alone",
        )


PARTS: dict[str, Callable[[Bench, float], Iterator[Row]]] = {
    "step": steps,
    "small": small,
    "head": heads,
    "methods": methods,
    "cells": cells,
    "evaluation": evaluation,
    "big": big,
    "exact": exact,
}
COLUMNS = {
    "ms": ("ms", ".2f"),
    "against_ms": ("against", ".2f"),
    "ratio": ("x", ".2f"),
    "tokens_per_s": ("tokens/s", ",.0f"),
    "tflops": ("TFLOP/s", ".1f"),
    "of_product": ("of product", ".1%"),
    "peak_gib": ("GiB", ".2f"),
    "against_gib": ("against", ".2f"),
    "start_s": ("start s", ".1f"),
}


def lines(rows: list[Row]) -> list[str]:
    """Returns the table as text, without a library that a bare machine may not have."""
    head_of = ["part", "case", *(title for title, _ in COLUMNS.values()), "note"]
    body = []
    for row in rows:
        values = [(getattr(row, name), form) for name, (_, form) in COLUMNS.items()]
        shown = ["" if value is None else format(value, form) for value, form in values]
        body.append([row.part, row.case, *shown, row.note])
    widths = [max(len(line[i]) for line in (head_of, *body)) for i in range(len(head_of))]
    aligned = ["<" if i < 2 or i == len(head_of) - 1 else ">" for i in range(len(head_of))]
    return [
        "  ".join(f"{text:{a}{w}}" for text, a, w in zip(line, aligned, widths, strict=True))
        for line in (head_of, *body)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all by default")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a dry run with tiny sizes")
    parser.add_argument("--seconds", type=float, default=300.0, help="after which no part begins")
    parser.add_argument("--out", type=Path, help="a JSON file of all rows, written after each part")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"PART {unknown.pop()!r} is not one of {', '.join(PARTS)}")
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no CUDA device here; --device cpu --tiny is a dry run")
    bench = Bench(device, args.tiny, turn_s=0.05 if args.tiny else 0.4, rounds=2 if args.tiny else 5)
    started, rows, failures = time.perf_counter(), [], {}
    product = product_rate(bench)
    name = torch.cuda.get_device_name(device) if bench.cuda else "processor"
    machine = {"device": name, "torch": torch.__version__, "product_tflops": product / 1e12}
    print(f"{name}, PyTorch {torch.__version__}, bfloat16 products at {product / 1e12:.1f} TFLOP/s", flush=True)
    for part in args.parts or PARTS:
        passed = time.perf_counter() - started
        if passed > args.seconds:
            failures[part] = f"not begun: {passed:.0f} s were over"
            continue
        try:
            for row in PARTS[part](bench, product):
                rows.append(row)
                print(f"[{time.perf_counter() - started:5.0f} s] " + "  ".join(lines([row])[1].split()), flush=True)
        except Exception as error:
            failures[part] = "".join(traceback.format_exception(error)[-4:])[-1500:]
            print(f"[{time.perf_counter() - started:5.0f} s] {part} FAILED\n{failures[part]}", flush=True)
        bench.forget()
        if args.out:
            content = {"machine": machine, "rows": [asdict(row) for row in rows], "failures": failures}
            args.out.write_text(json.dumps(content, indent=1))
    print("\n" + "\n".join(lines(rows)))
    for part, reason in failures.items():
        print(f"{part}: {reason.strip().splitlines()[-1]}")
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
