"""Figures with every scale in one, as arXiv 2601.02031 draws them: the methods at one strength each, and each method at
all of its strengths."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import altair as alt
import pandas as pd

from dashboards.charts import (
    CROSS,
    LOSS_TITLE,
    LRS_TOOLTIP,
    Figure,
    Section,
    by_name,
    chart_of,
    colors,
    dashes,
    log_axis,
    lrs_axis,
    shapes,
    spec_of,
    tooltip,
)
from dashboards.facts import DECIMALS, lrs_facts
from dashboards.tables import listed
from dashboards.views import DASHES, SHAPES, Line
from search_spaces.methods import METHODS, label

STRENGTH_COLORS = ("#56b4e9", "#0072b2", "#009e73", "#e69f00", "#d55e00", "#cc79a7")
"""Of strengths, from the smallest to the largest; of fewer, those that are farthest apart."""
SYMBOL_COLOR = "#5b6570"
"""Of the scales' symbols in a legend: no method's."""
FRAME = 1 / 3
"""Where nothing diverged, a figure of losses shows this part of the way from the lowest to ``l_init``: without a limit
one curve far above would press the others flat."""
SIZE = re.compile(r"([\d.]+)([MB])")
"""The name of a scale that is its number of parameters."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The lines of one figure, at every scale; a line has the same name and color at each."""

    of: str
    """What tells it from the others: the attention norm or the method that its lines share, the method whose strengths
    they are."""
    lines: tuple[Line, ...]
    colors: str
    """What has a color each."""
    note: str = ""
    """A sentence on the strengths."""


def all_scales(lines: Sequence[Line]) -> tuple[list[Figure], list[Figure]]:
    """The figures of methods at one strength each, and those of each method's strengths; none of one scale."""
    main, sweeps = comparisons(lines)
    return (
        [figure for one in main for figure in (*_losses(one, "loss"), *_lrs_over_scale(one))],
        [figure for one in sweeps for figure in (*_losses(one, "lrs"), *_lrs_over_scale(one))],
    )


def comparisons(lines: Sequence[Line]) -> tuple[list[Comparison], list[Comparison]]:
    """What can be compared at several scales, of each group of lines that share an attention norm or a method: its
    methods at one strength each; and each method that has several strengths, with the baseline."""
    main: list[Comparison] = []
    sweeps: list[Comparison] = []
    for group in dict.fromkeys(line.of for line in lines):
        of_group = [line for line in lines if line.of == group and line.curve.points]
        if len({line.curve.scale for line in of_group}) < 2:
            continue
        by_name: dict[str, list[Line]] = {}
        for line in of_group:
            by_name.setdefault(_without_strength(line), []).append(line)
        several = {name: of_name for name, of_name in by_name.items() if len(_gammas(of_name)) > 1}
        chosen = {name: _main_strength(of_name) for name, of_name in several.items()}
        at_one = [
            replace(line, name=name)
            for name, of_name in by_name.items()
            for line in of_name
            if line.curve.gamma == chosen.get(name, line.curve.gamma)
        ]
        compared = "attention norm" if len({line.curve.method for line in at_one}) == 1 else "method"
        main.append(
            Comparison(of=group, lines=_told_apart(at_one), colors=compared, note=_chosen(several, chosen)),
        )
        for name, of_name in several.items():
            of = f"{group}, {name}" if group else name
            sweeps.append(Comparison(of=of, lines=_sweep(of_name, of_group), colors="strength"))
    return main, sweeps


def _gammas(lines: Iterable[Line]) -> list[float]:
    return sorted({line.curve.gamma for line in lines if line.curve.gamma is not None})


def _without_strength(line: Line) -> str:
    strength = label(line.curve.method, line.curve.gamma).removeprefix(line.curve.method)
    return line.name.replace(strength, "", 1) if strength else line.name


def _strength(line: Line, gamma: float) -> str:
    """E.g. ``gamma=0.1``."""
    return label(line.curve.method, gamma).removeprefix(line.curve.method).strip(" ()")


