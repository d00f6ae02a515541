"""The results published in arXiv 2601.02031: a reference for one's own runs, and golden values for the tests."""

from __future__ import annotations

import math
from pathlib import Path

RUNS_CSV = Path(__file__).parent / "published.csv"
"""The 350 published runs: every curve of ``CURVES`` at 5 scales and 7 learning rates, with one seed."""

NAME = "published"
"""The name of the published runs on the command line."""

V = 50_304
"""The vocabulary size of the published runs: GPT-2's 50,257, padded to a multiple of 64."""

L_INIT = math.log(V)
"""Loss at initialization assumed for the published runs, in nats: that of a uniform guess over ``V``."""

GAMMA = 1e-4
"""The gamma of z-loss and mu-loss in the main comparison."""

GAMMAS = (1e-7, GAMMA, 1e-1, 1e2)
"""The gammas of z-loss and mu-loss in the two sweeps, which reuse the baseline and, at ``GAMMA``, the runs of the main
comparison."""

METHODS = ("baseline", "z-loss", "mu-loss", "mu-centering")
"""The methods of the main comparison, in the order of its tables."""

SCALES = ("16M", "29M", "57M", "109M", "221M")

CURVES: tuple[tuple[str, float | None], ...] = (
    ("baseline", None),
    *(("z-loss", gamma) for gamma in GAMMAS),
    *(("mu-loss", gamma) for gamma in GAMMAS),
    ("mu-centering", None),
)
"""Method and gamma of every published curve of a scale."""

LRS: dict[str, tuple[float, ...]] = {
    "16M": (0.306, 0.037, 0.054, 0.032, 1.156, 0.182, 0.031, 0.031, 0.054, 0.028),
    "29M": (0.391, 0.044, 0.033, 0.043, 1.780, 0.052, 0.027, 0.034, 0.040, 0.029),
    "57M": (0.508, 0.107, 0.235, 0.047, 1.392, 0.110, 0.031, 0.038, 0.033, 0.041),
    "109M": (0.344, 0.076, 0.118, 0.059, 2.150, 0.125, 0.046, 0.048, 0.034, 0.051),
    "221M": (0.412, 0.131, 0.109, 0.101, 2.166, 0.129, 0.056, 0.056, 0.055, 0.061),
}
"""Learning-rate sensitivity in nats, divided by n - 1; for each scale in the order of ``CURVES``."""

BEST_LOSS: dict[str, tuple[float, ...]] = {
    "16M": (3.84, 3.84, 3.84, 3.83, 4.19, 3.84, 3.84, 3.84, 3.81, 3.84),
    "29M": (3.59, 3.59, 3.58, 3.57, 3.94, 3.59, 3.59, 3.58, 3.56, 3.58),
    "57M": (3.37, 3.37, 3.37, 3.35, 3.79, 3.37, 3.37, 3.37, 3.36, 3.37),
    "109M": (3.20, 3.20, 3.20, 3.18, 3.64, 3.20, 3.20, 3.20, 3.20, 3.20),
    "221M": (3.05, 3.05, 3.05, 3.03, 3.49, 3.05, 3.05, 3.05, 3.05, 3.05),
}
"""Lowest validation loss over the learning rates in nats; for each scale in the order of ``CURVES``."""

BEST_LR: dict[str, tuple[float, ...]] = {
    "16M": (1e-2, 1e-2, 1e-2, 1e-2, 1e-3, 1e-2, 1e-2, 1e-1, 1e-1, 1e-2),
    "29M": (3e-3, 3e-2, 3e-2, 1e-2, 1e-3, 3e-3, 3e-2, 3e-2, 1e-1, 3e-2),
    "57M": (1e-2, 1e-2, 1e-2, 3e-3, 1e-3, 3e-3, 1e-2, 3e-3, 1e-2, 1e-2),
    "109M": (3e-3, 3e-3, 3e-3, 3e-3, 3e-4, 3e-3, 3e-3, 3e-3, 3e-3, 3e-3),
    "221M": (1e-3, 3e-3, 3e-3, 3e-3, 3e-4, 3e-3, 3e-3, 3e-3, 3e-3, 3e-3),
}
"""The learning rate of ``BEST_LOSS``; for each scale in the order of ``CURVES``."""

OVERHEAD_PERCENT: dict[str, tuple[float, ...]] = {
    "16M": (6.4, 0.4, 0.6),
    "29M": (4.3, 0.7, 0.5),
    "57M": (2.5, 0.6, 0.4),
    "109M": (1.5, 0.4, 0.4),
    "221M": (0.8, 0.2, 0.3),
}
"""Extra training time over the baseline in percent; for each scale in the order of ``METHODS`` after the baseline. It
is averaged over the learning rates, then over the gammas of a method."""

MAX_L_INIT_DIFFERENCE = 0.1
"""Runs on similar text with the same vocabulary start with losses that differ by less than this, in nats."""


def near_published(l_init: float) -> bool:
    """Whether runs that start at this loss have the published vocabulary, so that their losses are comparable."""
    return abs(l_init - L_INIT) < MAX_L_INIT_DIFFERENCE
