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
        if len(self.losses) >= JUDGED_FROM:
            window = np.fromiter(self.losses, dtype=np.float64)
            self.count += bool(loss > window.mean() + DEVIATIONS * window.std())
        self.losses.append(loss)