def _main_strength(lines: Sequence[Line]) -> float:
    """Of a method's lines: the strength at most scales; of several, the one nearest to its default."""
    method = METHODS.get(lines[0].curve.method)
    default = (method and method.default_gamma) or math.nan

    def rank(gamma: float) -> tuple[int, float]:
        scales = sum(line.curve.gamma == gamma for line in lines)
        return -scales, abs(math.log(gamma / default)) if gamma / default > 0 else math.inf

    return min(_gammas(lines), key=rank)


def _chosen(lines: dict[str, list[Line]], chosen: dict[str, float]) -> str:
    """E.g. ``z-loss and mu-loss at gamma=0.0001.``"""
    by_strength: dict[str, list[str]] = {}
    for name, gamma in chosen.items():
        by_strength.setdefault(_strength(lines[name][0], gamma), []).append(name)
    said = [f"{listed(names)} at {strength}" for strength, names in by_strength.items()]
    return f"{listed(said)}." if said else ""


def _told_apart(lines: Sequence[Line]) -> tuple[Line, ...]:
    """Those that share a color, by dash and shape."""
    alike: dict[str, list[str]] = {}
    found = []
    for line in lines:
        names = alike.setdefault(line.color, [])
        if line.name not in names:
            names.append(line.name)
        rank = names.index(line.name)
        found.append(replace(line, dash=DASHES[rank % len(DASHES)], shape=SHAPES[rank % len(SHAPES)]))
    return tuple(found)


def _sweep(lines: Sequence[Line], of_group: Sequence[Line]) -> tuple[Line, ...]:
    """Each strength with a look of its own, after the baseline of the same study and attention norm."""
    gammas = _gammas(lines)
    last = len(STRENGTH_COLORS) - 1
    of_gamma = {gamma: STRENGTH_COLORS[round(rank * last / (len(gammas) - 1))] for rank, gamma in enumerate(gammas)}
    strengths = [
        replace(
            line,
            name=_strength(line, line.curve.gamma),
            color=of_gamma[line.curve.gamma],
            dash=DASHES[0],
            shape=SHAPES[gammas.index(line.curve.gamma) % len(SHAPES)],
        )
        for line in lines
        if line.curve.gamma is not None
    ]
    same = {(line.curve.study, line.curve.attention_norm) for line in lines}
    baselines = [
        replace(line, name="baseline", dash=DASHES[1], shape=SHAPES[0])
        for line in of_group
        if line.curve.method == "baseline" and (line.curve.study, line.curve.attention_norm) in same
    ]
    return (*baselines, *strengths)


def mean_facts(lines: Iterable[Line]) -> pd.DataFrame:
    """One row a learning rate of a line with a result there: scale, label, lr, loss (the mean over the seeds, NaN if
    one of them has no result), seeds, diverged (so many of them), l_init."""
    rows = []
    for line in lines:
        diverged = Counter(point.lr for point in line.curve.points if point.diverged)
        seeds = Counter(point.lr for point in line.curve.points)
        rows += [
            {
                "scale": line.curve.scale,
                "label": line.name,
                "lr": lr,
                "loss": round(mean, DECIMALS),
                "seeds": seeds[lr],
                "diverged": diverged[lr],
                "l_init": round(line.curve.l_init, DECIMALS),
            }
            for lr, mean in zip(line.curve.lr, line.curve.mean, strict=True)
            if seeds[lr]
        ]
    return pd.DataFrame(rows, columns=["scale", "label", "lr", "loss", "seeds", "diverged", "l_init"])


