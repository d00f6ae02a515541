"""Figures that show every scale at once, as in arXiv 2601.02031: methods at one gamma, and a method at all gammas."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import altair as alt
import pandas as pd

from dashboards.charts import (
    LOSS_TITLE,
    Figure,
    Section,
    categories,
    chart_of,
    colors,
    crosses,
    cycle,
    dashes,
    diverged_cells,
    log_axis,
    lrs_axis,
    lrs_layers,
    shapes,
    spec_of,
    tooltip,
)
from dashboards.factors import axis_title
from dashboards.facts import DECIMALS, lrs_facts
from dashboards.tables import join_words
from dashboards.views import DASHES, SHAPES, Line, assign_styles
from search_spaces.methods import METHODS, label

GAMMA_COLORS = ("#56b4e9", "#0072b2", "#009e73", "#e69f00", "#d55e00", "#cc79a7")
"""Colors from the smallest gamma to the largest; fewer gammas use the colors that are farthest apart."""
SYMBOL_COLOR = "#5b6570"
"""The color of the scales' symbols in a legend, which no method has."""
FRAME_SHARE = 1 / 3
"""If nothing diverged, a loss figure shows this share of the range from the lowest loss to ``l_init``. Without a limit,
one curve far above the others would flatten them."""
SIZE = re.compile(r"([\d.]+)([MB])")
"""A scale named by its number of parameters."""


@dataclass(frozen=True, kw_only=True)
class ScaleComparison:
    """The lines of one figure at every scale; a line keeps its name and color across scales."""

    name: str
    """The attention norm or method that its lines share, or the method whose gammas they are."""
    lines: tuple[Line, ...]
    color_meaning: Literal["attention norm", "method", "gamma"]
    note: str = ""
    """A sentence about the gammas."""

    @property
    def axis_title(self) -> str:
        return axis_title(self.lines[0].curve.lr_factor)


def multi_scale_figures(lines: Sequence[Line]) -> tuple[list[Figure], list[Figure]]:
    """The figures of methods at one gamma each, and the figures of each method's gammas; none for a single scale."""
    main, sweeps = comparisons(lines)
    return (
        [figure for each in main for figure in (*_losses(each, "loss"), *_lrs_over_scale(each))],
        [figure for each in sweeps for figure in (*_losses(each, "lrs"), *_lrs_over_scale(each))],
    )


def comparisons(lines: Sequence[Line]) -> tuple[list[ScaleComparison], list[ScaleComparison]]:
    """What can be compared at several scales, for each group of lines that share an attention norm or a method.

    First its methods at one gamma each; then each method that has several gammas, with the baseline.
    """
    main: list[ScaleComparison] = []
    sweeps: list[ScaleComparison] = []
    for group in dict.fromkeys(line.group for line in lines):
        of_group = [line for line in lines if line.group == group and line.curve.points]
        if len({line.curve.scale for line in of_group}) < 2:
            continue
        lines_by_name: dict[str, list[Line]] = {}
        for line in of_group:
            lines_by_name.setdefault(_without_gamma(line), []).append(line)
        several = {name: of_name for name, of_name in lines_by_name.items() if len(_gammas(of_name)) > 1}
        main_gammas = {name: _main_gamma(of_name) for name, of_name in several.items()}
        at_main_gamma = [
            replace(line, name=name)
            for name, of_name in lines_by_name.items()
            for line in of_name
            if line.curve.gamma == main_gammas.get(name, line.curve.gamma)
        ]
        one_method = len({line.curve.method for line in at_main_gamma}) == 1
        main.append(
            ScaleComparison(
                name=group,
                lines=tuple(assign_styles(at_main_gamma)),
                color_meaning="attention norm" if one_method else "method",
                note=_gamma_note(several, main_gammas),
            )
        )
        for name, of_name in several.items():
            sweep = f"{group}, {name}" if group else name
            sweeps.append(ScaleComparison(name=sweep, lines=_gamma_sweep(of_name, of_group), color_meaning="gamma"))
    return main, sweeps


def _gammas(lines: Iterable[Line]) -> list[float]:
    return sorted({line.curve.gamma for line in lines if line.curve.gamma is not None})


