"""The chunked head against eager logits and PyTorch's own ``linear_cross_entropy``, and the cost of each method.

    python -m benchmarks.head [--scale 16M] [--tokens 8192] [--vocabulary 50304] [--rounds 7] [--threads 2]
                              [--skip-head]

First the head alone, one forward and backward pass in float32 at the scale's width:
  eager     ``F.cross_entropy(F.linear(h, E), targets)``
  torch     ``F.linear_cross_entropy`` with its defaults, which makes the same two calls; new in PyTorch 2.13
  chunked   ``F.linear_cross_entropy`` with ``LinearCrossEntropyOptions()``; new in PyTorch 2.13
  ours      ``trainers.head.losses``, the baseline
Then whole training steps on one engine. Each method alternates with the baseline, which goes first in every other
round. The baseline against itself shows how reliable the ratios are.

All variants alternate in one run. A ratio is the median over rounds of the ratio to the reference in the same round.
"least" is the ratio of the minimum times, which excludes the influence of other users of the machine. Heads are
measured in wall time, whole steps in CPU time, which other users hardly affect.

This is too noisy for small shares. The cost of a method is therefore also measured with many pairs of a smaller
workload: the median of the additional seconds, with its 95 % interval, as a share of a step with all tokens. mu-loss
and mu-centering add the same time to a step of any size, a large part of a step with ``FEW`` tokens. z-loss and
soft-cap add time in the head that grows with the tokens, so they are measured in the head alone, with one sequence.

Peak memory is measured in a fresh process for each variant: how much its maximum resident set (``ru_maxrss``) grows
beyond the inputs, the libraries and a pass over 2 tokens. It includes the gradients of h and E.

Why not PyTorch's chunked form: it returns only the cross-entropy. z-loss and max-z would have to compute the logits
again for log Z and the largest logit, soft-cap maps the logits, which it does not expose, and it does not round them to
bfloat16 in both directions. For the baseline, where it would be enough, it takes less memory and more time than ours.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from scipy.stats import quantile_test
from torch import Tensor

from search_spaces.cell import Cell
from search_spaces.methods import METHODS
from search_spaces.scales import SCALES
from search_spaces.training_spec import ModelSpec, TrainingSpec
from trainers.allocator import keep_freed_memory
from trainers.engine import Engine
from trainers.head import losses
from trainers.world import World

SEQUENCE = 2048
FEW, PAIRS = 16, 60
MEMORY_TARGET, TIME_TARGET = 1 / 8, 0.65
"""Targets of the head's ratios to eager."""
STEP_TARGETS = {"z-loss": 1.01, "mu-loss": 1.003, "mu-centering": 1.005, "soft-cap": 1.10}
"""Targets of a method's step to the baseline's."""
Times = dict[str, list[float]]
Pairs = dict[str, tuple[list[float], list[float]]]
"""By method: CPU seconds of the baseline's runs and of its own runs, which alternate."""


def ours(h_ND: Tensor, E_VD: Tensor, targets_N: Tensor) -> Tensor:
    return losses(h_ND[None], E_VD, targets_N[None], "baseline", torch.tensor(0.0), "float32").objective


def eager(h_ND: Tensor, E_VD: Tensor, targets_N: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(h_ND, E_VD), targets_N)


def chunked(h_ND: Tensor, E_VD: Tensor, targets_N: Tensor) -> Tensor:
    return F.linear_cross_entropy(h_ND, E_VD, targets_N, options=torch.nn.LinearCrossEntropyOptions())


HEADS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "eager": eager,
    **({"torch": F.linear_cross_entropy, "chunked": chunked} if hasattr(F, "linear_cross_entropy") else {}),
    "ours": ours,
}


