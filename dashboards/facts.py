"""The data behind the figures of curves, as tables with one row per cell or curve."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pandas as pd

from dashboards.factors import varied
from dashboards.sensitivity import Point
from dashboards.views import Line
from search_spaces.factors import to_text

DECIMALS = 7
"""Decimals of a loss in a figure, and significant digits of other values."""


def loss_facts(lines: Iterable[Line]) -> pd.DataFrame:
    """One row per cell with a result: scale, label, lr, seed, loss, diverged, cell, url, mean, low, high.

    ``loss`` is ``l_init`` if the cell diverged. ``url`` is the address of its MLflow run, if known. ``mean`` averages
    over seeds at this learning rate, NaN if a seed has no result; ``low`` to ``high`` is its 95% interval, NaN for one
    seed.
    """
    rows = []
    for line in lines:
        curve = line.curve
        at_lr = dict(zip(curve.lr, zip(curve.mean, curve.band, strict=True), strict=True))
        for point in curve.points:
            mean, band = at_lr[point.lr]
            low, high = band or (math.nan, math.nan)
            values = {"loss": point.loss, "url": point.run.get("url"), "mean": mean, "low": low, "high": high}
            rows.append(_cell(line, point) | values)
    columns = ["scale", "label", "lr", "seed", "loss", "diverged", "cell", "url", "mean", "low", "high"]
    return pd.DataFrame(rows, columns=columns).round(dict.fromkeys(("loss", "mean", "low", "high"), DECIMALS))


def _cell(line: Line, point: Point) -> dict[str, Any]:
    columns = {name: getattr(point, name) for name in ("lr", "seed", "diverged", "cell")}
    return {"scale": line.curve.scale, "label": line.name, **columns}


def lrs_facts(lines: Iterable[Line]) -> pd.DataFrame:
    """One row per curve with an LRS: study, scale, method, label, gamma, factors, LRS, low, high.

    ``factors`` is the text of those that differ between the lines. ``low`` to ``high`` is the interval of LRS, NaN for
    one seed.
    """
    lines = list(lines)
    shown = varied(line.curve.factors for line in lines)
    rows = [
        {
            **{name: getattr(line.curve, name) for name in ("study", "scale", "method", "gamma", "LRS")},
            "label": line.name,
            "factors": to_text({name: value for name, value in line.curve.factors if name in shown}),
            **dict(zip(("low", "high"), line.curve.interval or (math.nan, math.nan), strict=True)),
        }
        for line in lines
        if line.curve.LRS is not None
    ]
    return pd.DataFrame(rows, columns=["study", "scale", "method", "label", "gamma", "factors", "LRS", "low", "high"])


def diagnostic_facts(lines: Iterable[Line], column: str) -> pd.DataFrame:
    """One row per cell with a finite number in ``column``: scale, label, lr, seed, diverged, cell, value."""
    rows = [
        _cell(line, point) | {"value": float(f"{value:.{DECIMALS}g}")}
        for line in lines
        for point in line.curve.points
        if math.isfinite(value := point.run.get(column, math.nan))
    ]
    return pd.DataFrame(rows, columns=["scale", "label", "lr", "seed", "diverged", "cell", "value"])
