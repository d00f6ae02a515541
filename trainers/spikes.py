"""Loss spikes: how often the training loss jumped out of its recent spread."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import numpy as np

WINDOW = 100
"""Steps that a loss is compared with."""
JUDGED_FROM = 20
"""Steps that a window needs before it can judge."""
DEVIATIONS = 6.0


class Spikes:
    """Counts the losses more than six standard deviations above the mean of the ``WINDOW`` before them."""

    def __init__(self, losses: Iterable[float] = (), count: int = 0) -> None:
        self.losses = deque(losses, maxlen=WINDOW)
        self.count = count

    def observe(self, loss: float) -> None:
        # A loss below the mean is no spike, which half of them are: numpy's start-up is a tenth of a small step.
        if len(self.losses) >= JUDGED_FROM and loss > sum(self.losses) / len(self.losses):
            window = np.fromiter(self.losses, dtype=np.float64)
            self.count += bool(loss > window.mean() + DEVIATIONS * window.std())
        self.losses.append(loss)
