"""When two learning rates, or two gammas, are the same: the one tolerance for grids, curves, imports and refinement."""

from __future__ import annotations

import math
from collections.abc import Iterable

REL_TOLERANCE = 1e-5
"""Two values are the same if they differ by at most this share of the larger: single precision changes a value by up to
6e-8 of it, and a text with six significant digits (``%g``) by 5e-6. Proposed values, which have
``search_spaces.cell.SIGNIFICANT_DIGITS``, are at least 1e-4 apart."""


def same_value(a: float, b: float) -> bool:
    """Whether two learning rates, or two gammas, are the same up to digits lost in a file."""
    return math.isclose(a, b, rel_tol=REL_TOLERANCE)


def match_value(known: Iterable[float], value: float) -> float:
    """The one of ``known`` that is the same as ``value``, the nearest if there are several; NaN if there is none."""
    same = [one for one in known if same_value(one, value)]
    return min(same, key=lambda one: abs(one - value), default=math.nan)


def snap(known: Iterable[float], value: float) -> float:
    """The one of ``known`` that is the same as ``value``, or else ``value``."""
    return value if math.isnan(found := match_value(known, value)) else found


def representatives(values: Iterable[float]) -> dict[float, float]:
    """For each value the one that stands for all that are the same: the one with the fewest digits, such as 0.001 for
    0.0010000000474974513, which is 0.001 in single precision."""
    groups: list[list[float]] = []
    for value in sorted(set(values)):
        if groups and same_value(groups[-1][0], value):
            groups[-1].append(value)
        else:
            groups.append([value])
    return {value: min(group, key=lambda one: (len(repr(one)), one)) for group in groups for value in group}
