"""What arXiv 2601.02031 published, as data: a reference beside one's own runs, and the golden values of the tests."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dashboards.sensitivity import CurveFacts

RUNS_CSV = Path(__file__).parent / "oec_published_runs.csv"
"""The 140 published runs behind ``LRS`` and ``BEST_LOSS``: 5 scales, 4 methods, 7 learning rates, 1 seed."""

V = 50_304
"""Their vocabulary: GPT-2's 50257, padded to a multiple of 64."""

L_INIT = math.log(V)
"""Loss at initialisation that the published runs are read with, in nats: a uniform guess over ``V``."""

GAMMA = 1e-4
"""Their strength of z-loss and mu-loss."""

METHODS = ("baseline", "z-loss", "mu-loss", "mu-centering")
SCALES = ("16M", "29M", "57M", "109M", "221M")

LRS: dict[str, tuple[float, ...]] = {
    "16M": (0.306, 0.054, 0.031, 0.028),
    "29M": (0.391, 0.033, 0.027, 0.029),
    "57M": (0.508, 0.235, 0.031, 0.041),
    "109M": (0.344, 0.118, 0.046, 0.051),
    "221M": (0.412, 0.109, 0.056, 0.061),
}
"""Learning-rate sensitivity in nats, divided by n - 1, by scale in the order of ``METHODS``."""

BEST_LOSS: dict[str, tuple[float, ...]] = {
    "16M": (3.84, 3.84, 3.84, 3.84),
    "29M": (3.59, 3.58, 3.59, 3.58),
    "57M": (3.37, 3.37, 3.37, 3.37),
    "109M": (3.20, 3.20, 3.20, 3.20),
    "221M": (3.05, 3.05, 3.05, 3.05),
}
"""Smallest validation loss over the learning rates in nats, by scale in the order of ``METHODS``."""

OVERHEAD_PERCENT: dict[str, tuple[float, float]] = {
    "z-loss": (6.4, 0.8),
    "mu-loss": (0.4, 0.2),
    "mu-centering": (0.6, 0.3),
}
"""Extra training time over the baseline, by method, at 16M and at 221M."""


OTHER_START = 0.1
"""Nats by which losses before training may differ between runs of like text and vocabulary."""


def near_published(l_init: float) -> bool:
    """Whether runs that begin at this loss have the published vocabulary, so that their losses compare."""
    return abs(l_init - L_INIT) < OTHER_START


def overheads_beside_published(curves: Iterable[CurveFacts]) -> str:
    """What the published runs give for extra training time, beside what was published; ``curves`` are those runs'.

    The two differ by up to 0.15 percentage points: the published ones come from times that the table does not hold.
    """
    found = {(curve.method, curve.scale): curve.overhead_percent for curve in curves}
    parts = [
        f"{method} {found[method, '16M']:.1f} % to {found[method, '221M']:.1f} % (published {small} % to {large} %)"
        for method, (small, large) in OVERHEAD_PERCENT.items()
    ]
    return f"Extra training time over the baseline, 16M to 221M: {', '.join(parts)}."
