"""Loss over learning rate and strength together: what lies between the cells that were trained.

Linear between the points of a Delaunay triangulation in (log lr, log gamma): it goes through every point, invents
nothing beyond their hull, and takes a grid and scattered refinements alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import altair as alt
import numpy as np
import pandas as pd
from scipy.interpolate import LinearNDInterpolator
from scipy.spatial import QhullError

from dashboards.charts import CROSS, Figure, chart_of, log_axis, spec_of, tooltip
from dashboards.tables import listed
from dashboards.views import View

SIDE = 48
"""Cells of the picture along each axis."""
BORDERS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Nats above the lowest loss at which the bands of a picture meet, its contour lines: close around the best cells, as
equal steps up to ``l_init`` would show those as one."""
SHAPES = {
    "grid": "circles of the grid",
    "refine": "diamonds that Optuna proposed",
    "edge": "triangles from the search for an edge",
}
FEWEST = 2
"""Strengths and learning rates that make a surface, each."""


def tried(runs: pd.DataFrame, scale: str, attention_norm: str, method: str) -> pd.DataFrame:
    """The ended runs of a method, refinements and searches for an edge among them, pruned ones not: lr, gamma, seed,
    origin, cell, diverged, and loss, at most ``l_init`` and that for a diverged run."""
    named = {"scale": scale, "attention_norm": attention_norm, "method": method}
    same = np.logical_and.reduce([runs[column] == value for column, value in named.items()])
    of = runs[same & runs["state"].isin(["finished", "diverged"])].dropna(subset=["gamma", "l_init"])
    diverged = of["state"] == "diverged"
    loss = of["val_loss"].astype(float).where(~diverged, of["l_init"]).clip(upper=of["l_init"])
    columns = ["lr", "gamma", "seed", "origin", "cell"]
    found: pd.DataFrame = of[columns].assign(diverged=diverged, loss=loss)
    return found[found["gamma"] > 0]  # a strength of zero has no place on a logarithmic axis


def surface(points: pd.DataFrame, side: int = SIDE) -> pd.DataFrame:
    """The mean loss over seeds, interpolated on ``side`` x ``side`` cells that are even in log lr and log gamma.

    Args:
        points: columns lr, gamma (both positive) and loss.

    Returns:
        Columns lr, lr_to, gamma, gamma_to (a cell's borders) and loss (in its middle); a cell outside of the points'
        hull has no row. Empty where the points span no area.
    """
    means = points.groupby(["lr", "gamma"], as_index=False)["loss"].mean()
    places = np.log10(means[["lr", "gamma"]].to_numpy(dtype=float))
    borders = [np.linspace(low, high, side + 1) for low, high in zip(places.min(0), places.max(0), strict=True)]
    middle = np.stack(np.meshgrid(*((b[1:] + b[:-1]) / 2 for b in borders), indexing="ij"), axis=-1)
    try:
        loss = LinearNDInterpolator(places, means["loss"].to_numpy(dtype=float), rescale=True)(middle)
    except QhullError:  # fewer than three points, or all on a line
        return pd.DataFrame(columns=["lr", "lr_to", "gamma", "gamma_to", "loss"])
    low = np.stack(np.meshgrid(*(10 ** b[:-1] for b in borders), indexing="ij"), axis=-1)
    high = np.stack(np.meshgrid(*(10 ** b[1:] for b in borders), indexing="ij"), axis=-1)
    columns = {"lr": low[..., 0], "lr_to": high[..., 0], "gamma": low[..., 1], "gamma_to": high[..., 1], "loss": loss}
    return pd.DataFrame({name: values.ravel() for name, values in columns.items()}).dropna()


def surfaces(runs: pd.DataFrame, seen: Sequence[View]) -> Iterator[Figure]:
    """One picture a view and method that was tried at two strengths or more; of one study and attention norm alone."""
    if runs["study"].nunique() > 1:
        return
    for view in seen:
        curves = [line.curve for line in view.lines]
        if len({curve.attention_norm for curve in curves}) > 1:
            continue
        for method in dict.fromkeys(curve.method for curve in curves if curve.gamma is not None):
            points = tried(runs, curves[0].scale, curves[0].attention_norm, method)
            if points["gamma"].nunique() < FEWEST or points["lr"].nunique() < FEWEST:
                continue
            if not (found := surface(points)).empty:
                yield _figure(view, method, points, found)


def _figure(view: View, method: str, points: pd.DataFrame, found: pd.DataFrame) -> Figure:
    lowest = float(points.groupby(["lr", "gamma"])["loss"].mean().min())
    found = found.assign(above=found["loss"] - lowest)
    highest = found["above"].max()
    bands = alt.Color(
        "above:Q",
        title=f"nats above the lowest mean, {lowest:.3f}",
        scale=alt.Scale(
            type="threshold",
            domain=[border for border in BORDERS if highest / 500 < border < highest] or [highest],
            scheme="viridis",
            reverse=True,
        ),
        legend=alt.Legend(orient="bottom", columns=3, titleFontWeight="normal", titleLimit=0),
    )
    on_axes = points[points["origin"].fillna("grid") == "grid"]  # a tick at each refinement would be a smear
    on_axes = points if on_axes.empty else on_axes
    x, y = log_axis(on_axes, "lr", "learning rate"), log_axis(on_axes, "gamma", "strength", alt.Y)
    shapes = {"grid": "circle", "refine": "diamond", "edge": "triangle-up"}
    present = [origin for origin in shapes if (points["origin"].fillna("grid") == origin).any()]
    looks = alt.Scale(domain=present, range=[shapes[origin] for origin in present])
    shape = alt.Shape("origin:N", scale=looks, legend=None)
    shown = tooltip("cell:N", "lr:Q", "gamma:Q", "seed:Q", "origin:N", loss=".4f")
    base = chart_of("cells").encode(x=x, y=y, tooltip=shown)
    layers = [
        chart_of("surface").mark_rect(clip=True, strokeWidth=1)
        # Outlined in their own colour: else the background shines through between them.
        .encode(x=x, x2=alt.X2("lr_to:Q"), y=y, y2=alt.Y2("gamma_to:Q"), color=bands, stroke=bands),
        base.transform_filter("!datum.diverged")
        .mark_point(filled=True, size=45, opacity=1, color="white", stroke="black", strokeWidth=1)
        .encode(shape=shape),
    ]  # fmt: skip
    if points["diverged"].any():  # Vega warns of a layer without a point
        diverged = base.transform_filter("datum.diverged")
        layers.append(diverged.mark_point(shape=CROSS, size=60, strokeWidth=2.5, opacity=1, color="black"))
    return Figure(
        name=f"surface-{method}-{view.name}",
        title=f"Loss over learning rate and strength, {method}",
        caption="Bands of the mean loss over seeds, linear between the cells that were trained: "
        f"{listed([SHAPES[origin] for origin in present])}. A cross is a diverged cell, at l_init.",
        view=view.name,
        section="lrs",
        spec=spec_of(
            layers, {"surface": found.map(_rounded), "cells": points.assign(origin=points["origin"].fillna("grid"))}
        ),
    )


def _rounded(value: float) -> float:
    """To digits beyond what a picture shows, as a page holds 2,304 of them each."""
    return float(f"{value:.5g}")
