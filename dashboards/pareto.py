"""Loss against sensitivity: which curves no other one beats in both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import altair as alt
import numpy as np
import pandas as pd

from dashboards.charts import Figure, chart_of, colors, log_ticks, needs_log_axis, shapes, spec_of, tooltip
from dashboards.facts import DECIMALS, lrs_facts
from dashboards.views import GREY, Line, View

LOSS_TITLE = "lowest mean loss (nats)"


def pareto_facts(lines: Iterable[Line]) -> pd.DataFrame:
    """One row per curve with an LRS: the columns of ``lrs_facts``, best_lr, best_loss, loss_low, loss_high.

    ``loss_low`` to ``loss_high`` is the 95% interval of the mean loss at the best learning rate; both equal
    ``best_loss`` if there is no interval.
    """
    ranked = [line for line in lines if line.curve.LRS is not None]
    rows = []
    for line in ranked:
        at_best = int(np.argmin(line.curve.mean))
        loss = line.curve.mean[at_best]
        low, high = line.curve.band[at_best] or (loss, loss)
        rows.append((line.curve.lr[at_best], *(round(value, DECIMALS) for value in (loss, low, high))))
    best = pd.DataFrame(rows, columns=["best_lr", "best_loss", "loss_low", "loss_high"])
    return pd.concat([lrs_facts(ranked), best], axis=1)


def pareto_figures(views: Iterable[View]) -> Iterator[Figure]:
    """One figure per view that has two curves with an LRS."""
    for view in views:
        facts = pareto_facts(view.lines)
        if len(facts) > 1:
            yield _figure(view, facts)


def _figure(view: View, facts: pd.DataFrame) -> Figure:
    low, high = _frame(facts, "LRS", "low", "high")
    is_log = needs_log_axis(low, high)
    axis = alt.Axis(values=log_ticks([low, high])) if is_log else alt.Undefined
    scale_x = alt.Scale(type="log" if is_log else "linear", domain=[low, high], nice=False, padding=12)
    scale_y = alt.Scale(domain=_frame(facts, "best_loss", "loss_low", "loss_high"), nice=False, padding=12, zero=False)
    x = alt.X("LRS:Q", title="LRS (nats)", scale=scale_x, axis=axis)
    y = alt.Y("best_loss:Q", title=LOSS_TITLE, scale=scale_y)
    details = tooltip(
        *("label:N", "scale:N", "best_lr:Q"),
        **dict.fromkeys(("LRS", "low", "high", "best_loss", "loss_low", "loss_high"), ".4f"),
    )
    base = chart_of("facts").encode(x=x, y=y)
    colored = base.encode(color=colors(view.lines), tooltip=details)
    # The page can hide curves, so the specification itself finds the front among those that are shown: a curve belongs
    # to it if its loss is the lowest up to its LRS.
    order: list[alt.SortField | dict[str, str]] = [alt.SortField("LRS"), alt.SortField("best_loss")]
    front = base.transform_window(lowest="min(best_loss)", frame=[None, 0], sort=order)
    front = front.transform_filter("datum.best_loss <= datum.lowest")
    several = bool((facts["low"] < facts["high"]).any())
    rules: list[alt.Chart] = []
    if several:
        for channels in (
            {"x": alt.X("low:Q", scale=scale_x, axis=axis), "x2": alt.X2("high:Q")},
            {"y": alt.Y("loss_low:Q", scale=scale_y), "y2": alt.Y2("loss_high:Q")},
        ):
            rules.append(colored.mark_rule(clip=True, opacity=0.6).encode(**channels))
    layers = [
        front.mark_line(interpolate="step-after", strokeDash=[4, 4], strokeWidth=1.5, color=GREY).encode(
            order=alt.Order("LRS:Q")
        ),
        *rules,
        colored.mark_point(filled=True, size=60, opacity=1).encode(shape=shapes(view.lines)),
        front.mark_point(size=220, strokeWidth=1.5, color=GREY, opacity=1),
    ]
    return Figure(
        name=f"pareto-{view.name}",
        title="Loss against sensitivity",
        caption="Lower left is better: a low loss that depends little on the learning rate. Rings mark the curves that "
        "no other curve beats in both; the dashed line joins them."
        + (" Lines through the points are 95% intervals." if several else ""),
        view=view.name,
        section="lrs",
        spec=spec_of(layers, {"facts": facts}),
    )


def _frame(facts: pd.DataFrame, value: str, low: str, high: str) -> list[float]:
    """The values with their intervals, as far as those exceed the range of the values by at most its width.

    The intervals of two seeds may be so wide that they would squeeze all points into one. A value without an interval
    counts alone.
    """
    smallest, largest = float(facts[value].min()), float(facts[value].max())
    span = (largest - smallest) or abs(largest) or 1.0
    lows, highs = facts[low].fillna(facts[value]), facts[high].fillna(facts[value])
    ends = [max(float(lows.min()), smallest - span), min(float(highs.max()), largest + span)]
    return ends if ends[0] < ends[1] else [smallest - span, largest + span]
