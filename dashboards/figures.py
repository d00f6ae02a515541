"""Figures: tables of facts first, then a thin drawing of each, then files.

Colour is the method, the same in every figure (Okabe and Ito's palette, safe for colour-blind readers); dash and shape
are the strength. A diverged cell is drawn, as a cross at ``l_init``, never dropped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import altair as alt
import numpy as np
import numpy.typing as npt
import pandas as pd
import vl_convert

from dashboards.sensitivity import CurveFacts

VEGA_LITE = alt.SCHEMA_VERSION.rpartition(".")[0].removeprefix("v")
"""Version of Vega-Lite that the specifications are written in, as vl-convert names it."""

COLORS = {
    "baseline": "#8a8a8a",  # neither black nor white: it is seen on both backgrounds
    "z-loss": "#e69f00",
    "mu-loss": "#0072b2",
    "mu-centering": "#009e73",
    "soft-cap": "#d55e00",
    "max-z": "#cc79a7",
}
UNKNOWN_COLOR = "#56b4e9"
DASHES = ((1, 0), (7, 3), (2, 2), (9, 3, 2, 3))
SHAPES = ("circle", "square", "triangle-up", "diamond")
CROSS = "M-0.8,-0.8L0.8,0.8M-0.8,0.8L0.8,-0.8"

CELL_TOOLTIP = ("label:N", "cell:N", "lr:Q", "seed:Q")
LRS_TOOLTIP = ("label:N", "scale:N", *(alt.Tooltip(f"{name}:Q", format=".4f") for name in ("LRS", "low", "high")))
SIGNED_TICKS = (-1000, -100, -10, -1, 0, 1, 10, 100, 1000)
LEGEND: dict[str, Any] = {"orient": "top", "columns": 3, "labelLimit": 260, "symbolStrokeWidth": 0, "symbolOpacity": 1}
"""Without stroke, as a dash would fray the edge of the symbols; opaque, as a band is pale; the page sets the columns to
what its width holds."""
PRINT_WIDTH, PRINT_HEIGHT = 640, 360
"""Pixels of a saved figure; a PNG has twice as many."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One chart, with the words that go with it."""

    name: str
    """Names its files."""
    title: str
    caption: str
    """What it shows and how to read it, in sentences."""
    scale: str | None
    """The one scale that it shows; None for all."""
    spec: dict[str, Any]
    """Vega-Lite, as wide as what contains it."""


@dataclass(frozen=True, kw_only=True)
class Diagnostic:
    """A column of the runs that is drawn over the learning rate."""

    column: str
    title: str
    axis: Literal["log", "signed"]
    """``signed`` is symmetric logarithmic: for what may be 0 or negative."""


DIAGNOSTICS = (
    Diagnostic(column="output_mu_norm", title="Norm of mu, the mean output embedding", axis="signed"),
    Diagnostic(column="logits_mean", title="Mean logit", axis="signed"),
    Diagnostic(column="logits_std", title="Standard deviation of the logits", axis="log"),
    Diagnostic(column="logits_absmax", title="Largest absolute logit", axis="log"),
)


def loss_facts(curves: Iterable[CurveFacts]) -> pd.DataFrame:
    """One row a cell with a result: scale, label, lr, seed, loss (``l_init`` if diverged), diverged, cell, mean, low,
    high.

    ``mean`` is that over the seeds at this learning rate, NaN if one of them has no result; ``low`` to ``high`` is its
    95 % interval, NaN for one seed.
    """
    rows = [
        {
            "scale": curve.scale,
            "label": curve.label,
            "lr": point.lr,
            "seed": point.seed,
            "loss": point.loss,
            "diverged": point.diverged,
            "cell": point.cell,
            "mean": curve.mean[curve.lr.index(point.lr)],
            "low": low,
            "high": high,
        }
        for curve in curves
        for band in (dict(zip(curve.lr, curve.band, strict=True)),)
        for point in curve.points
        for low, high in (band[point.lr] or (math.nan, math.nan),)
    ]
    return pd.DataFrame(
        rows, columns=["scale", "label", "lr", "seed", "loss", "diverged", "cell", "mean", "low", "high"]
    )


