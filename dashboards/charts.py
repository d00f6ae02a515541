"""The building blocks of every chart: its text and section, axes, line styles, and the Vega-Lite specification."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import altair as alt
import numpy as np
import numpy.typing as npt
import pandas as pd
from pandas.api.types import is_numeric_dtype, is_object_dtype

from dashboards.views import Line

VEGA_LITE = alt.SCHEMA_VERSION.rpartition(".")[0].removeprefix("v")
"""The Vega-Lite version of the specifications, in vl-convert's notation."""
CROSS = "M-0.8,-0.8L0.8,0.8M-0.8,0.8L0.8,-0.8"
"""The mark of a diverged cell."""
EXPONENT = "replace(format(datum.value, '.3~e'), 'e+', 'e')"
TICK_LABEL = f"abs(datum.value) >= 1e4 ? {EXPONENT} : format(datum.value, '~g')"
"""The Vega expression for a number at a tick."""
LEGEND: dict[str, Any] = {"orient": "top", "columns": 3, "labelLimit": 260, "symbolStrokeWidth": 0, "symbolOpacity": 1}
LEGEND |= {"symbolLimit": 1000}  # Vega omits entries beyond the 30th by default
LEGEND |= {"layout": {"top": {"direction": "vertical"}}}  # two legends side by side would squeeze the plot
"""Symbols have no stroke, because dashes would fray their edge, and are opaque, because bands are pale. The page sets
``columns`` by its width."""
LOSS_TITLE = "final validation loss (nats)"
CELL = ("label:N", "cell:N", "lr:Q", "seed:Q")
"""The fields of a cell's tooltip; see ``tooltip``."""
HAS_INTERVAL = "isValid(datum.low)"
LOG_FACTOR = 3.0
"""LRS values that span less than this factor get a linear axis."""
Section = Literal["loss", "lrs", "why", "forecast", "importance"]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One chart with its title and caption."""

    name: str
    """The stem of its files."""
    title: str
    caption: str
    """What the chart shows and how to read it, in full sentences."""
    view: str | None
    """The name of the view that it shows; None if it shows several."""
    section: Section
    """The section of the page that it belongs to."""
    spec: dict[str, Any]
    """Vega-Lite, as wide as its container."""
    overlay: Sequence[dict[str, Any]] = field(default=())
    """Layers that the reader of the page can switch on."""


@dataclass(frozen=True, kw_only=True)
class CellFigure:
    """A chart of a single cell; the page shows it for the cell that the reader selects."""

    name: str
    title: str
    caption: str
    spec: dict[str, Any]
    """As in ``Figure``, without datasets."""
    data: Mapping[str, Mapping[str, pd.DataFrame]]
    """By cell, the tables that ``spec`` refers to."""

    def for_cell(self, cell: str, name: str) -> Figure:
        """The figure of one cell; ``name`` becomes part of its file name."""
        tables = {name: json_rows(table) for name, table in self.data[cell].items()}
        return Figure(
            name=f"{self.name}-{name}",
            title=self.title,
            caption=self.caption,
            view=None,
            section="why",
            spec=self.spec | {"datasets": tables},
        )


def chart_of(name: str) -> alt.Chart:
    """A chart of the table that ``spec_of`` receives under this name."""
    return alt.Chart(alt.NamedData(name))


def spec_of(
    layers: Sequence[alt.Chart], tables: Mapping[str, pd.DataFrame] | None = None, height: int = 320
) -> dict[str, Any]:
    """A layered Vega-Lite specification with the tables that its layers refer to, if they are given."""
    # One by one: validation takes seconds, and ``alt.layer`` copies every layer several times. Layers with equal scales
    # share one legend.
    parts: list[dict[str, Any]] = [layer.to_dict(validate=False) for layer in layers]
    shared = {key: parts[0][key] for key in ("$schema", "config")}
    for part in parts:
        del part["$schema"], part["config"]
    if all(part["data"] == parts[0]["data"] for part in parts):
        shared["data"] = parts[0]["data"]
        for part in parts:
            del part["data"]
    shared["config"] |= {"legend": LEGEND}  # Altair's schema lacks the layout option of Vega
    datasets = {} if tables is None else {"datasets": {name: json_rows(table) for name, table in tables.items()}}
    return {**shared, "width": "container", "height": height, "layer": parts, **datasets}


def diverged_cells(diverged: int, cells: int) -> str:
    """What the crosses of a chart of losses mean, as a sentence."""
    return f"Crosses at l_init mark diverged cells: {diverged} of {cells}." if diverged else "No cell diverged."


def json_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """One mapping per row that JSON can represent: None for a missing or non-finite value."""
    columns = [_json_values(column) for _, column in table.items()]
    names = [str(name) for name in table]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _json_values(column: pd.Series[Any]) -> list[Any]:
    if is_numeric_dtype(column):
        known = np.isfinite(column.to_numpy(dtype=float, na_value=math.nan))
    else:
        known = column.notna().to_numpy()
        if is_object_dtype(column):
            known = known & ~column.isin([math.inf, -math.inf]).to_numpy()
    values: list[Any] = column.tolist()
    if known.all():
        return values
    return [value if is_known else None for value, is_known in zip(values, known.tolist(), strict=True)]


def tooltip(*fields: str, **formats: str) -> list[alt.Tooltip]:
    """The tooltip of a mark: ``fields`` in Vega-Lite shorthand, then numbers with their formats."""
    return [*map(alt.Tooltip, fields), *(alt.Tooltip(f"{name}:Q", format=form) for name, form in formats.items())]


def log_axis(facts: pd.DataFrame, column: str, title: str, channel: type[Any] = alt.X, *, label: str = EXPONENT) -> Any:
    """A logarithmic axis with a tick at each value in ``column``; ``label`` is the Vega expression for its text."""
    axis = alt.Axis(values=sorted(facts[column].unique().tolist()), labelExpr=label, labelOverlap=True, grid=False)
    return channel(f"{column}:Q", title=title, scale=alt.Scale(type="log", nice=False, padding=14), axis=axis)


def lrs_axis(facts: pd.DataFrame) -> alt.Y:
    """A logarithmic axis, because methods differ by factors, but linear for close values or an exactly flat curve."""
    values = facts[["LRS", "low", "high"]].to_numpy(dtype=float)
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    if not needs_log_axis(low, high):
        return alt.Y("LRS:Q", title="LRS (nats)", scale=alt.Scale(zero=bool(low <= 0), padding=10, nice=False))
    axis = alt.Axis(values=log_ticks([low, high]))
    return alt.Y("LRS:Q", title="LRS (nats)", scale=alt.Scale(type="log", nice=False, padding=10), axis=axis)


def needs_log_axis(low: float, high: float) -> bool:
    return 0 < LOG_FACTOR * low <= high


def five_digits(value: float) -> float:
    """``value`` to five significant digits: more than a plot shows, and less for a page to hold."""
    return float(f"{value:.5g}")


def log_ticks(values: npt.ArrayLike) -> list[float]:
    """Ticks for a logarithmic axis: multiples 1 to 9 of each power of ten if ``values`` span less than one decade; 1, 2
    and 5 below three decades; 1 alone otherwise."""
    low, high = float(np.min(values)), float(np.max(values))
    digits = range(1, 10) if high < 10 * low else (1, 2, 5) if high < 1e3 * low else (1,)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [float(f"{digit}e{decade}") for decade in decades for digit in digits]


def crosses(base: alt.Chart, test: str = "datum.diverged", **style: Any) -> Any:
    options: dict[str, Any] = {"shape": CROSS, "size": 60, "strokeWidth": 2.5, "opacity": 1} | style
    return base.transform_filter(test).mark_point(**options)


def has_intervals(facts: pd.DataFrame) -> bool:
    """Whether a layer of intervals would draw any; Vega warns about a layer without data."""
    return bool(facts["low"].notna().any())


def lrs_layers(base: alt.Chart, facts: pd.DataFrame, line: dict[str, Any], point: dict[str, Any]) -> list[alt.Chart]:
    """Intervals, lines and points of LRS, with extra channels for the lines and points."""
    intervals = base.transform_filter(HAS_INTERVAL).mark_rule().encode(y=alt.Y("low:Q"), y2=alt.Y2("high:Q"))
    return [
        *([intervals] if has_intervals(facts) else []),
        base.mark_line().encode(**line),
        base.mark_point(filled=True, size=60, opacity=1).encode(tooltip=LRS_TOOLTIP, **point),
    ]


LRS_TOOLTIP = tooltip("label:N", "scale:N", LRS=".4f", low=".4f", high=".4f")


def categories(channel: type[Any], field: str, looks: Mapping[str, Any], **options: Any) -> Any:
    """A channel that gives each name in ``field`` its look."""
    scale = alt.Scale(domain=list(looks), range=list(looks.values()))
    return channel(f"{field}:N", title=None, scale=scale, **options)


# Color, dash and shape share one domain, the names of the lines, so that Vega-Lite draws a single legend.


def colors(lines: Iterable[Line]) -> Any:
    return categories(alt.Color, "label", {line.name: line.color for line in lines})


def dashes(lines: Iterable[Line]) -> Any:
    return categories(alt.StrokeDash, "label", {line.name: line.dash for line in lines})


def shapes(lines: Iterable[Line]) -> Any:
    return categories(alt.Shape, "label", {line.name: line.shape for line in lines})


def cycle(names: Iterable[str], looks: Sequence[Any]) -> dict[str, Any]:
    """A look for each distinct name, in order of appearance."""
    return dict(zip(dict.fromkeys(names), itertools.cycle(looks), strict=False))
