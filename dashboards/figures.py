"""The figures of a report, each a thin drawing of a table of facts.

A diverged cell is drawn as a cross at ``l_init``, never dropped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from dashboards.all_scales import multi_scale_figures
from dashboards.charts import (
    CELL,
    HAS_INTERVAL,
    LOSS_TITLE,
    LRS_TOOLTIP,
    TICK_LABEL,
    Figure,
    categories,
    chart_of,
    colors,
    crosses,
    cycle,
    dashes,
    diverged_cells,
    has_intervals,
    log_axis,
    log_ticks,
    lrs_axis,
    lrs_layers,
    shapes,
    spec_of,
    tooltip,
)
from dashboards.facts import diagnostic_facts, loss_facts, lrs_facts
from dashboards.published import GAMMA, RUNS_CSV, near_published
from dashboards.runs import read_csv
from dashboards.sensitivity import ended_runs
from dashboards.steps import LAYER_NORMS, METRICS
from dashboards.tables import join_words
from dashboards.views import DASHES, GREY, Line, View, color_of, views
from search_spaces.factors import LR

SIGNED_TICKS = (-1000, -100, -10, -1, 0, 1, 10, 100, 1000)
SERIES = {"study": "the studies", "factors": "the factors"}
"""Columns of the facts that give a method several lines over gamma, with their nouns in a caption."""
INTERVAL_COLOR = "#5b6570"
"""The color of an interval drawn on top of a bar."""


TITLES = METRICS | {"log_z_squared": "Mean of the square of log Z"}
DIAGNOSTICS = (
    *("output_mu_norm", "logits_mean", "logits_std", "logits_absmax", "log_z_squared", "attention_logit_max"),
    *LAYER_NORMS,
)
"""Columns of the runs that are plotted against the learning rate."""
SIGNED = ("output_mu_norm", "logits_mean")
"""Those with a symmetric logarithmic axis, for values that may be 0 or negative."""


def figures(lines: Sequence[Line], *, published: bool = True) -> list[Figure]:
    """Every figure that the curves have data for; loss curves come first, for all scales and then for each view.

    With ``published``, the published curves of the same scale and vocabulary are available as an overlay.
    """
    all_views = views(lines)
    main, sweeps = multi_scale_figures(lines)
    figures = [*main, *curve_figures(lines, published=published), *sweeps]
    figures += [figure for view in all_views for figure in _lrs_over_gamma(view)]
    figures += [figure for column in DIAGNOSTICS for view in all_views for figure in _diagnostics(view, column)]
    return figures


def curve_figures(lines: Sequence[Line], *, published: bool) -> list[Figure]:
    """The loss curves of each view, then its LRS; ``published`` as for ``figures``."""
    all_views = views(lines)
    bars = [_lrs_bars(view) for view in all_views if any(line.curve.LRS is not None for line in view.lines)]
    return [*(_loss_figure(view, published) for view in all_views), *bars]


def _loss_figure(view: View, published: bool) -> Figure:
    facts, curve = loss_facts(view.lines), view.lines[0].curve
    link = {"href": alt.Href("url:N")} if facts["url"].notna().any() else {}
    facts = facts if link else facts.drop(columns="url")
    starts = [line.curve.l_init for line in view.lines if math.isfinite(line.curve.l_init)]
    l_init = float(np.mean(starts or math.nan))
    # l_init is drawn only if a curve comes near it; otherwise it would flatten the curves, and the caption states it.
    near = bool((facts["loss"] > (facts["loss"].min() + l_init) / 2).any())
    scale_y = alt.Scale(zero=False)
    if several := has_intervals(facts):
        # A band may be much wider than the range of the losses, so the losses set the frame and the band is clipped.
        low, high = float(facts["loss"].min()), float(max(facts["loss"].max(), l_init if near else -math.inf))
        scale_y = alt.Scale(domain=[low - 0.05 * (high - low), high + 0.05 * (high - low)])
    y = alt.Y("loss:Q", title=LOSS_TITLE, scale=scale_y)
    x = log_axis(facts, "lr", view.axis_title)
    base = chart_of("facts").encode(x=x, y=y, color=colors(view.lines))
    details = [*tooltip(*CELL, loss=".4f"), alt.Tooltip("diverged:N")]
    layers: list[alt.Chart] = [
        base.mark_line().encode(y=alt.Y("mean:Q", scale=scale_y), strokeDash=dashes(view.lines)),
        base.transform_filter("!datum.diverged")
        .mark_point(filled=True, size=50, opacity=1)
        .encode(shape=shapes(view.lines), tooltip=details, **link),
    ]
    if several:
        band = base.transform_filter(HAS_INTERVAL).mark_area(opacity=0.1, clip=True)
        layers.insert(0, band.encode(y=alt.Y("low:Q", scale=scale_y), y2=alt.Y2("high:Q")))
    diverging = [line.name for line in view.lines if line.curve.diverged]
    spacing = min(9, 60 / max(1, len(diverging)))
    for i, name in enumerate(diverging):
        # Crosses of several curves would coincide, so each curve is shifted by a few pixels.
        offset = spacing * (i - (len(diverging) - 1) / 2)
        of_line = base.transform_filter(alt.FieldEqualPredicate(equal=name, field="label"))
        layers.append(crosses(of_line, size=70, xOffset=offset).encode(tooltip=details, **link))
    ceiling = {"ceiling": pd.DataFrame({"l_init": [l_init]})} if near else {}
    if near:
        top = chart_of("ceiling").encode(y=alt.Y("l_init:Q"))
        layers += [
            top.mark_rule(strokeDash=[4, 4], color=GREY),
            top.mark_text(x=4, align="left", baseline="top", dy=6, text=f"l_init {l_init:.2f}", color=GREY),
        ]
    outside = "" if near or math.isnan(l_init) else f" The loss at initialization, {l_init:.2f}, is above the frame."
    comparable = curve.lr_factor == LR and near_published(l_init)
    return Figure(
        name=f"loss-{view.name}",
        title=f"Final loss over {view.axis_title}",
        caption=("Lines are means over seeds, bands their 95% intervals. " if several else "")
        + f"{diverged_cells(int(facts['diverged'].sum()), len(facts))}{outside}",
        view=view.name,
        section="loss",
        spec=spec_of(layers, {"facts": facts, **ceiling}),
        overlay=_published_layers(curve.scale) if published and comparable else (),
    )


@cache
def _published_layers(scale: str) -> tuple[dict[str, Any], ...]:
    """One dotted line per method of the published main comparison at a scale."""
    runs = read_csv(RUNS_CSV)
    runs = ended_runs(runs[(runs["scale"] == scale) & runs["gamma"].fillna(GAMMA).eq(GAMMA)])
    return tuple(
        {
            "data": {"values": of[["lr", "loss"]].assign(label=f"{method}, published").to_dict("records")},
            "mark": {"type": "line", "strokeDash": [1, 3], "strokeWidth": 2, "color": color_of(str(method))}
            | {"clip": True, "tooltip": True, "point": {"size": 18, "color": color_of(str(method))}},
            "encoding": {
                "x": {"field": "lr", "type": "quantitative", "title": "learning rate"},
                "y": {"field": "loss", "type": "quantitative", "title": LOSS_TITLE},
                "tooltip": [{"field": "label"}, {"field": "lr"}, {"field": "loss", "format": ".4f"}],
            },
        }
        for method, of in runs.groupby("method", sort=False)
    )


def _lrs_bars(view: View) -> Figure:
    facts = lrs_facts(view.lines)
    y = alt.Y("label:N", title=None, scale=alt.Scale(domain=list(facts["label"])), axis=alt.Axis(labelLimit=260))
    base = chart_of("facts").encode(y=y, color=colors(view.lines).legend(None), tooltip=LRS_TOOLTIP)
    value, low = (alt.X(f"{column}:Q", title="LRS (nats)") for column in ("LRS", "low"))
    layers = [base.mark_bar(opacity=0.85).encode(x=value)]
    if has_intervals(facts):
        rules = base.transform_filter(HAS_INTERVAL).mark_rule(strokeWidth=1.5)
        layers.append(rules.encode(x=low, x2=alt.X2("high:Q"), color=alt.ColorValue(INTERVAL_COLOR)))
    return Figure(
        name=f"lrs-{view.name}",
        title="LRS by curve",
        caption=f"Lower is less sensitive to the {view.axis_title}. With several seeds, lines are 95% intervals.",
        view=view.name,
        section="lrs",
        spec=spec_of(layers, {"facts": facts}, height=max(160, 22 * len(facts))),
    )


def _lrs_over_gamma(view: View) -> Iterator[Figure]:
    """One figure; none if no method has an LRS at two gammas.

    Each study and combination of factors has its own lines, which dashes distinguish.
    """
    facts = lrs_facts(view.lines)
    distinct = {name: noun for name, noun in SERIES.items() if facts[name].nunique() > 1}
    facts = facts.assign(series=[", ".join(row) for row in facts[list(distinct)].to_numpy()])
    swept = facts[facts["gamma"] > 0]  # the axis is logarithmic
    swept = swept[swept.groupby(["series", "method"])["gamma"].transform("nunique") > 1]
    if swept.empty:
        return
    methods = [name for name in dict.fromkeys(facts["method"]) if name in {*swept["method"], "baseline"}]
    color = categories(alt.Color, "method", {name: color_of(name) for name in methods})
    legend = alt.Legend(symbolType="stroke", symbolStrokeWidth=2, symbolStrokeColor=GREY, symbolSize=300)
    dash = categories(alt.StrokeDash, "series", cycle(facts["series"], DASHES), legend=legend)
    by_series = {"strokeDash": dash} if distinct else {}
    base = chart_of("swept").encode(x=log_axis(swept, "gamma", "gamma"), y=lrs_axis(facts), color=color)
    baselines = chart_of("baselines")
    rule = baselines.mark_rule() if distinct else baselines.mark_rule(strokeDash=[4, 4])
    reference = rule.encode(y=alt.Y("LRS:Q"), color=color, tooltip=LRS_TOOLTIP, **by_series)
    yield Figure(
        name=f"lrs-gamma-{view.name}",
        title="LRS over gamma",
        caption=f"Horizontal lines are the baselines; dashes distinguish {join_words(list(distinct.values()))}."
        if distinct
        else "The dashed line is the baseline.",
        view=view.name,
        section="lrs",
        spec=spec_of(
            [*lrs_layers(base, swept, by_series, {}), reference],
            {"swept": swept, "baselines": facts[facts["method"] == "baseline"]},
        ),
    )


def _diagnostics(view: View, column: str) -> Iterator[Figure]:
    """One figure; none if no run recorded the column."""
    facts, title = diagnostic_facts(view.lines, column), TITLES[column]
    if facts.empty:
        return
    signed = column in SIGNED or (facts["value"] <= 0).any()
    y = alt.Y(
        "value:Q",
        title=title[0].lower() + title[1:],
        scale=alt.Scale(type="symlog" if signed else "log", nice=False, padding=8),
        axis=alt.Axis(values=SIGNED_TICKS if signed else log_ticks(facts["value"]), labelExpr=TICK_LABEL),
    )
    base = chart_of("facts").encode(x=log_axis(facts, "lr", view.axis_title), color=colors(view.lines))
    details = [*tooltip(*CELL, value=".4~g"), alt.Tooltip("diverged:N")]
    layers = [
        base.mark_line().encode(y=y.aggregate("mean"), strokeDash=dashes(view.lines)),
        base.mark_point(filled=True, size=40, opacity=1).encode(y=y, shape=shapes(view.lines), tooltip=details),
    ]
    yield Figure(
        name=f"{column.replace('_', '-')}-{view.name}",
        title=title,
        caption="Values at the end of training; lines are means over seeds.",
        view=view.name,
        section="why",
        spec=spec_of(layers, {"facts": facts}),
    )


STATE_COLORS = {"finished": GREY, "diverged": "#d55e00", "running": "#56b4e9"}


def forecast_figures(runs: pd.DataFrame) -> Iterator[Figure]:
    """The forecast probability that each run diverges, and how the run ended; none without a forecast."""
    facts = runs.dropna(subset="probability")[["cell", "label", "lr", "state", "probability"]]
    if facts.empty:
        return
    present = {state: color for state, color in STATE_COLORS.items() if (facts["state"] == state).any()}
    base = chart_of("facts").encode(
        x=log_axis(facts, "lr", "learning rate"),
        y=alt.Y("probability:Q", title="probability that it diverges", scale=alt.Scale(domain=[0, 1])),
        color=categories(alt.Color, "state", present),
        tooltip=tooltip("label:N", "cell:N", "lr:Q", "state:N", probability=".2f"),
    )
    layers = []
    if (facts["state"] != "diverged").any():
        others = base.transform_filter("datum.state !== 'diverged'")
        layers.append(others.mark_point(filled=True, size=45, opacity=0.8))
    if (facts["state"] == "diverged").any():
        layers.append(crosses(base, "datum.state === 'diverged'"))
    yield Figure(
        name="forecast",
        title="Forecast and outcome",
        caption="Forecast from the first fifth of each run, by a model fitted to other curves. Crosses mark diverged "
        "runs.",
        view=None,
        section="forecast",
        spec=spec_of(layers, {"facts": facts}),
    )