def _without_gamma(line: Line) -> str:
    gamma = label(line.curve.method, line.curve.gamma).removeprefix(line.curve.method)
    return line.name.replace(gamma, "", 1) if gamma else line.name


def _gamma_label(line: Line, gamma: float) -> str:
    """E.g. ``gamma=0.1``."""
    return label(line.curve.method, gamma).removeprefix(line.curve.method).strip(" ()")


def _main_gamma(lines: Sequence[Line]) -> float:
    """The gamma that occurs at the most scales in a method's lines; among several, the one nearest to the default."""
    method = METHODS.get(lines[0].curve.method)
    default = (method and method.default_gamma) or math.nan

    def rank(gamma: float) -> tuple[int, float]:
        scales = sum(line.curve.gamma == gamma for line in lines)
        return -scales, abs(math.log(gamma / default)) if gamma / default > 0 else math.inf

    return min(_gammas(lines), key=rank)


def _gamma_note(lines: dict[str, list[Line]], gammas: dict[str, float]) -> str:
    """E.g. ``z-loss and mu-loss are shown at gamma=0.0001.``"""
    names_by_gamma: dict[str, list[str]] = {}
    for name, gamma in gammas.items():
        names_by_gamma.setdefault(_gamma_label(lines[name][0], gamma), []).append(name)
    parts = [
        f"{join_words(names)} {'is' if len(names) == 1 else 'are'} shown at {gamma}"
        for gamma, names in names_by_gamma.items()
    ]
    return f"{join_words(parts)}." if parts else ""


def _gamma_sweep(lines: Sequence[Line], of_group: Sequence[Line]) -> tuple[Line, ...]:
    """The baseline of the same study, attention norm and factors, then each gamma in its own style."""
    gammas = _gammas(lines)
    last = len(GAMMA_COLORS) - 1
    color_by_gamma = {gamma: GAMMA_COLORS[round(rank * last / (len(gammas) - 1))] for rank, gamma in enumerate(gammas)}
    sweep = [
        replace(
            line,
            name=_gamma_label(line, line.curve.gamma),
            color=color_by_gamma[line.curve.gamma],
            dash=DASHES[0],
            shape=SHAPES[gammas.index(line.curve.gamma) % len(SHAPES)],
        )
        for line in lines
        if line.curve.gamma is not None
    ]
    same = {_key_of_baseline(line) for line in lines}
    baselines = [
        replace(line, name="baseline", dash=DASHES[1], shape=SHAPES[0])
        for line in of_group
        if line.curve.method == "baseline" and _key_of_baseline(line) in same
    ]
    return (*baselines, *sweep)


def _key_of_baseline(line: Line) -> Hashable:
    """What a line shares with its baseline at the same scale."""
    return line.curve.study, line.curve.attention_norm, line.curve.factors


def mean_facts(lines: Iterable[Line]) -> pd.DataFrame:
    """One row per line and learning rate with a result: scale, label, lr, loss, seeds, diverged, l_init.

    ``loss`` is the mean over seeds, NaN if a seed has no result; ``diverged`` counts the diverged seeds.
    """
    rows = []
    for line in lines:
        diverged = Counter(point.lr for point in line.curve.points if point.diverged)
        seeds = Counter(point.lr for point in line.curve.points)
        of_line = {"scale": line.curve.scale, "label": line.name, "l_init": round(line.curve.l_init, DECIMALS)}
        rows += [
            of_line | {"lr": lr, "loss": round(mean, DECIMALS), "seeds": seeds[lr], "diverged": diverged[lr]}
            for lr, mean in zip(line.curve.lr, line.curve.mean, strict=True)
            if seeds[lr]
        ]
    return pd.DataFrame(rows, columns=["scale", "label", "lr", "loss", "seeds", "diverged", "l_init"])


