"""How long something may take that is measured by the clock of a machine which others use too."""

from __future__ import annotations

import os


def within(seconds: float) -> float:
    """``seconds`` where every process that wants a core has one; more by as much as more of them want one."""
    return seconds * max(1.0, os.getloadavg()[0] / len(os.sched_getaffinity(0)))
