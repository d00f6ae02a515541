"""The data behind the figures of curves, as tables with one row per cell or curve."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pandas as pd

from dashboards.views import Line

DECIMALS = 7
"""Decimals of a loss in a figure, and significant digits of other values."""


def loss_facts(lines: Iterable[Line]) -> pd.DataFrame:
    """One row per cell with a result: scale, label, lr, seed, loss, diverged, cell, url, mean, low, high.

    ``loss`` is ``l_init`` if the cell diverged. ``url`` is the address of its MLflow run, if known. ``mean`` averages
    over seeds at this learning rate, NaN if a seed has no result; ``low`` to ``high`` is its 95% interval, NaN for one
    seed.
    """
    rows = [
        {
            "scale": line.curve.scale,
            "label": line.name,
            "lr": point.lr,
            "seed": point.seed,
            "loss": point.loss,
            "diverged": point.diverged,
            "cell": point.cell,
            "url": point.run.get("url"),
            "mean": line.curve.mean[line.curve.lr.index(point.lr)],
            "low": low,
            "high": high,
        }
        for line in lines
        for band in (dict(zip(line.curve.lr, line.curve.band, strict=True)),)
        for point in line.curve.points
        for low, high in (band[point.lr] or (math.nan, math.nan),)
    ]
    columns = ["scale", "label", "lr", "seed", "loss", "diverged", "cell", "url", "mean", "low", "high"]
    return pd.DataFrame(rows, columns=columns).round(dict.fromkeys(("loss", "mean", "low", "high"), DECIMALS))


def lrs_facts(lines: Iterable[Line]) -> pd.DataFrame:
    """One row per curve with an LRS: study, scale, method, label, gamma, LRS, low, high.

    ``low`` to ``high`` is the interval of LRS; both equal LRS if there is no interval.
    """
    rows = [
        {
            "study": line.curve.study,
            "scale": line.curve.scale,
            "method": line.curve.method,
            "label": line.name,
            "gamma": line.curve.gamma,
            "LRS": line.curve.LRS,
            "low": line.curve.interval[0] if line.curve.interval else line.curve.LRS,
            "high": line.curve.interval[1] if line.curve.interval else line.curve.LRS,
        }
        for line in lines
        if line.curve.LRS is not None
    ]
    return pd.DataFrame(rows, columns=["study", "scale", "method", "label", "gamma", "LRS", "low", "high"])


def diagnostic_facts(lines: Iterable[Line], column: str) -> pd.DataFrame:
    """One row per cell with a finite number in ``column``: scale, label, lr, seed, diverged, cell, value."""
    rows = [
        {
            "scale": line.curve.scale,
            "label": line.name,
            "lr": point.lr,
            "seed": point.seed,
            "diverged": point.diverged,
            "cell": point.cell,
            "value": float(f"{value:.{DECIMALS}g}"),
        }
        for line in lines
        for point in line.curve.points
        if math.isfinite(value := point.run.get(column, math.nan))
    ]
    return pd.DataFrame(rows, columns=["scale", "label", "lr", "seed", "diverged", "cell", "value"])
