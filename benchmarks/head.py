"""The chunked head against eager logits and PyTorch's own ``linear_cross_entropy``: memory, time, cost of a method.

    python -m benchmarks.head [--tokens 8192] [--width 224] [--vocabulary 50304] [--rounds 9] [--threads 2]

One forward and backward pass of the head alone in float32, so that a method's ratio to the baseline is larger than it
is in a training step, which has the blocks and the optimizer in it too. All kinds take turns in one run; a ratio is the
median over rounds of the ratio to the reference of the same round. "least" is the ratio of the least times: on a
machine that others use too, it is what is left without them.

Peak memory is measured in a fresh process a kind: the growth of its largest resident set (``ru_maxrss``) over what the
inputs, the libraries and a pass over 2 tokens took before. The gradients of h and E are in it.

eager     ``F.cross_entropy(F.linear(h, E), targets)``
torch     ``F.linear_cross_entropy``, as it is by default: the same two calls
chunked   ``F.linear_cross_entropy`` with ``LinearCrossEntropyOptions()``, new in PyTorch 2.13
the rest  ``trainers.head.losses`` with that method; mu-centering with its pass over E

Why not PyTorch's chunked form: it returns the cross-entropy alone. z-loss and max-z would compute the logits a second
time for log Z and the largest logit, soft-cap maps logits that it does not give away, and neither rounds them to
bfloat16 both ways. The table says what it costs where it would serve, for the baseline.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import LinearCrossEntropyOptions

from search_spaces.methods import METHODS
from trainers import methods
from trainers.head import losses

MEMORY_TARGET = 1 / 8
TIME_TARGET = 0.65
METHOD_TARGETS = {"z-loss": 1.01, "mu-loss": 1.003, "mu-centering": 1.005, "soft-cap": 1.10}
"""To the baseline; the two above are the baseline's to eager."""

Pass = Callable[[Tensor, Tensor, Tensor], None]
"""One forward and backward pass: ``(h_ND, E_VD, targets_N)``, gradients left in ``grad``."""


def with_method(name: str) -> Pass:
    strength = METHODS[name].strength
    gamma = torch.tensor(strength.default if strength else 0.0)
    constrain = methods.WEIGHTS_MAPS.get(name)

    def run(h_ND: Tensor, E_VD: Tensor, targets_N: Tensor) -> None:
        losses(h_ND[None], E_VD, targets_N[None], name, gamma, "float32").objective.backward()
        if constrain:
            constrain(E_VD)

    return run


KINDS: dict[str, Pass] = {
    "eager": lambda h_ND, E_VD, targets_N: F.cross_entropy(F.linear(h_ND, E_VD), targets_N).backward(),
    "torch": lambda h_ND, E_VD, targets_N: F.linear_cross_entropy(h_ND, E_VD, targets_N).backward(),
    "chunked": lambda h_ND, E_VD, targets_N: F.linear_cross_entropy(
        h_ND, E_VD, targets_N, options=LinearCrossEntropyOptions()
    ).backward(),
} | {name: with_method(name) for name in METHODS}


def drawn(N: int, D: int, V: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    h_ND = torch.randn(N, D, generator=generator).requires_grad_()
    E_VD = torch.randn(V, D, generator=generator).mul_(D**-0.5).requires_grad_()
    return h_ND, E_VD, torch.randint(V, (N,), generator=generator)


def growth(kind: str, N: int, D: int, V: int) -> int:
    """Bytes by which the largest resident set of this process grows in one pass."""
    h_ND, E_VD, targets_N = drawn(N, D, V)
    KINDS[kind](*drawn(2, D, 64))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    KINDS[kind](h_ND, E_VD, targets_N)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def seconds(kind: str, h_ND: Tensor, E_VD: Tensor, targets_N: Tensor) -> float:
    h_ND.grad = E_VD.grad = None
    started = time.perf_counter()
    KINDS[kind](h_ND, E_VD, targets_N)
    return time.perf_counter() - started


def table(times: dict[str, list[float]], peaks: dict[str, int]) -> Table:
    found = Table("", "MB", "x eager", "target", "s", "x eager", "least", "target", "x baseline", "least", "target")

    def ratios(kind: str, reference: str) -> tuple[str, str]:
        pairs = zip(times[kind], times[reference], strict=True)
        return f"{median(a / b for a, b in pairs):.3f}", f"{min(times[kind]) / min(times[reference]):.3f}"

    for kind, values in times.items():
        base = kind == "baseline"
        found.add_row(
            kind,
            f"{peaks[kind] / 1e6:.0f}",
            f"{peaks[kind] / peaks['eager']:.3f}",
            f"{MEMORY_TARGET:.3f}" if base else "",
            f"{median(values):.2f}",
            *ratios(kind, "eager"),
            f"{TIME_TARGET}" if base else "",
            *ratios(kind, "baseline"),
            str(METHOD_TARGETS.get(kind, "")),
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--width", type=int, default=224)
    parser.add_argument("--vocabulary", type=int, default=50_304)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--growth-of", choices=KINDS, help="only print this kind's peak memory, in bytes")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    sizes = (args.tokens, args.width, args.vocabulary)
    if args.growth_of:
        print(growth(args.growth_of, *sizes))
        return
    again = [sys.executable, "-m", "benchmarks.head", *sys.argv[1:], "--growth-of"]
    peaks = {kind: int(subprocess.check_output([*again, kind])) for kind in KINDS}
    inputs = drawn(*sizes)
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(args.rounds):
        for kind in KINDS:
            times[kind].append(seconds(kind, *inputs))
    Console(width=120).print(table(times, peaks))


if __name__ == "__main__":
    main()
