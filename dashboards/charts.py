"""How every chart is drawn: its words and its place, the axes, one look a line, and a specification of it all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import altair as alt
import numpy as np
import numpy.typing as npt
import pandas as pd

from dashboards.views import Line

VEGA_LITE = alt.SCHEMA_VERSION.rpartition(".")[0].removeprefix("v")
"""Version of Vega-Lite that the specifications are written in, as vl-convert names it."""
CROSS = "M-0.8,-0.8L0.8,0.8M-0.8,0.8L0.8,-0.8"
"""A diverged cell."""
EXPONENT = "replace(format(datum.value, '.3~e'), 'e+', 'e')"
SHORT = f"abs(datum.value) >= 1e4 ? {EXPONENT} : format(datum.value, '~g')"
"""How a number stands at an axis."""
LEGEND: dict[str, Any] = {"orient": "top", "columns": 3, "labelLimit": 260, "symbolStrokeWidth": 0, "symbolOpacity": 1}
LEGEND |= {"symbolLimit": 1000}  # without it those beyond the 30th are left out
LEGEND |= {"layout": {"top": {"direction": "vertical"}}}  # side by side, two legends leave a narrow figure
"""Without stroke, as a dash would fray the edge of the symbols; opaque, as a band is pale; the page sets the columns to
what its width holds."""
LOSS_TITLE = "final validation loss (nats)"
CELL = ("label:N", "cell:N", "lr:Q", "seed:Q")
"""Of a pointer over a cell, see ``tooltip``."""
LOG_FACTOR = 3.0
"""Values that span less than this factor are drawn on a linear axis."""
Section = Literal["loss", "lrs", "why", "forecast", "importance"]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One chart, with the words that go with it."""

    name: str
    """Names its files."""
    title: str
    caption: str
    """What it shows and how to read it, in sentences."""
    view: str | None
    """The one view that it shows; None where it shows several."""
    section: Section
    """Where on the page it stands."""
    spec: dict[str, Any]
    """Vega-Lite, as wide as what contains it."""
    overlay: Sequence[dict[str, Any]] = field(default=())
    """Layers that a reader of the page may put over it."""


@dataclass(frozen=True, kw_only=True)
class CellFigure:
    """One chart that there is of each cell; on the page, of the one that its reader chooses."""

    name: str
    title: str
    caption: str
    spec: dict[str, Any]
    """As of ``Figure``, without its data."""
    data: Mapping[str, Mapping[str, pd.DataFrame]]
    """By cell, the tables that ``spec`` names."""

    def of(self, cell: str, name: str) -> Figure:
        """The figure of one cell; ``name`` is part of that of its files."""
        tables = {name: rows(table) for name, table in self.data[cell].items()}
        return Figure(
            name=f"{self.name}-{name}",
            title=self.title,
            caption=self.caption,
            view=None,
            section="why",
            spec=self.spec | {"datasets": tables},
        )


def chart_of(name: str) -> alt.Chart:
    """A chart of the table that ``spec_of`` is given under this name."""
    return alt.Chart(alt.NamedData(name))


def spec_of(layers: Sequence[alt.Chart], tables: Mapping[str, pd.DataFrame], height: int = 320) -> dict[str, Any]:
    """Vega-Lite of layers over each other, with the tables that they name."""
    return layered(layers, height) | {"datasets": {name: rows(table) for name, table in tables.items()}}


def layered(layers: Sequence[alt.Chart], height: int = 320) -> dict[str, Any]:
    """Vega-Lite of layers over each other, without the tables that they name."""
    # One legend for the layers' like scales; on top, where a narrow screen has room for it.
    chart = alt.layer(*layers).properties(width="container", height=height)
    spec: dict[str, Any] = chart.to_dict(validate=False)  # which takes seconds
    config = spec.get("config", {}) | {"legend": LEGEND}  # whose layout is Vega's, and unknown to Altair
    return spec | {"config": config}


def rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A mapping a row, as JSON has it: None for what is missing or no finite number."""
    finite = table.replace([math.inf, -math.inf], math.nan)
    columns = [column.astype(object).where(column.notna(), None).tolist() for _, column in finite.items()]
    names = [str(name) for name in table]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def tooltip(*fields: str, **formats: str) -> list[alt.Tooltip]:
    """What a pointer over a mark is shown: fields as Vega-Lite's shorthand, then numbers, each in a format."""
    return [*map(alt.Tooltip, fields), *(alt.Tooltip(f"{name}:Q", format=form) for name, form in formats.items())]


def log_axis(facts: pd.DataFrame, column: str, title: str, channel: type[Any] = alt.X, *, label: str = EXPONENT) -> Any:
    """A logarithmic axis, x or y, with a tick at each value that was tried, which the expression ``label`` writes."""
    axis = alt.Axis(values=sorted(facts[column].unique().tolist()), labelExpr=label, labelOverlap=True, grid=False)
    return channel(f"{column}:Q", title=title, scale=alt.Scale(type="log", nice=False, padding=14), axis=axis)


def lrs_axis(facts: pd.DataFrame) -> alt.Y:
    """Logarithmic, as methods differ by factors, unless they are closer, or a curve is exactly flat."""
    low, high = facts["low"].min(), facts["high"].max()
    if high < LOG_FACTOR * low or low <= 0:
        return alt.Y("LRS:Q", title="LRS (nats)", scale=alt.Scale(zero=bool(low <= 0), padding=10, nice=False))
    axis = alt.Axis(values=ticks(facts[["low", "high"]].to_numpy()))
    return alt.Y("LRS:Q", title="LRS (nats)", scale=alt.Scale(type="log", nice=False, padding=10), axis=axis)


def ticks(values: npt.ArrayLike) -> list[float]:
    """Every digit of the powers of ten around ``values`` if they span less than ten times, else 1, 2 and 5 alone, or 1
    alone from three powers on."""
    low, high = float(np.min(values)), float(np.max(values))
    digits = range(1, 10) if high < 10 * low else (1, 2, 5) if high < 1e3 * low else (1,)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [float(f"{digit}e{decade}") for decade in decades for digit in digits]


LRS_TOOLTIP = tooltip("label:N", "scale:N", LRS=".4f", low=".4f", high=".4f")


# One domain, the lines' names, for colour, dash and shape: Vega-Lite then draws one legend for the three.


def colors(lines: Iterable[Line]) -> alt.Color:
    return alt.Color("label:N", title=None, scale=by_name({line.name: line.color for line in lines}))


def dashes(lines: Iterable[Line]) -> alt.StrokeDash:
    return alt.StrokeDash("label:N", title=None, scale=by_name({line.name: line.dash for line in lines}))


def shapes(lines: Iterable[Line]) -> alt.Shape:
    return alt.Shape("label:N", title=None, scale=by_name({line.name: line.shape for line in lines}))


def by_name(looks: dict[str, Any]) -> alt.Scale:
    return alt.Scale(domain=list(looks), range=list(looks.values()))
