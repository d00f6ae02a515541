"""Figures of the loss over learning rate and gamma, or a factor, interpolated between the cells that were trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from dashboards.charts import Figure, chart_of, crosses, five_digits, log_axis, spec_of, tooltip
from dashboards.factors import Shared, on_axis, varied
from dashboards.processes import Submit, here
from dashboards.sensitivity import CurveFacts, ended_runs
from dashboards.tables import join_words
from dashboards.views import View
from search_spaces.factors import short_name
from search_spaces.methods import with_factors

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


def surface_points(
    runs: pd.DataFrame, scale: str, attention_norm: str, method: str, factors: Shared = ()
) -> pd.DataFrame:
    """The runs of a method, with refinements and edge searches: lr, gamma, seed, origin, cell, loss, diverged.

    Args:
        runs: the ``ended_runs`` of a table with the columns of ``on_axis``.
    """
    keys = {"scale": scale, "attention_norm": attention_norm, "method": method}
    same = np.logical_and.reduce([runs[column] == value for column, value in keys.items()])
    same &= np.array([shared == factors for shared in runs["curve_factors"]], dtype=bool)
    points: pd.DataFrame = runs[same & (runs["gamma"] > 0)]  # a gamma of zero has no position on a logarithmic axis
    columns = ["lr", "gamma", "seed", "origin", "cell", "loss"]
    return points[columns].assign(diverged=points["state"] == "diverged")


def start_surfaces(
    runs: pd.DataFrame, all_views: Sequence[View], submit: Submit = here
) -> Callable[[], Iterator[Figure]]:
    """Start to interpolate the loss over learning rate and gamma, and over learning rate and each factor with positive
    numbers.

    Each view has one surface per method and combination of the other factors; none for several studies or attention
    norms.

    Returns:
        A function that waits for the figures.
    """
    if runs["study"].nunique() > 1:
        return lambda: iter(())
    runs = on_axis(runs)
    ended = ended_runs(runs)
    started: list[tuple[tuple[View, str, str, pd.DataFrame], Callable[[], Any]]] = []
    for view in all_views:
        curves = [line.curve for line in view.lines]
        if len({curve.attention_norm for curve in curves}) > 1:
            continue
        for y in ("gamma", *_numeric_factors(curves)):
            table = ended if y == "gamma" else ended_runs(_with_factor_as_gamma(runs, y))
            for method, others in dict.fromkeys((curve.method, _without(curve.factors, y)) for curve in curves):
                points = surface_points(table, curves[0].scale, curves[0].attention_norm, method, others)
                if points["gamma"].nunique() < 2 or points["lr"].nunique() < 2:
                    continue
                shown = tuple(pair for pair in others if pair[0] in varied(curve.factors for curve in curves))
                means = points.groupby(["lr", "gamma"], as_index=False)["loss"].mean().to_numpy(dtype=float)
                cells = submit(INTERPOLATION_MODULE, "surface", *means.T)
                started.append(((view, y, with_factors(method, method, dict(shown)), points), cells))
    return lambda: (_figure(*of, surface) for of, cells in started if not (surface := pd.DataFrame(cells())).empty)


def _numeric_factors(curves: Sequence[CurveFacts]) -> list[str]:
    """Factors that all curves have, with two positive numbers or more: those that can be a logarithmic axis."""
    tables: list[dict[str, Any]] = [dict(curve.factors) for curve in curves]
    names = varied(curve.factors for curve in curves)
    values: dict[str, set[Any]] = {name: {table.get(name) for table in tables} for name in names}
    return [
        name
        for name, of in values.items()
        if all(type(value) in (int, float) for value in of) and sum(value > 0 for value in of) > 1
    ]


def _without(factors: Shared, name: str) -> Shared:
    return tuple(pair for pair in factors if pair[0] != name)


def _with_factor_as_gamma(runs: pd.DataFrame, name: str) -> pd.DataFrame:
    """``runs`` of methods without gamma, or at their default, with the values of a factor in the place of gamma."""
    tables = [dict(shared) for shared in runs["curve_factors"]]
    several = runs.groupby("method")["gamma"].transform("nunique") > 1
    return runs.assign(
        gamma=np.where(several, np.nan, [table.get(name, np.nan) for table in tables]),
        curve_factors=pd.Series([_without(shared, name) for shared in runs["curve_factors"]], runs.index, dtype=object),
    )


def _figure(view: View, y_name: str, curve: str, points: pd.DataFrame, cells: pd.DataFrame) -> Figure:
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
    y_title = short_name(y_name).replace("_", " ")
    x, y = log_axis(on_axes, "lr", view.axis_title), log_axis(on_axes, "gamma", y_title, alt.Y)
    present = [origin for origin in SHAPES if (points["origin"] == origin).any()]
    looks = alt.Scale(domain=present, range=[SHAPES[origin][0] for origin in present])
    shape = alt.Shape("origin:N", scale=looks, legend=None)
    details = tooltip("cell:N", "lr:Q", "seed:Q", "origin:N", loss=".4f")
    details.insert(2, alt.Tooltip("gamma:Q", title=y_title))
    base = chart_of("cells").encode(x=x, y=y, tooltip=details)
    layers = [
        chart_of("surface").mark_rect(clip=True, strokeWidth=1)
        # Each cell is outlined in its own color; otherwise the background shows between cells.
        .encode(x=x, x2=alt.X2("lr_to:Q"), y=y, y2=alt.Y2("gamma_to:Q"), color=bands, stroke=bands),
        base.transform_filter("!datum.diverged")
        .mark_point(filled=True, size=45, opacity=1, color="white", stroke="black", strokeWidth=1)
        .encode(shape=shape),
    ]  # fmt: skip
    caption = "Bands show the mean loss over seeds, interpolated linearly between the cells that were trained: "
    caption += f"{join_words([SHAPES[origin][1] for origin in present])}."
    if points["diverged"].any():  # Vega warns about a layer without points
        layers.append(crosses(base, color="black"))
        caption += " Crosses are diverged cells, which count as l_init."
    return Figure(
        name=f"surface-{curve}-{view.name}" if y_name == "gamma" else f"surface-{y_title}-{curve}-{view.name}",
        title=f"Loss over {view.axis_title} and {y_title}, {curve}",
        caption=caption,
        view=view.name,
        section="lrs",
        spec=spec_of(layers, {"surface": cells.apply(_five_digits), "cells": points}),
    )


def _five_digits(column: pd.Series[float]) -> pd.Series[float]:
    """The borders of 48 x 48 cells have 48 values along each axis."""
    return column.map({value: five_digits(value) for value in column.unique()})
