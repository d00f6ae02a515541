"""How much of the final loss each hyperparameter decides, by Optuna's evaluators, and every cell on parallel axes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from dashboards.charts import Figure, chart_of, spec_of, tooltip
from dashboards.sensitivity import studies
from dashboards.tables import shown
from dashboards.views import GREY, View

COLUMNS = ("study", "scale", "of", "hyperparameter", "evaluator", "importance", "low", "high", "cells")
"""``importance`` is the mean over repetitions, ``low`` to ``high`` their span; shares of 1. ``cells`` are those that
counted."""
FEWEST, MOST = 12, 150
"""Cells that it takes, and that are looked at, drawn at random where there are more."""
REPETITIONS = 5
SHARE = 0.8
"""Of the cells, drawn for each repetition."""
ALL = "all methods"
HYPERPARAMETERS = ("lr", "gamma", "method", "attention_norm", "seed")
LEFT, RIGHT = {"align": "right", "dx": -6}, {"align": "left", "dx": 6}
ABOVE, BELOW = {"align": "center", "dy": -9}, {"align": "center", "dy": 10}
"""Where the text of an axis stands, clear of the lines: left of the first axis, right of the last one."""
LOW_TO_HIGH = ["#0072b2", "#8a8a8a", "#d55e00"]
"""Colours of losses: each is seen on white and on black."""
LINES = 300
"""Cells on parallel axes; more are a smear."""


def counted(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs that ended, refinements among them, pruned ones not, with ``loss``: at most ``l_init``, and that if
    diverged."""
    ended = runs[runs["state"].isin(["finished", "diverged"])].dropna(subset=["l_init"])
    loss = ended["val_loss"].where(ended["state"] == "finished", ended["l_init"]).clip(upper=ended["l_init"])
    return ended.assign(loss=loss.astype(float), study=studies(ended))


