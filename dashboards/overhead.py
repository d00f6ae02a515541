"""Extra training time of a method over the baseline, with an interval."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from scipy.special import stdtrit

Pair = TypeVar("Pair", bound=Hashable)
"""What pairs a run with a run of the baseline: learning rate and seed, and the factors if there are several."""


@dataclass(frozen=True, kw_only=True)
class Overhead:
    """Extra training time in percent, with its 95% interval."""

    percent: float
    half_width: float

    @property
    def interval(self) -> tuple[float, float]:
        return self.percent - self.half_width, self.percent + self.half_width


def overhead(ours: Sequence[Mapping[Pair, float]], baseline: Mapping[Pair, float]) -> Overhead | None:
    """Extra training time over the baseline: the mean over gammas of the ratio of total seconds.

    A ratio is formed over the (lr, seed) pairs that finished in both, because a diverged run ends early. If all
    finished, it equals the ratio of the mean seconds, as published.

    The interval is Student's t over the pairs. It linearizes the ratios (Cochran, Sampling Techniques, section 6.4):
    what a pair adds is its seconds minus those that the ratio predicts, averaged over the gammas, which share the
    baseline's runs. In simulations with log-normal times (spread 10 to 30%, 2 to 18 pairs, 1 to 4 gammas) it covered
    the truth 94 to 95% of the time. It does not know of other work that slowed all runs of one method.

    Args:
        ours: for each gamma of the method, the seconds of its finished runs.
        baseline: the seconds of the baseline's finished runs.

    Returns:
        None if fewer than two pairs finished in both: then nothing tells the method from other work on the machine.
    """
    paired = [{pair: seconds[pair] for pair in seconds if pair in baseline} for seconds in ours]
    paired = [seconds for seconds in paired if seconds]
    added = dict.fromkeys((pair for seconds in paired for pair in seconds), 0.0)
    n, ratios = len(added), []
    if n < 2:
        return None
    for seconds in paired:
        total = sum(baseline[pair] for pair in seconds)
        ratio = sum(seconds.values()) / total
        ratios.append(ratio)
        for pair in seconds:
            added[pair] += (seconds[pair] - ratio * baseline[pair]) / total / len(paired)
    deviation = math.sqrt(n / (n - 1) * sum(addition**2 for addition in added.values()))
    half_width = 100 * float(stdtrit(n - 1, 0.975)) * deviation
    return Overhead(percent=100 * (sum(ratios) / len(ratios) - 1), half_width=half_width)