def lrs_facts(curves: Iterable[CurveFacts]) -> pd.DataFrame:
    """One row a curve that has an LRS: scale, method, label, gamma, LRS, low, high (its interval, or twice LRS)."""
    rows = [
        {
            "scale": curve.scale,
            "method": curve.method,
            "label": curve.label,
            "gamma": curve.gamma,
            "LRS": curve.LRS,
            "low": curve.interval[0] if curve.interval else curve.LRS,
            "high": curve.interval[1] if curve.interval else curve.LRS,
        }
        for curve in curves
        if curve.LRS is not None
    ]
    return pd.DataFrame(rows, columns=["scale", "method", "label", "gamma", "LRS", "low", "high"])


def diagnostic_facts(curves: Iterable[CurveFacts], column: str) -> pd.DataFrame:
    """One row a cell at which ``column`` is a finite number: scale, label, lr, seed, diverged, cell, value."""
    rows = [
        {
            "scale": curve.scale,
            "label": curve.label,
            "lr": point.lr,
            "seed": point.seed,
            "diverged": point.diverged,
            "cell": point.cell,
            "value": point.run[column],
        }
        for curve in curves
        for point in curve.points
        if math.isfinite(point.run[column])
    ]
    return pd.DataFrame(rows, columns=["scale", "label", "lr", "seed", "diverged", "cell", "value"])


def figures(curves: Sequence[CurveFacts]) -> list[Figure]:
    """Every figure that the curves have data for, the loss curves first, scale by scale."""
    drawn = [_loss_figure(scale, at_scale) for scale, at_scale in _by_scale(curves)]
    if len({curve.scale for curve in curves if curve.LRS is not None}) > 1:
        drawn.append(_lrs_over_scale(curves))
    drawn += [figure for scale, at_scale in _by_scale(curves) for figure in _lrs_over_gamma(scale, at_scale)]
    for diagnostic in DIAGNOSTICS:
        for scale, at_scale in _by_scale(curves):
            facts = diagnostic_facts(at_scale, diagnostic.column)
            if not facts.empty:
                drawn.append(_diagnostic_figure(scale, at_scale, diagnostic, facts))
    return drawn