def importance(runs: pd.DataFrame) -> pd.DataFrame:
    """Columns ``COLUMNS``: for each study and scale over all methods, and for each method of several strengths.

    Hyperparameters that take one value are left out, and so is what has fewer than two or ``FEWEST`` cells.
    """
    rows: list[dict[str, object]] = []
    for (study, scale), cells in counted(runs).groupby(["study", "scale"], sort=False):
        groups = [(ALL, cells.drop(columns="gamma"))]
        groups += [(str(method), of) for method, of in cells.groupby("method", sort=False) if of["gamma"].nunique() > 1]
        for name, of in groups:
            varied = [key for key in HYPERPARAMETERS if key in of and of[key].nunique() > 1]
            if len(varied) < 2 or len(of) < FEWEST or np.ptp(of["loss"]) == 0:
                continue
            from dashboards.evaluators import repeated  # Optuna and scikit-learn, a second: only where there is enough

            for evaluator, shares in repeated(of, varied).items():
                rows += [
                    {"study": study, "scale": scale, "of": name, "hyperparameter": key, "evaluator": evaluator}
                    | {"importance": np.mean(values), "low": min(values), "high": max(values), "cells": len(of)}
                    for key, values in shares.items()
                ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def importance_figures(table: pd.DataFrame, seen: Sequence[View]) -> Iterator[Figure]:
    """One picture a view and group; none where the table holds several studies."""
    if table["study"].nunique() > 1:
        return
    for view in seen:
        for name, shares in table[table["scale"] == view.lines[0].curve.scale].groupby("of", sort=False):
            cells, evaluators = shares["cells"].iloc[0], list(shares["evaluator"].unique())
            base = chart_of("shares").encode(
                y=alt.Y(
                    "hyperparameter:N", title=None, scale=alt.Scale(domain=list(shares["hyperparameter"].unique()))
                ),
                yOffset=alt.YOffset("evaluator:N", scale=alt.Scale(domain=evaluators)),
                color=alt.Color(
                    "evaluator:N",
                    title=None,
                    scale=alt.Scale(domain=evaluators, range=["#0072b2", "#e69f00"]),
                ),
            )
            yield Figure(
                name=f"importance-{name}-{view.name}".replace(" ", "-"),
                title=f"Importance of each hyperparameter, {name}",
                caption=f"Share of the final loss that it decides, over {cells} cells, refinements "
                f"among them. Lines span {REPETITIONS} repetitions on {SHARE:.0%} of {min(MOST, cells)}.",
                view=view.name,
                section="importance",
                spec=spec_of(
                    [
                        base.mark_bar().encode(
                            x=alt.X("importance:Q", title="importance"),
                            tooltip=tooltip(importance=".3f", low=".3f", high=".3f"),
                        ),
                        base.mark_rule().encode(
                            x=alt.X("low:Q", title="importance"), x2=alt.X2("high:Q"), color=alt.value(GREY)
                        ),
                    ],
                    {"shares": shares.drop(columns=["study", "scale", "of"])},
                    height=60 + 45 * shares["hyperparameter"].nunique(),
                ),
            )


def parallel(runs: pd.DataFrame, seen: Sequence[View]) -> Iterator[Figure]:
    """Every cell of a view's scale as a line over its hyperparameters to its loss; none of several studies."""
    cells = counted(runs)
    if cells["study"].nunique() > 1:
        return
    for view in seen:
        ended = cells[cells["scale"] == view.lines[0].curve.scale]
        axes = [key for key in ("method", "attention_norm", "gamma", "lr", "seed") if ended[key].nunique() > 1]
        if len(ended) < FEWEST or len(axes) < 2 or np.ptp(ended["loss"]) == 0:
            continue
        drawn = ended if len(ended) <= LINES else ended.sample(LINES, random_state=0).sort_index()
        yield _parallel(view, drawn, [*axes, "loss"], len(ended))


def _parallel(view: View, cells: pd.DataFrame, axes: Sequence[str], ended: int) -> Figure:
    places, ticks = [], []
    for axis in axes:
        at, named = _scaled(cells[axis], axis)
        places.append(pd.DataFrame({"cell": cells["cell"], "axis": axis, "place": at, "loss": cells["loss"]}))
        ticks += [(axis, place, text) for place, text in named.items()]
    lines = pd.concat(places).dropna(subset="place").assign(line=lambda table: table.index)
    x = alt.X(
        "axis:N",
        title=None,
        scale=alt.Scale(domain=list(axes), padding=0.7),
        axis=alt.Axis(labelAngle=0, domain=False, ticks=False),
    )
    y = alt.Y("place:Q", title=None, axis=None, scale=alt.Scale(domain=[-0.1, 1.1]))
    color = alt.Color(
        "loss:Q",
        title="loss (nats)",
        scale=alt.Scale(range=LOW_TO_HIGH),
        legend=alt.Legend(orient="bottom", titleFontWeight="normal"),
    )
    base = chart_of("lines").encode(x=x, y=y)
    shown = tooltip("cell:N", loss=".4f")
    styles: dict[tuple[tuple[str, Any], ...], list[dict[str, object]]] = {}
    for axis, place, text in ticks:
        style = {axes[0]: LEFT, axes[-1]: RIGHT}.get(axis, ABOVE if place == 1 else BELOW if place == 0 else RIGHT)
        styles.setdefault(tuple(style.items()), []).append({"axis": axis, "place": place, "text": text})
    said = {f"labels{i}": pd.DataFrame(rows) for i, rows in enumerate(styles.values())}
    labels = [
        chart_of(name).encode(x=x, y=y, text=alt.Text("text:N")).mark_text(fontSize=10, color=GREY, **dict(style))
        for name, style in zip(said, styles, strict=True)
    ]
    shares = f"{len(cells)} of {ended} cells, drawn at random" if len(cells) < ended else f"{ended} cells"
    return Figure(
        name=f"parallel-{view.name}",
        title="Every cell at once",
        caption=f"A line a cell: {shares}. A cell without a strength has no place on that axis; a diverged cell "
        "ends at l_init.",
        view=view.name,
        section="importance",
        spec=spec_of(
            [
                base.mark_line(opacity=0.5, strokeWidth=1.2).encode(
                    detail=alt.Detail("line:N"), color=color, tooltip=shown
                ),
                *labels,
            ],
            {"lines": lines, **said},
        ),
    )


def _scaled(values: pd.Series, axis: str) -> tuple[pd.Series, dict[float, str]]:
    """Places from 0 to 1 on an axis, and what stands there."""
    if axis in ("method", "attention_norm", "seed"):
        names = list(dict.fromkeys(values))
        names = sorted(names) if axis == "seed" else names
        at = {name: i / (len(names) - 1) for i, name in enumerate(names)}
        return values.map(at).astype(float), {place: str(name) for name, place in at.items()}
    numbers = values.astype(float)
    # A strength of zero has no place on a logarithmic axis.
    measured = numbers if axis == "loss" else numbers.where(numbers > 0).map(np.log10)
    low, high = measured.min(), measured.max()
    form = "best_loss" if axis == "loss" else "best_lr"
    return (measured - low) / (high - low), {
        0.0: shown(numbers[measured.notna()].min(), form),
        1.0: shown(numbers.max(), form),
    }
