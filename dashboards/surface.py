"""Figures of the loss over learning rate and gamma, interpolated between the cells that were trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import altair as alt
import numpy as np
import pandas as pd

from dashboards.charts import Figure, chart_of, crosses, five_digits, log_axis, spec_of, tooltip
from dashboards.processes import Submit, here
from dashboards.sensitivity import ended_runs
from dashboards.tables import join_words
from dashboards.views import View

INTERPOLATION_MODULE = "dashboards.interpolation"
"""Interpolates the surfaces. It imports ``scipy.interpolate``, which takes a third of a second."""
CONTOURS_NATS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Contour lines, in nats above the lowest loss. They are dense near the best cells, which equal steps up to ``l_init``
would merge."""
SHAPES = {
    "grid": ("circle", "circles are from the grid"),
    "refine": ("diamond", "diamonds were proposed by Optuna"),
    "edge": ("triangle-up", "triangles are from the edge search"),
}
"""By origin of a run: its mark, and the sentence about it."""


def surface_points(runs: pd.DataFrame, scale: str, attention_norm: str, method: str) -> pd.DataFrame:
    """The ended runs of a method, with refinements and edge searches: lr, gamma, seed, origin, cell, loss, diverged."""
    keys = {"scale": scale, "attention_norm": attention_norm, "method": method}
    same = np.logical_and.reduce([runs[column] == value for column, value in keys.items()])
    points = ended_runs(runs[same & (runs["gamma"] > 0)])  # a gamma of zero has no position on a logarithmic axis
    columns = ["lr", "gamma", "seed", "origin", "cell", "loss"]
    return points[columns].assign(diverged=points["state"] == "diverged")


def surfaces(runs: pd.DataFrame, all_views: Sequence[View]) -> Iterator[Figure]:
    """The figures of ``start_surfaces``."""
    return start_surfaces(runs, all_views)()


def start_surfaces(
    runs: pd.DataFrame, all_views: Sequence[View], submit: Submit = here
) -> Callable[[], Iterator[Figure]]:
    """Start to interpolate one surface per view and method with at least two gammas; none for several studies or
    attention norms.

    Returns:
        A function that waits for the figures.
    """
    if runs["study"].nunique() > 1:
        return lambda: iter(())
    started: list[tuple[View, str, pd.DataFrame, Callable[[], pd.DataFrame]]] = []
    for view in all_views:
        curves = [line.curve for line in view.lines]
        if len({curve.attention_norm for curve in curves}) > 1:
            continue
        for method in dict.fromkeys(curve.method for curve in curves if curve.gamma is not None):
            points = surface_points(runs, curves[0].scale, curves[0].attention_norm, method)
            if points["gamma"].nunique() < 2 or points["lr"].nunique() < 2:
                continue
            cells = submit(INTERPOLATION_MODULE, "surface", points[["lr", "gamma", "loss"]])
            started.append((view, method, points, cells))
    return lambda: (
        _figure(view, method, points, surface)
        for view, method, points, cells in started
        if not (surface := cells()).empty
    )


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