def _losses(comparison: Comparison, section: Section) -> list[Figure]:
    """One figure, or none where not one learning rate has a result of every seed."""
    facts = mean_facts(comparison.lines)
    if facts["loss"].isna().all():
        return []
    scales = list(dict.fromkeys(facts["scale"]))
    cells, diverged = int(facts["seeds"].sum()), int(facts["diverged"].sum())
    low, top, l_init = (float(value) for value in (facts["loss"].min(), facts["loss"].max(), facts["l_init"].max()))
    limit = low + FRAME * (l_init - low)
    above = 0 if diverged else int((facts["loss"] > limit).sum())
    top = limit if above else max(top, l_init) if diverged else top
    margin = 0.03 * (top - low) or 0.1
    scale_y = alt.Scale(domain=[low - margin, top + margin], nice=False)
    look = {scale: DASHES[i % len(DASHES)] for i, scale in enumerate(scales)}
    marks = {scale: SHAPES[i % len(SHAPES)] for i, scale in enumerate(scales)}
    base = chart_of("facts").encode(
        x=log_axis(facts, "lr", "learning rate"),
        y=alt.Y("loss:Q", title=LOSS_TITLE, scale=scale_y),
        color=colors(comparison.lines),
        detail="scale:N",
    )
    shown = tooltip("label:N", "scale:N", "lr:Q", "seeds:Q", "diverged:Q", loss=".4f")
    legend = alt.Legend(symbolFillColor=SYMBOL_COLOR, symbolStrokeColor=SYMBOL_COLOR)
    layers = [
        base.mark_line(strokeWidth=1.5, clip=True).encode(
            strokeDash=alt.StrokeDash("scale:N", title=None, scale=by_name(look))
        ),
        base.transform_filter("!datum.diverged")
        .mark_point(filled=True, size=35, opacity=1, clip=True)
        .encode(shape=alt.Shape("scale:N", title=None, scale=by_name(marks), legend=legend), tooltip=shown),
    ]
    if diverged:
        crosses = base.transform_filter("datum.diverged").mark_point(shape=CROSS, size=60, strokeWidth=2.5, opacity=1)
        layers.append(crosses.encode(y=alt.Y("l_init:Q", scale=scale_y), tooltip=shown))
    sentences = (
        f"Color is the {comparison.colors}, the symbol is the scale.",
        comparison.note,
        "Points are means over seeds." if facts["seeds"].max() > 1 else "",
        f"A cross at l_init stands where cells diverged: {diverged} of {cells}." if diverged else "",
        f"Above the frame, up to {facts['loss'].max():.2f}: {above} of {len(facts)} points." if above else "",
    )
    return [
        Figure(
            name=_named("loss-scales", comparison.of),
            title=_titled("Final loss over learning rate, all scales", comparison),
            caption=" ".join(filter(None, sentences)),
            view=None,
            section=section,
            spec=spec_of(layers, {"facts": facts}),
        )
    ]


def _lrs_over_scale(comparison: Comparison) -> list[Figure]:
    """One figure, or none where there are not two scales with an LRS."""
    lines = [line for line in comparison.lines if line.curve.LRS is not None]
    facts = lrs_facts(lines)
    scales = list(dict.fromkeys(facts["scale"]))
    if len(scales) < 2:
        return []
    sizes = [_size(scale) for scale in scales]
    if any(math.isnan(size) for size in sizes):
        x = alt.X("scale:O", title="scale", sort=scales, axis=alt.Axis(labelAngle=0))
    else:
        facts = facts.assign(size=facts["scale"].map(dict(zip(scales, sizes, strict=True))))
        x = log_axis(facts, "size", "model size (parameters)", label="format(datum.value, '~s')")
    base = chart_of("facts").encode(x=x, y=lrs_axis(facts), color=colors(lines))
    return [
        Figure(
            name=_named("lrs-scale", comparison.of),
            title=_titled("LRS over scale", comparison),
            caption="Lower is less sensitive to the learning rate. Bars are 95 % intervals, where there are several "
            f"seeds. {comparison.note}".rstrip(),
            view=None,
            section="lrs",
            spec=spec_of(
                [
                    base.mark_rule().encode(y=alt.Y("low:Q"), y2=alt.Y2("high:Q")),
                    base.mark_line().encode(strokeDash=dashes(lines)),
                    base.mark_point(filled=True, size=60, opacity=1).encode(shape=shapes(lines), tooltip=LRS_TOOLTIP),
                ],
                {"facts": facts},
            ),
        )
    ]


def _size(scale: str) -> float:
    """The number of parameters that a scale is named by; NaN if it is not."""
    found = SIZE.fullmatch(scale)
    return float(found[1]) * {"M": 1e6, "B": 1e9}[found[2]] if found else math.nan


def _named(kind: str, of: str) -> str:
    return f"{kind}-{of}" if of else kind


def _titled(title: str, comparison: Comparison) -> str:
    if comparison.colors == "strength":
        return f"{title}, strengths of {comparison.of}"
    return f"{title}, {comparison.of}" if comparison.of else title
