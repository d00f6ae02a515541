"""The importance of each hyperparameter for the final loss, and a parallel-coordinates plot of every cell."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from dashboards.charts import Figure, categories, chart_of, spec_of, tooltip
from dashboards.factors import as_hyperparameters
from dashboards.processes import Submit, here
from dashboards.sensitivity import ended_runs, studies
from dashboards.tables import format_value
from dashboards.views import GREY, View

COLUMNS = ("study", "scale", "of", "hyperparameter", "evaluator", "importance", "low", "high", "cells")
"""``importance`` is the mean over repetitions and ``low`` to ``high`` their range, as shares of 1. ``cells`` counts the
runs that ended."""
MIN_CELLS, MAX_CELLS = 12, 150
"""No importance is estimated from fewer cells; if there are more than the maximum, a random sample is used."""
REPETITIONS = 5
SAMPLE_SHARE = 0.8
"""Share of the cells drawn for each repetition."""
ALL = "all methods"
HYPERPARAMETERS = ("lr", "gamma", "method", "attention_norm", "seed")
LEFT, RIGHT = {"align": "right", "dx": -6}, {"align": "left", "dx": 6}
ABOVE, BELOW = {"align": "center", "dy": -9}, {"align": "center", "dy": 10}
"""Offsets that keep the text of an axis clear of the lines: left of the first axis, right of the last."""
LOW_TO_HIGH = ["#0072b2", "#8a8a8a", "#d55e00"]
"""Colors of losses, each visible on white and on black."""
MAX_LINES = 300
"""The parallel axes show at most this many cells; more would blur."""


EVALUATORS_MODULE = "dashboards.evaluators"
"""Computes the shares. It imports Optuna and scikit-learn, which takes a second."""


def start_importance(runs: pd.DataFrame, submit: Submit = here) -> Callable[[], pd.DataFrame]:
    """Start to compute the importance of each hyperparameter, for each study and scale: over all methods, and for each
    method with several gammas.

    Includes refinements. Hyperparameters with a single value are left out, and so are groups with fewer than two
    hyperparameters or ``MIN_CELLS`` cells.

    Returns:
        A function that waits for the table, which has ``COLUMNS``.
    """
    started: list[tuple[dict[str, object], Callable[[], Any]]] = []
    runs, factors = as_hyperparameters(runs)
    ended = ended_runs(runs)
    for (study, scale), cells in ended.assign(study=studies(ended)).groupby(["study", "scale"], sort=False):
        groups = [(ALL, cells.drop(columns="gamma"))]
        groups += [(str(method), of) for method, of in cells.groupby("method", sort=False) if of["gamma"].nunique() > 1]
        for name, of in groups:
            varied = [key for key in (*HYPERPARAMETERS, *factors) if key in of and of[key].nunique() > 1]
            if len(varied) < 2 or len(of) < MIN_CELLS or np.ptp(of["loss"]) == 0:
                continue
            options = {"max_cells": MAX_CELLS, "repetitions": REPETITIONS, "sample_share": SAMPLE_SHARE}
            columns = {key: of[key].to_numpy() for key in varied}
            shares = submit(EVALUATORS_MODULE, "importance_shares", columns, of["loss"].to_numpy(), **options)
            started.append(({"study": study, "scale": scale, "of": name, "cells": len(of)}, shares))
    return lambda: _table(started)


def _table(started: Sequence[tuple[dict[str, object], Callable[[], Any]]]) -> pd.DataFrame:
    rows = [
        group
        | {"hyperparameter": key, "evaluator": evaluator}
        | {"importance": np.mean(values), "low": min(values), "high": max(values)}
        for group, shares in started
        for evaluator, of_evaluator in shares().items()
        for key, values in of_evaluator.items()
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def importance_figures(table: pd.DataFrame, all_views: Sequence[View]) -> Iterator[Figure]:
    """One figure per view and group; none if the table has several studies."""
    if table["study"].nunique() > 1:
        return
    for view in all_views:
        for name, shares in table[table["scale"] == view.lines[0].curve.scale].groupby("of", sort=False):
            cells, evaluators = shares["cells"].iloc[0], list(shares["evaluator"].unique())
            names = alt.Scale(domain=list(shares["hyperparameter"].unique()))
            colors = dict(zip(evaluators, ("#0072b2", "#e69f00"), strict=True))
            base = chart_of("shares").encode(
                y=alt.Y("hyperparameter:N", title=None, scale=names),
                yOffset=alt.YOffset("evaluator:N", scale=alt.Scale(domain=evaluators)),
                color=categories(alt.Color, "evaluator", colors),
            )
            value, low = (alt.X(f"{column}:Q", title="importance") for column in ("importance", "low"))
            layers = [
                base.mark_bar().encode(x=value, tooltip=tooltip(importance=".3f", low=".3f", high=".3f")),
                base.mark_rule().encode(x=low, x2=alt.X2("high:Q"), color=alt.ColorValue(GREY)),
            ]
            yield Figure(
                name=f"importance-{name}-{view.name}".replace(" ", "-"),
                title=f"Importance of each hyperparameter, {name}",
                caption=f"Share of the variation in final loss explained by each hyperparameter, over {cells} cells "
                f"including refinements. Lines show the range of {REPETITIONS} repetitions, each on {SAMPLE_SHARE:.0%} "
                f"of {min(MAX_CELLS, cells)} cells.",
                view=view.name,
                section="importance",
                spec=spec_of(
                    layers,
                    {"shares": shares.drop(columns=["study", "scale", "of"])},
                    height=60 + 45 * shares["hyperparameter"].nunique(),
                ),
            )


def parallel_figures(runs: pd.DataFrame, all_views: Sequence[View]) -> Iterator[Figure]:
    """One figure per view with a line for each cell, from its hyperparameters to its loss; none for several studies."""
    runs, factors = as_hyperparameters(runs)
    cells = ended_runs(runs)
    if studies(cells).nunique() > 1:
        return
    for view in all_views:
        ended = cells[cells["scale"] == view.lines[0].curve.scale]
        axes = [*("method", "attention_norm"), *factors, *("gamma", "lr", "seed")]
        axes = [key for key in axes if ended[key].nunique() > 1]
        if len(ended) < MIN_CELLS or len(axes) < 2 or np.ptp(ended["loss"]) == 0:
            continue
        sample = ended if len(ended) <= MAX_LINES else ended.sample(MAX_LINES, random_state=0).sort_index()
        yield _parallel_figure(view, sample, [*axes, "loss"], len(ended))


def _parallel_figure(view: View, cells: pd.DataFrame, axes: Sequence[str], ended: int) -> Figure:
    parts, ticks = [], []
    for axis in axes:
        places, texts = _axis_positions(cells[axis], axis)
        parts.append(pd.DataFrame({"cell": cells["cell"], "axis": axis, "place": places, "loss": cells["loss"]}))
        ticks += [(axis, place, text) for place, text in texts.items()]
    lines = pd.concat(parts).dropna(subset="place").assign(line=lambda table: table.index)
    x = alt.X("axis:N", title=None, scale=alt.Scale(domain=list(axes), padding=0.7))
    x = x.axis(labelAngle=0, domain=False, ticks=False)
    y = alt.Y("place:Q", title=None, axis=None, scale=alt.Scale(domain=[-0.1, 1.1]))
    color = alt.Color("loss:Q", title="loss (nats)", scale=alt.Scale(range=LOW_TO_HIGH))
    color = color.legend(orient="bottom", titleFontWeight="normal")
    details = tooltip("cell:N", loss=".4f")
    by_line = chart_of("lines").encode(x=x, y=y, detail=alt.Detail("line:N"), color=color, tooltip=details)
    line_layer = by_line.mark_line(opacity=0.5, strokeWidth=1.2)
    styles: dict[tuple[tuple[str, Any], ...], list[dict[str, object]]] = {}
    for axis, place, text in ticks:
        style = {axes[0]: LEFT, axes[-1]: RIGHT}.get(axis, ABOVE if place == 1 else BELOW if place == 0 else RIGHT)
        styles.setdefault(tuple(style.items()), []).append({"axis": axis, "place": place, "text": text})
    tick_tables = {f"labels{i}": pd.DataFrame(rows) for i, rows in enumerate(styles.values())}
    labels = [
        chart_of(name).encode(x=x, y=y, text=alt.Text("text:N")).mark_text(fontSize=10, color=GREY, **dict(style))
        for name, style in zip(tick_tables, styles, strict=True)
    ]
    count = f"a random sample of {len(cells)} of {ended} cells" if len(cells) < ended else f"{ended} cells"
    return Figure(
        name=f"parallel-{view.name}",
        title="Every cell at once",
        caption=f"One line per cell: {count}. The line of a cell without gamma skips that axis; a diverged cell "
        "ends at l_init.",
        view=view.name,
        section="importance",
        spec=spec_of([line_layer, *labels], {"lines": lines, **tick_tables}),
    )


def _axis_positions(values: pd.Series, axis: str) -> tuple[pd.Series, dict[float, str]]:
    """Positions from 0 to 1 along an axis, and the text of its ticks by position."""
    if axis == "seed" or not is_numeric_dtype(values):
        names = list(dict.fromkeys(values))
        names = sorted(names) if axis == "seed" else names
        places = {name: i / (len(names) - 1) for i, name in enumerate(names)}
        return values.map(places).astype(float), {place: str(name) for name, place in places.items()}
    numbers = values.astype(float)
    # A gamma of zero has no position on a logarithmic axis.
    positions = numbers if axis == "loss" else numbers.where(numbers > 0).map(np.log10)
    low, high = positions.min(), positions.max()
    form = "best_loss" if axis == "loss" else "best_lr"
    return (positions - low) / (high - low), {
        0.0: format_value(numbers[positions.notna()].min(), form),
        1.0: format_value(numbers.max(), form),
    }
