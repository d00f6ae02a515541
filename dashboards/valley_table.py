"""How wrong the learning rate may be, as columns of the table of curves and as rows of the page."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from dashboards.drift import optimum
from dashboards.sensitivity import CurveFacts
from dashboards.valley import TOLERANCES, Band, Valley, headroom, valley
from search_spaces.factors import short_name

OPTIMUM: tuple[str, ...] = ("optimum_lr", "optimum_low", "optimum_high")
_PREFIXES = {tolerance: f"within_{tolerance:g}" for tolerance in TOLERANCES}
ENDS: tuple[str, ...] = tuple(f"{prefix}_{end}" for prefix in _PREFIXES.values() for end in ("low", "high"))
OPEN: tuple[str, ...] = tuple(f"{prefix}_open" for prefix in _PREFIXES.values())
WIDTHS: tuple[str, ...] = tuple(
    f"{prefix}_width{end}" for prefix in _PREFIXES.values() for end in ("", "_low", "_high")
)
COLUMNS: tuple[str, ...] = (
    *OPTIMUM,
    *(name for prefix in _PREFIXES.values() for name in (*ENDS, *OPEN, *WIDTHS) if name.startswith(f"{prefix}_")),
    "headroom",
)
"""``optimum`` with its interval; of each ``Valley`` the ends, which of them are open (``low``, ``high``, ``both``, or
empty), and the width with its interval, whose upper end is missing if it is infinite; and ``headroom``."""
NOTHING = "–"
AT_LEAST = "≥ "


def valley_columns(curve: CurveFacts) -> dict[str, Any]:
    """The values of ``COLUMNS``; None if unknown."""
    columns = dict.fromkeys(COLUMNS) | dict.fromkeys(OPEN, "")
    if best := optimum(curve):
        columns |= dict(zip(OPTIMUM, (best.lr, *(best.interval or ())), strict=False))
    for tolerance, prefix in _PREFIXES.items():
        if found := valley(curve, tolerance):
            low, high = found.interval or (None, None)
            columns |= {f"{prefix}_low": found.band.low, f"{prefix}_high": found.band.high}
            columns |= {f"{prefix}_open": found.band.open_ends, f"{prefix}_width": found.band.width}
            columns |= {f"{prefix}_width_low": low, f"{prefix}_width_high": None if high == math.inf else high}
    if room := headroom(curve):
        columns["headroom"] = room.factor
    return columns


def valley_texts(curve: CurveFacts) -> dict[str, str]:
    """A curve's row in the page's table, by heading. Widths and intervals are on a second line."""
    best, room = optimum(curve), headroom(curve)
    axis = short_name(curve.lr_factor).replace("_", " ")
    texts = {f"Best {axis}": NOTHING if curve.best_lr is None else f"{curve.best_lr:g}", "Interpolated": NOTHING}
    if best is not None:
        interval = f"\n{format_interval(best.interval, format_lr)}" if best.interval else ""
        texts["Interpolated"] = format_lr(best.lr) + interval
    for tolerance in TOLERANCES:
        found = valley(curve, tolerance)
        texts[f"Within {tolerance:g} nats"] = NOTHING if found is None else _format_valley(found)
    texts["Headroom"] = NOTHING if room is None else f"{AT_LEAST * room.is_lower_bound}{format_ratio(room.factor)}×"
    return texts


def _format_valley(found: Valley) -> str:
    interval = f" ({format_interval(found.interval, format_ratio)})" if found.interval else ""
    width = f"{AT_LEAST * found.band.is_open}{format_ratio(found.band.width)}×"
    return f"{format_band(found.band)}\n{width}{interval}"


def format_band(band: Band) -> str:
    """E.g. ``0.0029 to ≥ 0.3``, where the grid ends at 0.3."""
    low, high = ("≤ " * band.open_low + format_lr(band.low)), (AT_LEAST * band.open_high + format_lr(band.high))
    return f"{low} to {high}"


def format_lr(lr: float) -> str:
    return f"{lr:.2g}"


def format_ratio(ratio: float) -> str:
    """A ratio of learning rates, with two significant digits below 100."""
    if ratio == math.inf:
        return "∞"
    return f"{ratio:.2g}" if ratio < 99.5 else f"{ratio:,.0f}"


def format_interval(interval: tuple[float, float], form: Callable[[float], str]) -> str:
    return f"{form(interval[0])} to {form(interval[1])}"
