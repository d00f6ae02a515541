"""The loss surface over learning rate and gamma, interpolated between the cells that were trained.

The interpolation is linear on a Delaunay triangulation in (log lr, log gamma): it passes through every point, does not
extrapolate beyond their hull, and works for a grid and for scattered refinements.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import altair as alt
import numpy as np
import pandas as pd
from scipy.interpolate import LinearNDInterpolator
from scipy.spatial import QhullError

from dashboards.charts import Figure, chart_of, crosses, five_digits, log_axis, spec_of, tooltip
from dashboards.sensitivity import ended_runs
from dashboards.tables import join_words
from dashboards.views import View

CELLS_PER_AXIS = 48
"""Cells of the interpolated surface along each axis."""
CONTOURS_NATS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Contour lines, in nats above the lowest loss. They are dense near the best cells, which equal steps up to ``l_init``
would merge."""
SHAPES = {
    "grid": ("circle", "circles are from the grid"),
    "refine": ("diamond", "diamonds were proposed by Optuna"),
    "edge": ("triangle-up", "triangles are from the edge search"),
}
"""By origin of a run: its mark, and the sentence about it."""
MIN_VALUES = 2
"""A surface needs at least this many gammas and this many learning rates."""


def surface_points(runs: pd.DataFrame, scale: str, attention_norm: str, method: str) -> pd.DataFrame:
    """The ended runs of a method, with refinements and edge searches: lr, gamma, seed, origin, cell, loss, diverged."""
    keys = {"scale": scale, "attention_norm": attention_norm, "method": method}
    same = np.logical_and.reduce([runs[column] == value for column, value in keys.items()])
    points = ended_runs(runs[same & (runs["gamma"] > 0)])  # a gamma of zero has no position on a logarithmic axis
    columns = ["lr", "gamma", "seed", "origin", "cell", "loss"]
    return points[columns].assign(diverged=points["state"] == "diverged")


def surface(points: pd.DataFrame, side: int = CELLS_PER_AXIS) -> pd.DataFrame:
    """The mean loss over seeds, interpolated on ``side`` x ``side`` cells spaced evenly in log lr and log gamma.

    Args:
        points: columns lr, gamma (both positive) and loss.

    Returns:
        Columns lr, lr_to, gamma, gamma_to (the borders of a cell) and loss (at its center). A cell outside the hull of
        the points has no row; the table is empty if the points span no area.
    """
    means = points.groupby(["lr", "gamma"], as_index=False)["loss"].mean()
    places = np.log10(means[["lr", "gamma"]].to_numpy(dtype=float))
    borders = [np.linspace(low, high, side + 1) for low, high in zip(places.min(0), places.max(0), strict=True)]
    middle = np.stack(np.meshgrid(*((b[1:] + b[:-1]) / 2 for b in borders), indexing="ij"), axis=-1)
    try:
        loss = LinearNDInterpolator(places, means["loss"].to_numpy(dtype=float), rescale=True)(middle)
    except QhullError:  # fewer than three points, or all on one line
        return pd.DataFrame(columns=["lr", "lr_to", "gamma", "gamma_to", "loss"])
    low = np.stack(np.meshgrid(*(10 ** b[:-1] for b in borders), indexing="ij"), axis=-1)
    high = np.stack(np.meshgrid(*(10 ** b[1:] for b in borders), indexing="ij"), axis=-1)
    columns = {"lr": low[..., 0], "lr_to": high[..., 0], "gamma": low[..., 1], "gamma_to": high[..., 1], "loss": loss}
    return pd.DataFrame({name: values.ravel() for name, values in columns.items()}).dropna()


def surfaces(runs: pd.DataFrame, all_views: Sequence[View]) -> Iterator[Figure]:
    """One figure per view and method with at least two gammas; none for several studies or attention norms."""
    if runs["study"].nunique() > 1:
        return
    for view in all_views:
        curves = [line.curve for line in view.lines]
        if len({curve.attention_norm for curve in curves}) > 1:
            continue
        for method in dict.fromkeys(curve.method for curve in curves if curve.gamma is not None):
            points = surface_points(runs, curves[0].scale, curves[0].attention_norm, method)
            if points["gamma"].nunique() < MIN_VALUES or points["lr"].nunique() < MIN_VALUES:
                continue
            if not (cells := surface(points)).empty:
                yield _figure(view, method, points, cells)


def _figure(view: View, method: str, points: pd.DataFrame, cells: pd.DataFrame) -> Figure:
    points = points.assign(origin=points["origin"].fillna("grid"))
    lowest = float(points.groupby(["lr", "gamma"])["loss"].mean().min())
    cells = cells.assign(above=cells["loss"] - lowest)
    highest = cells["above"].max()
    bands = alt.Color(
        "above:Q",
        title=f"nats above the lowest mean, {lowest:.3f}",
        scale=alt.Scale(
            type="threshold",
            domain=[border for border in CONTOURS_NATS if highest / 500 < border < highest] or [highest],
            scheme="viridis",
            reverse=True,
        ),
        legend=alt.Legend(orient="bottom", columns=3, titleFontWeight="normal", titleLimit=0),
    )
    on_axes = points[points["origin"] == "grid"]  # ticks at the refinements would overlap
    on_axes = points if on_axes.empty else on_axes
    x, y = log_axis(on_axes, "lr", "learning rate"), log_axis(on_axes, "gamma", "gamma", alt.Y)
    present = [origin for origin in SHAPES if (points["origin"] == origin).any()]
    looks = alt.Scale(domain=present, range=[SHAPES[origin][0] for origin in present])
    shape = alt.Shape("origin:N", scale=looks, legend=None)
    details = tooltip("cell:N", "lr:Q", "gamma:Q", "seed:Q", "origin:N", loss=".4f")
    base = chart_of("cells").encode(x=x, y=y, tooltip=details)
    layers = [
        chart_of("surface").mark_rect(clip=True, strokeWidth=1)
        # Each cell is outlined in its own color; otherwise the background shows between cells.
        .encode(x=x, x2=alt.X2("lr_to:Q"), y=y, y2=alt.Y2("gamma_to:Q"), color=bands, stroke=bands),
        base.transform_filter("!datum.diverged")
        .mark_point(filled=True, size=45, opacity=1, color="white", stroke="black", strokeWidth=1)
        .encode(shape=shape),
    ]  # fmt: skip
    if points["diverged"].any():  # Vega warns about a layer without points
        layers.append(crosses(base, color="black"))
    return Figure(
        name=f"surface-{method}-{view.name}",
        title=f"Loss over learning rate and gamma, {method}",
        caption="Bands show the mean loss over seeds, interpolated linearly between the cells that were trained: "
        f"{join_words([SHAPES[origin][1] for origin in present])}. Crosses are diverged cells, which count as l_init.",
        view=view.name,
        section="lrs",
        spec=spec_of(layers, {"surface": cells.map(five_digits), "cells": points}),
    )
