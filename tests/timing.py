"""Time limits for measurements on a machine that is shared with other work."""

from __future__ import annotations

import os


def within(seconds: float) -> float:
    """Returns ``seconds``, or proportionally more if more processes than cores want to run."""
    return seconds * max(1.0, os.getloadavg()[0] / len(os.sched_getaffinity(0)))
