"""Loss spikes: how often the training loss jumped out of its recent range."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import numpy as np

WINDOW_STEPS = 100
"""Number of previous steps that a loss is compared with."""
MIN_WINDOW_STEPS = 20
"""No loss counts as a spike before this many steps."""
THRESHOLD_STDS = 6.0


class Spikes:
    """Counts losses more than ``THRESHOLD_STDS`` standard deviations above the mean of the ``WINDOW_STEPS`` before."""

    def __init__(self, losses: Iterable[float] = (), count: int = 0) -> None:
        self.losses = deque(losses, maxlen=WINDOW_STEPS)
        self.count = count

    def observe(self, loss: float) -> None:
        # Half of the losses are below the mean and cannot be spikes: a NumPy call would be a tenth of a small step.
        if len(self.losses) >= MIN_WINDOW_STEPS and loss > sum(self.losses) / len(self.losses):
            window = np.fromiter(self.losses, dtype=np.float64)
            self.count += bool(loss > window.mean() + THRESHOLD_STDS * window.std())
        self.losses.append(loss)