def drawn(N: int, D: int, V: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    h_ND = torch.randn(N, D, generator=generator).requires_grad_()
    E_VD = torch.randn(V, D, generator=generator).mul_(D**-0.5).requires_grad_()
    return h_ND, E_VD, torch.randint(V, (N,), generator=generator)


def growth(head: str, N: int, D: int, V: int) -> int:
    """Returns the bytes by which the maximum resident set of this process grows in one pass."""
    inputs = drawn(N, D, V)
    HEADS[head](*drawn(2, D, 64)).backward()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    HEADS[head](*inputs).backward()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def seconds(run: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    started = clock()
    run()
    return clock() - started


def time_heads(rounds: int, N: int, D: int, V: int) -> Times:
    h_ND, E_VD, targets_N = drawn(N, D, V)
    times: Times = {name: [] for name in HEADS}
    for _ in range(rounds):
        for name, head in HEADS.items():
            h_ND.grad = E_VD.grad = None
            times[name].append(seconds(lambda head=head: head(h_ND, E_VD, targets_N).backward()))
    return times


def time_steps(rounds: int, scale: str, sequences: int, length: int, V: int, methods: Iterable[str] = METHODS) -> Pairs:
    """Times whole steps. From here on, this process has the allocator settings of a training process."""
    keep_freed_memory()
    training = TrainingSpec(batch_size=sequences, sequence_length=length, precision="float32", logits_dtype="float32")
    cells = {
        name: Cell(
            scale=scale,
            method=name,
            gamma=METHODS[name].default_gamma,
            lr=1e-3,
            seed=0,
            data="random",
            V=V,
            model=ModelSpec(),
            training=training,
        )
        for name in ("baseline", *methods)
    }
    engine = Engine(cells["baseline"], World.single(), compile=False)
    batch_BU = np.random.default_rng(0).integers(0, V, (sequences, length + 1), dtype=np.uint16)

    def step(name: str) -> float:
        engine.reset(cells[name])
        return seconds(lambda: engine.step(batch_BU, step=0, lr=1e-3, micro_batch=sequences), time.process_time)

    step("baseline")  # warm-up
    return in_turns(rounds, cells, step)


def time_losses(rounds: int, N: int, D: int, V: int, methods: Iterable[str]) -> Pairs:
    """Times forward and backward passes of the head alone."""
    h_ND, E_VD, targets_N = drawn(N, D, V)
    gammas = {name: torch.tensor(METHODS[name].default_gamma or 0.0) for name in ("baseline", *methods)}

    def head(name: str) -> float:
        def run() -> None:
            losses(h_ND[None], E_VD, targets_N[None], name, gammas[name], "float32").objective.backward()

        h_ND.grad = E_VD.grad = None
        return seconds(run, time.process_time)

    return in_turns(rounds, gammas, head)


def in_turns(rounds: int, names: Iterable[str], run: Callable[[str], float]) -> Pairs:
    """Alternates runs of the baseline and of each name; the baseline goes first in every other round."""
    times: Pairs = {name: ([], []) for name in names}
    for i in range(rounds):
        for name, (reference, own) in times.items():
            pair = [(reference, "baseline"), (own, name)]
            for found, one in pair if i % 2 else reversed(pair):
                found.append(run(one))
    return times


def table(title: str, times: Pairs, of: str, targets: dict[str, float]) -> Table:
    """Returns a table of ``times``: by variant, the seconds of the reference and of the variant itself."""
    found = Table("", "seconds", f"x {of}", "least", "target", title=title)
    for name, (reference, values) in times.items():
        ratio = median(a / b for a, b in zip(values, reference, strict=True))
        least = min(values) / min(reference)
        found.add_row(name, f"{median(values):.2f}", f"{ratio:.4f}", f"{least:.4f}", str(targets.get(name, "")))
    return found


def table_of_added(title: str, times: Pairs, scale: int, whole: float) -> Table:
    """Shows the time that each variant adds to its reference, times ``scale``, as a share of a whole step."""
    found = Table("", "ms", "95 %", "1 + share of a step", "target", title=title)
    for name, (without, own) in times.items():
        more = np.subtract(own, without) * scale
        interval = quantile_test(more, p=0.5).confidence_interval(0.95)  # from the binomial distribution of ranks
        within = f"{interval.low * 1e3:.1f} to {interval.high * 1e3:.1f}"
        share = f"{1 + median(more) / whole:.4f}"
        found.add_row(name, f"{median(more) * 1e3:.1f}", within, share, str(STEP_TARGETS.get(name, "")))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", default="16M", choices=SCALES)
    parser.add_argument("--tokens", type=int, default=8192, help=f"a multiple of {SEQUENCE}")
    parser.add_argument("--vocabulary", type=int, default=50_304)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--skip-head", action="store_true", help="only the steps")
    parser.add_argument("--growth-of", choices=HEADS, help="only print this head's peak memory, in bytes")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    N, D, V = args.tokens, SCALES[args.scale].D, args.vocabulary
    if args.growth_of:
        print(growth(args.growth_of, N, D, V))
        return
    console = Console()
    if not args.skip_head:
        compare_heads(console, args.rounds, N, D, V)
    steps = time_steps(args.rounds, args.scale, N // SEQUENCE, SEQUENCE, V)
    console.print(table(f"A training step of {args.scale}", steps, "baseline", STEP_TARGETS))
    whole = median(steps["baseline"][0])
    fixed = time_steps(PAIRS, args.scale, 1, FEW, V, ("mu-loss", "mu-centering"))
    console.print(table_of_added(f"Added to a step, by steps of {FEW} tokens", fixed, 1, whole))
    grows = time_losses(PAIRS, SEQUENCE, D, V, ("z-loss", "soft-cap"))
    console.print(table_of_added(f"Added to a step, by heads of {SEQUENCE} tokens", grows, N // SEQUENCE, whole))


def compare_heads(console: Console, rounds: int, N: int, D: int, V: int) -> None:
    """Prints the heads' peak memory and times."""
    again = [sys.executable, "-m", "benchmarks.head", *sys.argv[1:], "--growth-of"]
    peaks = {name: int(subprocess.check_output([*again, name])) for name in HEADS}
    memory = Table("", "MB", "x eager", "target", title="Peak extra memory of the head")
    for name, peak in peaks.items():
        target = f"{MEMORY_TARGET:.3f}" if name == "ours" else ""
        memory.add_row(name, f"{peak / 1e6:.0f}", f"{peak / peaks['eager']:.3f}", target)
    console.print(memory)
    times = time_heads(rounds, N, D, V)
    against = {name: (times["eager"], values) for name, values in times.items()}
    console.print(table("Forward and backward of the head", against, "eager", {"ours": TIME_TARGET}))


if __name__ == "__main__":
    main()