def _losses(comparison: ScaleComparison, section: Section) -> Iterator[Figure]:
    """One figure; none if no learning rate has a result for every seed."""
    facts = mean_facts(comparison.lines)
    if facts["loss"].isna().all():
        return
    cells, diverged = int(facts["seeds"].sum()), int(facts["diverged"].sum())
    low, top, l_init = (float(value) for value in (facts["loss"].min(), facts["loss"].max(), facts["l_init"].max()))
    limit = low + FRAME_SHARE * (l_init - low)
    above = 0 if diverged else int((facts["loss"] > limit).sum())
    top = limit if above else max(top, l_init) if diverged else top
    margin = 0.03 * (top - low) or 0.1
    scale_y = alt.Scale(domain=[low - margin, top + margin], nice=False)
    base = chart_of("facts").encode(
        x=log_axis(facts, "lr", comparison.axis_title),
        y=alt.Y("loss:Q", title=LOSS_TITLE, scale=scale_y),
        color=colors(comparison.lines),
        detail=alt.Detail("scale:N"),
    )
    details = tooltip("label:N", "scale:N", "lr:Q", "seeds:Q", "diverged:Q", loss=".4f")
    legend = alt.Legend(symbolFillColor=SYMBOL_COLOR, symbolStrokeColor=SYMBOL_COLOR)
    shape = categories(alt.Shape, "scale", cycle(facts["scale"], SHAPES), legend=legend)
    points = base.transform_filter("!datum.diverged").mark_point(filled=True, size=35, opacity=1, clip=True)
    dash = categories(alt.StrokeDash, "scale", cycle(facts["scale"], DASHES))
    layers = [
        base.mark_line(strokeWidth=1.5, clip=True).encode(strokeDash=dash),
        points.encode(shape=shape, tooltip=details),
    ]
    if diverged:
        layers.append(crosses(base).encode(y=alt.Y("l_init:Q", scale=scale_y), tooltip=details))
    sentences = (
        f"Colors show the {comparison.color_meaning}, symbols the scale.",
        comparison.note,
        "Points are means over seeds." if facts["seeds"].max() > 1 else "",
        diverged_cells(diverged, cells) if diverged else "",
        f"{above} of {len(facts)} points lie above the frame, up to {facts['loss'].max():.2f}." if above else "",
    )
    title = f"Final loss over {comparison.axis_title}, all scales"
    yield _figure(comparison, "loss-scales", title, sentences, section, layers, facts)


def _lrs_over_scale(comparison: ScaleComparison) -> Iterator[Figure]:
    """One figure; none if fewer than two scales have an LRS."""
    lines = [line for line in comparison.lines if line.curve.LRS is not None]
    facts = lrs_facts(lines)
    scales = list(dict.fromkeys(facts["scale"]))
    if len(scales) < 2:
        return
    sizes = [_size(scale) for scale in scales]
    if any(math.isnan(size) for size in sizes):
        x = alt.X("scale:O", title="scale", sort=scales, axis=alt.Axis(labelAngle=0))
    else:
        facts = facts.assign(size=facts["scale"].map(dict(zip(scales, sizes, strict=True))))
        x = log_axis(facts, "size", "model size (parameters)", label="format(datum.value, '~s')")
    base = chart_of("facts").encode(x=x, y=lrs_axis(facts), color=colors(lines))
    layers = lrs_layers(base, facts, {"strokeDash": dashes(lines)}, {"shape": shapes(lines)})
    sentences = (
        f"Lower is less sensitive to the {comparison.axis_title}. With several seeds, bars are 95% intervals.",
        comparison.note,
    )
    yield _figure(comparison, "lrs-scale", "LRS over scale", sentences, "lrs", layers, facts)


def _size(scale: str) -> float:
    """The number of parameters that a scale is named by; NaN for any other name."""
    match = SIZE.fullmatch(scale)
    return float(match[1]) * {"M": 1e6, "B": 1e9}[match[2]] if match else math.nan


def _figure(
    comparison: ScaleComparison,
    name: str,
    title: str,
    sentences: Iterable[str],
    section: Section,
    layers: Sequence[alt.Chart],
    facts: pd.DataFrame,
) -> Figure:
    by = " by gamma" if comparison.color_meaning == "gamma" else ""
    return Figure(
        name=f"{name}-{comparison.name}" if comparison.name else name,
        title=f"{title}, {comparison.name}{by}" if comparison.name else title,
        caption=" ".join(filter(None, sentences)),
        view=None,
        section=section,
        spec=spec_of(layers, {"facts": facts}),
    )
