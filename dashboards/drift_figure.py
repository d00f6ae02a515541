"""The best learning rate over the width of the model, as a figure and as rows of the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import altair as alt
import pandas as pd

from dashboards.charts import Figure, chart_of, colors, dashes, log_axis, log_ticks, shapes, spec_of, tooltip
from dashboards.drift import Drift, drifts
from dashboards.factors import axis_title
from dashboards.valley_table import NOTHING, format_interval
from dashboards.views import Line
from search_spaces.methods import label


def drift_figures(lines: Sequence[Line]) -> Iterator[Figure]:
    """One figure per group of lines, as in ``dashboards.all_scales``; none without a slope."""
    for group in dict.fromkeys(line.group for line in lines):
        named = [(line, drift) for line, drift in drift_lines(lines, group) if drift.slope is not None]
        if named:
            yield _figure(group, named)


def drift_lines(lines: Sequence[Line], group: str | None = None) -> list[tuple[Line, Drift]]:
    """Each drift, with the line of its narrowest curve, whose name is without a factor that gives the width.

    The name has the scales, too, if drifts at several depths would have the same name.
    """
    in_group = [line for line in lines if group in (None, line.group)]
    found = []
    for drift in drifts(line.curve for line in in_group):
        first, own = drift.curves[0], [line for line in in_group if any(line.curve is curve for curve in drift.curves)]
        line = next(line for line in own if line.curve is first)
        if len({other.name for other in own}) > 1:
            line = replace(line, name=label(first.method, first.gamma, first.attention_norm, dict(drift.factors)))
        found.append((line, drift))
    names = Counter((line.group, line.name) for line, _ in found)
    return [
        (replace(line, name=_with_scales(line.name, drift)) if names[line.group, line.name] > 1 else line, drift)
        for line, drift in found
    ]


def _with_scales(name: str, drift: Drift) -> str:
    """E.g. ``baseline, w96 to w768``."""
    return f"{name}, {drift.curves[0].scale} to {drift.curves[-1].scale}"


def drift_facts(named: Iterable[tuple[Line, Drift]]) -> pd.DataFrame:
    """One row per optimum of a drift with a slope: label, scale, width, lr, low, high, fitted, factor.

    ``low`` to ``high`` is the interval of ``lr``, and equals it for one seed. ``fitted`` is on the fitted line, and
    ``factor`` is by how much the line changes per doubling of width.
    """
    rows = []
    for line, drift in named:
        for (curve, width, best), fitted in zip(drift.points, drift.fitted, strict=True):
            low, high = best.interval or (best.lr, best.lr)
            rows.append((line.name, curve.scale, width, best.lr, low, high, float(fitted), drift.factor))
    return pd.DataFrame(rows, columns=["label", "scale", "width", "lr", "low", "high", "fitted", "factor"])


def drift_texts(lines: Sequence[Line]) -> list[dict[str, str]]:
    """The rows of the page's table, by heading; intervals over seeds are in parentheses."""
    several = len({line.group for line in lines}) > 1
    return [
        _texts(f"{line.name}, {line.group}" if several and line.group else line.name, drift)
        for line, drift in drift_lines(lines)
    ]


def _texts(name: str, drift: Drift) -> dict[str, str]:
    widths = ", ".join(f"{width:g}" for width in drift.widths)
    texts = {"Method": name, "Widths": widths or NOTHING}
    if drift.slope is None or drift.factor is None:
        return texts | {"Slope": NOTHING, "Factor per doubling": NOTHING}
    slope, factor = f"{drift.slope:+.2f}", f"{drift.factor:.2f}"
    if drift.interval and drift.factor_interval:
        slope += f" ({format_interval(drift.interval, '{:+.2f}'.format)})"
        factor += f" ({format_interval(drift.factor_interval, '{:.2f}'.format)})"
    return texts | {"Slope": slope, "Factor per doubling": factor}


def _figure(group: str, named: Sequence[tuple[Line, Drift]]) -> Figure:
    facts, lines = drift_facts(named), [line for line, _ in named]
    axis = axis_title(lines[0].curve.lr_factor)
    y = alt.Y(
        "lr:Q",
        title=f"best {axis}",
        scale=alt.Scale(type="log", nice=False, padding=10),
        axis=alt.Axis(values=log_ticks(facts[["low", "high", "fitted"]].to_numpy()), format="~g"),
    )
    x = log_axis(facts, "width", "model width", label="format(datum.value, '~g')")
    base = chart_of("facts").encode(x=x, y=y, color=colors(lines))
    details = tooltip(*("label:N", "scale:N", "width:Q"), **dict.fromkeys(("lr", "low", "high"), ".3~g"), factor=".2~f")
    layers = [
        base.mark_line(strokeWidth=1.5).encode(y=alt.Y("fitted:Q"), strokeDash=dashes(lines)),
        base.mark_rule(opacity=0.7).encode(y=alt.Y("low:Q"), y2=alt.Y2("high:Q")),
        base.mark_point(filled=True, size=60, opacity=1).encode(shape=shapes(lines), tooltip=details),
    ]
    several = " Vertical lines are 95% intervals." if (facts["low"] < facts["high"]).any() else ""
    return Figure(
        name=f"drift-{group}" if group else "drift",
        title=f"Best {axis} over width, {group}" if group else f"Best {axis} over width",
        caption=f"Interpolated between the points of the grid, with a fitted line for each curve.{several}",
        view=None,
        section="lrs",
        spec=spec_of(layers, {"facts": facts}),
    )
