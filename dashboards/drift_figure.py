"""The best learning rate over the width of the model, as a figure and as rows of the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import altair as alt
import pandas as pd

from dashboards.charts import Figure, chart_of, colors, dashes, log_axis, log_ticks, shapes, spec_of, tooltip
from dashboards.drift import Drift, drifts
from dashboards.valley_table import NOTHING, format_factor, format_interval
from dashboards.views import Line


def drift_figures(lines: Sequence[Line]) -> Iterator[Figure]:
    """One figure per group of lines, as in ``dashboards.all_scales``; none without a slope."""
    for group in dict.fromkeys(line.group for line in lines):
        of_group = [line for line in lines if line.group == group]
        found = [drift for drift in drifts(line.curve for line in of_group) if drift.slope is not None]
        if found:
            yield _figure(group, of_group, found)


def drift_facts(lines: Sequence[Line], found: Sequence[Drift]) -> pd.DataFrame:
    """One row per optimum of a drift with a slope: label, scale, width, lr, low, high, fitted, factor.

    ``low`` to ``high`` is the interval of ``lr``, and equals it for one seed. ``fitted`` is on the fitted line, and
    ``factor`` is by how much the line changes per doubling of width.
    """
    rows = []
    for drift in found:
        for (curve, width, best), fitted in zip(drift.points, drift.fitted, strict=True):
            name = next(line.name for line in lines if line.curve is curve)
            low, high = best.interval or (best.lr, best.lr)
            rows.append((name, curve.scale, width, best.lr, low, high, float(fitted), drift.factor))
    return pd.DataFrame(rows, columns=["label", "scale", "width", "lr", "low", "high", "fitted", "factor"])


def drift_texts(lines: Sequence[Line]) -> list[dict[str, str]]:
    """The rows of the page's table, by heading; intervals over seeds are in parentheses."""
    return [_texts(drift) for drift in drifts(line.curve for line in lines)]


def _texts(drift: Drift) -> dict[str, str]:
    widths = ", ".join(f"{width:g}" for width in drift.widths)
    texts = {"Method": drift.curves[0].label, "Widths": widths or NOTHING}
    if drift.slope is None or drift.factor is None:
        return texts | {"Slope": NOTHING, "Factor per doubling": NOTHING}
    slope, factor = f"{drift.slope:+.2f}", format_factor(drift.factor)
    if drift.interval and drift.factor_interval:
        slope += f" ({format_interval(drift.interval, '{:+.2f}'.format)})"
        factor += f" ({format_interval(drift.factor_interval, format_factor)})"
    return texts | {"Slope": slope, "Factor per doubling": factor}


def _figure(group: str, lines: Sequence[Line], found: Sequence[Drift]) -> Figure:
    facts = drift_facts(lines, found)
    shown = [line for line in lines if line.name in set(facts["label"])]
    y = alt.Y(
        "lr:Q",
        title="best learning rate",
        scale=alt.Scale(type="log", nice=False, padding=10),
        axis=alt.Axis(values=log_ticks(facts[["low", "high", "fitted"]].to_numpy()), format="~g"),
    )
    x = log_axis(facts, "width", "model width", label="format(datum.value, '~g')")
    base = chart_of("facts").encode(x=x, y=y, color=colors(shown))
    details = tooltip(*("label:N", "scale:N", "width:Q"), **dict.fromkeys(("lr", "low", "high"), ".3~g"), factor=".2~f")
    layers = [
        base.mark_line(strokeWidth=1.5).encode(y=alt.Y("fitted:Q"), strokeDash=dashes(shown)),
        base.mark_rule(opacity=0.7).encode(y=alt.Y("low:Q"), y2=alt.Y2("high:Q")),
        base.mark_point(filled=True, size=60, opacity=1).encode(shape=shapes(shown), tooltip=details),
    ]
    several = " Vertical lines are 95% intervals." if (facts["low"] < facts["high"]).any() else ""
    return Figure(
        name=f"drift-{group}" if group else "drift",
        title=f"Best learning rate over width, {group}" if group else "Best learning rate over width",
        caption=f"Interpolated between the points of the grid, with a fitted line for each curve.{several}",
        view=None,
        section="lrs",
        spec=spec_of(layers, {"facts": facts}),
    )