def save(
    drawn: Iterable[Figure], folder: Path, formats: Sequence[Literal["png", "svg"]] = ("png", "svg")
) -> list[Path]:
    """Write every figure as a file of each format; the paths, in order."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for figure in drawn:
        # A scale is a name from elsewhere: nothing in it may lead out of the folder.
        stem = re.sub(r"[^\w.-]+", "-", figure.name)
        size = {"width": PRINT_WIDTH, "height": PRINT_HEIGHT, "background": "white", "padding": 12}
        title = {"text": f"{figure.title}, {figure.scale}" if figure.scale else figure.title, "anchor": "start"}
        svg = vl_convert.vegalite_to_svg(figure.spec | size | {"title": title}, vl_version=VEGA_LITE)
        for form in formats:
            path = folder / f"{stem}.{form}"
            path.write_bytes(svg.encode() if form == "svg" else vl_convert.svg_to_png(svg, scale=2))
            paths.append(path)
    return paths


def _loss_figure(scale: str, curves: Sequence[CurveFacts]) -> Figure:
    facts = loss_facts(curves)
    l_init = float(np.mean([curve.l_init for curve in curves if math.isfinite(curve.l_init)] or math.nan))
    # The ceiling is drawn where a curve comes near it: elsewhere it would press the curves flat, and words do.
    near = bool((facts["loss"] > (facts["loss"].min() + l_init) / 2).any())
    scale_y = alt.Scale(zero=False)
    if several := bool(facts["low"].notna().any()):
        # A band may be far wider than what was seen: it is cut at the frame, which the losses make.
        low, high = float(facts["loss"].min()), float(facts["loss"].max())
        scale_y = alt.Scale(domain=[low - 0.05 * (high - low), high + 0.05 * (high - low)])
    y = alt.Y("loss:Q", title="final validation loss (nats)", scale=scale_y)
    base = alt.Chart(facts).encode(x=_log_axis(facts, "lr", "learning rate"), y=y, color=_colors(curves))
    tooltip = [*CELL_TOOLTIP, alt.Tooltip("loss:Q", format=".4f"), "diverged:N"]
    layers: list[alt.Chart] = [
        base.mark_line().encode(y=alt.Y("mean:Q", scale=scale_y), strokeDash=_dashes(curves)),
        base.transform_filter("!datum.diverged")
        .mark_point(filled=True, size=50, opacity=1)
        .encode(shape=_shapes(curves), tooltip=tooltip),
    ]
    if several:
        band = base.transform_filter("isValid(datum.low)").mark_area(opacity=0.15, clip=True)
        layers.insert(0, band.encode(y=alt.Y("low:Q", scale=scale_y), y2="high:Q"))
    diverging = [curve.label for curve in curves if curve.diverged]
    for i, name in enumerate(diverging):
        layers.append(
            base.transform_filter(alt.FieldEqualPredicate(equal=name, field="label"))
            .transform_filter("datum.diverged")
            # Those of several curves meet at one place: each curve is shifted by its own few pixels.
            .mark_point(shape=CROSS, size=70, strokeWidth=2.5, opacity=1, xOffset=9 * (i - (len(diverging) - 1) / 2))
            .encode(tooltip=tooltip)
        )
    if near:
        ceiling = alt.Chart(pd.DataFrame({"l_init": [l_init]})).encode(y="l_init:Q")
        layers += [
            ceiling.mark_rule(strokeDash=[4, 4], color=COLORS["baseline"]),
            ceiling.mark_text(
                x=4, align="left", baseline="top", dy=6, text=f"l_init {l_init:.2f}", color=COLORS["baseline"]
            ),
        ]
    outside = "" if near or math.isnan(l_init) else f" The loss at initialisation, {l_init:.2f}, lies above the frame."
    return Figure(
        name=f"loss-{scale}",
        title="Final loss over learning rate",
        caption="Lines are means over seeds, bands their 95 % intervals. A cross at l_init is a diverged cell: "
        f"{int(facts['diverged'].sum())} of {len(facts)}.{outside}",
        scale=scale,
        spec=_spec(layers),
    )


def _lrs_over_scale(curves: Sequence[CurveFacts]) -> Figure:
    facts = lrs_facts(curves)
    base = alt.Chart(facts).encode(
        x=alt.X("scale:O", title="scale", sort=list(dict.fromkeys(facts["scale"])), axis=alt.Axis(labelAngle=0)),
        y=_lrs_axis(facts),
        color=_colors(curves),
    )
    return Figure(
        name="lrs-scale",
        title="LRS over scale",
        caption="Lower is less sensitive to the learning rate. Bars are 95 % intervals, where there are several seeds.",
        scale=None,
        spec=_spec(
            [
                base.mark_rule().encode(y="low:Q", y2="high:Q"),
                base.mark_line().encode(strokeDash=_dashes(curves)),
                base.mark_point(filled=True, size=60, opacity=1).encode(shape=_shapes(curves), tooltip=LRS_TOOLTIP),
            ]
        ),
    )


def _lrs_over_gamma(scale: str, curves: Sequence[CurveFacts]) -> list[Figure]:
    """One figure, or none where no method has an LRS at two strengths."""
    facts = lrs_facts(curves)
    tried = facts[facts["gamma"].notna() & facts["method"].duplicated(keep=False)]
    if tried.empty:
        return []
    methods = [name for name in dict.fromkeys(facts["method"]) if name in {*tried["method"], "baseline"}]
    color = alt.Color(
        "method:N", title=None, scale=alt.Scale(domain=methods, range=[color_of(name) for name in methods])
    )
    x = _log_axis(tried, "gamma", "strength")
    base = alt.Chart(tried).encode(x=x, y=_lrs_axis(facts), color=color)
    reference = alt.Chart(facts[facts["method"] == "baseline"]).mark_rule(strokeDash=[4, 4])
    return [
        Figure(
            name=f"lrs-gamma-{scale}",
            title="LRS over strength",
            caption="The dashed line is the baseline.",
            scale=scale,
            spec=_spec(
                [
                    base.mark_rule().encode(y="low:Q", y2="high:Q"),
                    base.mark_line(),
                    base.mark_point(filled=True, size=60, opacity=1).encode(tooltip=LRS_TOOLTIP),
                    reference.encode(y="LRS:Q", color=color, tooltip=LRS_TOOLTIP),
                ]
            ),
        )
    ]


def _diagnostic_figure(scale: str, curves: Sequence[CurveFacts], diagnostic: Diagnostic, facts: pd.DataFrame) -> Figure:
    signed = diagnostic.axis == "signed" or (facts["value"] <= 0).any()
    y = alt.Y(
        "value:Q",
        title=diagnostic.title.lower(),
        scale=alt.Scale(type="symlog" if signed else "log", nice=False, padding=8),
        axis=alt.Axis(values=SIGNED_TICKS if signed else _ticks(facts["value"])),
    )
    base = alt.Chart(facts).encode(x=_log_axis(facts, "lr", "learning rate"), color=_colors(curves))
    tooltip = [*CELL_TOOLTIP, alt.Tooltip("value:Q", format=".4~g"), "diverged:N"]
    return Figure(
        name=f"{diagnostic.column.replace('_', '-')}-{scale}",
        title=diagnostic.title,
        caption="At the end of training; lines are means over seeds.",
        scale=scale,
        spec=_spec(
            [
                base.mark_line().encode(y=y.aggregate("mean"), strokeDash=_dashes(curves)),
                base.mark_point(filled=True, size=40, opacity=1).encode(y=y, shape=_shapes(curves), tooltip=tooltip),
            ]
        ),
    )


def _by_scale(curves: Iterable[CurveFacts]) -> list[tuple[str, list[CurveFacts]]]:
    """Curves with a result, by scale, in their order."""
    shown = [curve for curve in curves if curve.points]
    return [(scale, list(group)) for scale, group in groupby(shown, key=lambda curve: curve.scale)]


LOG_FACTOR = 3.0
"""Values that span less than this factor are drawn on a linear axis."""


def _log_axis(facts: pd.DataFrame, column: str, title: str) -> alt.X:
    """A logarithmic axis with a tick at each value that was tried."""
    axis = alt.Axis(values=sorted(facts[column].unique().tolist()), format="~e", labelOverlap=True, grid=False)
    return alt.X(f"{column}:Q", title=title, scale=alt.Scale(type="log", nice=False, padding=14), axis=axis)


def _lrs_axis(facts: pd.DataFrame) -> alt.Y:
    """Logarithmic, as methods differ by factors, unless they are closer, or a curve is exactly flat."""
    low, high = facts["low"].min(), facts["high"].max()
    if high < LOG_FACTOR * low or low <= 0:
        return alt.Y("LRS:Q", title="LRS (nats)", scale=alt.Scale(zero=bool(low <= 0), padding=10))
    axis = alt.Axis(values=_ticks(facts[["low", "high"]].to_numpy()))
    return alt.Y("LRS:Q", title="LRS (nats)", scale=alt.Scale(type="log", nice=False, padding=10), axis=axis)


def _ticks(values: npt.ArrayLike) -> list[float]:
    """Every digit of the powers of ten around ``values`` if they span less than ten times, else 1, 2 and 5 alone."""
    low, high = float(np.min(values)), float(np.max(values))
    digits = range(1, 10) if high < 10 * low else (1, 2, 5)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [float(f"{digit}e{decade}") for decade in decades for digit in digits]


# One domain, the curves' labels, for colour, dash and shape: Vega-Lite then draws one legend for the three.


def _colors(curves: Sequence[CurveFacts]) -> alt.Color:
    return alt.Color("label:N", title=None, scale=_by_label(curves, lambda curve, _: color_of(curve.method)))


def _dashes(curves: Sequence[CurveFacts]) -> alt.StrokeDash:
    scale = _by_label(curves, lambda _, rank: DASHES[rank % len(DASHES)])
    return alt.StrokeDash("label:N", title=None, scale=scale)


def _shapes(curves: Sequence[CurveFacts]) -> alt.Shape:
    scale = _by_label(curves, lambda _, rank: SHAPES[rank % len(SHAPES)])
    return alt.Shape("label:N", title=None, scale=scale)


def _by_label(curves: Sequence[CurveFacts], pick: Callable[[CurveFacts, int], Any]) -> alt.Scale:
    """A scale over the curves' labels; ``pick`` is given a curve and the rank of its strength in its method."""
    strengths: dict[str, list[float | None]] = {}
    picked: dict[str, Any] = {}
    for curve in curves:
        of_method = strengths.setdefault(curve.method, [])
        if curve.gamma not in of_method:
            of_method.append(curve.gamma)
        picked[curve.label] = pick(curve, of_method.index(curve.gamma))
    return alt.Scale(domain=list(picked), range=list(picked.values()))


def color_of(method: str) -> str:
    """The one colour of a method, hexadecimal."""
    return COLORS.get(method, UNKNOWN_COLOR)


def _spec(layers: Sequence[alt.Chart]) -> dict[str, Any]:
    # One legend for the layers' like scales; on top, where a narrow screen has room for it.
    chart = alt.layer(*layers).properties(width="container", height=320)
    spec: dict[str, Any] = chart.configure_legend(**LEGEND).to_dict()
    return spec
