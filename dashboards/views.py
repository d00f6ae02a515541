"""Groups curves into charts, and gives each curve a name and a line style.

A chart compares methods under one attention norm or, if a study has more norms than methods, attention norms under one
method. Color encodes what is compared, consistently across all figures of a study (Okabe and Ito's palette, which is
safe for color-blind readers). Dash and shape distinguish lines of the same color: the gammas of a method, norms of the
same kind, or studies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from typing import TYPE_CHECKING, Literal

from dashboards.factors import axis_title, display_names, varied
from search_spaces.attention_norms import ATTENTION_NORMS
from search_spaces.factors import CurveKey, format_factor, to_text
from search_spaces.methods import label, with_factors

if TYPE_CHECKING:  # imports pandas, for half a second, and a driver needs only the colors of its runs
    from dashboards.sensitivity import CurveFacts

GREY = "#8a8a8a"
"""The color of the reference; visible on both a white and a black background."""
COLORS = {
    "baseline": GREY,
    "z-loss": "#e69f00",
    "mu-loss": "#0072b2",
    "mu-centering": "#009e73",
    "soft-cap": "#d55e00",
    "max-z": "#cc79a7",
}
UNKNOWN_COLOR = "#56b4e9"
FACTOR_COLORS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9")
"""For the values of a factor in a study of one method; report.js colors by them too."""
DASHES = ((1, 0), (7, 3), (2, 2), (9, 3, 2, 3))
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "triangle-left", "triangle-right")


@dataclass(frozen=True, kw_only=True)
class Line:
    """A curve with its name and line style."""

    curve: CurveFacts
    name: str
    """The name in the legend."""
    group: str
    """What the lines of its chart share besides the scale: an attention norm, a method, or nothing."""
    color: str
    """A hexadecimal RGB value."""
    dash: tuple[int, ...] = DASHES[0]
    shape: str = SHAPES[0]


@dataclass(frozen=True, kw_only=True)
class View:
    """The lines of one chart, all of one scale."""

    name: str
    """E.g. ``16M``, ``tiny, qkv-norm``, ``tiny, mu-centering``."""
    lines: tuple[Line, ...]

    @property
    def axis_title(self) -> str:
        return axis_title(self.lines[0].curve.lr_factor)


def lines(curves: Sequence[CurveFacts]) -> list[Line]:
    norms = {curve.attention_norm for curve in curves}
    several = len({curve.study for curve in curves}) > 1
    shown = varied(curve.factors for curve in curves)
    colored_by, color_of_curve = color_scheme(curves)
    lines = []
    for curve in curves:
        method = label(curve.method, curve.gamma)
        factors = {name: value for name, value in curve.factors if name in shown}
        if len(norms) == 1:
            name = to_text(factors) if colored_by == "factor" and not several else curve.label
            group = ""
        elif colored_by == "attention_norm":
            name = ", ".join(filter(None, (curve.attention_norm, to_text(factors))))
            group = method
        else:
            name = with_factors(method, curve.method, factors)
            group = curve.attention_norm
        if several and len(norms) > 1:
            name = f"{curve.study}: {name}"
        lines.append(Line(curve=curve, name=name, group=group, color=color_of_curve(curve)))
    return assign_styles(lines)


def color_scheme(
    curves: Sequence[CurveFacts | CurveKey],
) -> tuple[Literal["method", "attention_norm", "factor"], Callable[[CurveFacts | CurveKey], str]]:
    """What the colors of these curves encode, and the color of a curve in hexadecimal."""
    norms = {curve.attention_norm for curve in curves}
    methods = {(curve.method, curve.gamma) for curve in curves}
    if len(norms) > len(methods):
        return "attention_norm", lambda curve: color_of_norm(curve.attention_norm)
    shown = varied(curve.factors for curve in curves)
    if shown and len(methods) == len(norms) == 1:
        values = dict.fromkeys(dict(curve.factors).get(shown[0]) for curve in curves)
        colors = dict(zip(values, cycle(FACTOR_COLORS), strict=False))
        return "factor", lambda curve: colors.get(dict(curve.factors).get(shown[0]), UNKNOWN_COLOR)
    return "method", lambda curve: color_of(curve.method)


def assign_styles(lines: Iterable[Line]) -> list[Line]:
    """``lines`` with a dash and shape that distinguish lines of the same color."""
    ranks_by_color: dict[str, dict[str, int]] = {}
    styled = []
    for line in lines:
        ranks = ranks_by_color.setdefault(line.color, {})
        rank = ranks.setdefault(line.name, len(ranks))
        styled.append(replace(line, dash=DASHES[rank % len(DASHES)], shape=SHAPES[rank % len(SHAPES)]))
    return styled


def views(lines: Iterable[Line]) -> list[View]:
    """The lines that have a result, grouped by chart."""
    lines_by_view: dict[str, list[Line]] = {}
    for line in lines:
        if line.curve.points:
            name = f"{line.curve.scale}, {line.group}" if line.group else line.curve.scale
            lines_by_view.setdefault(name, []).append(line)
    return [View(name=name, lines=tuple(of_view)) for name, of_view in lines_by_view.items()]


def filters_by_line(lines: Sequence[Line]) -> dict[str, dict[str, str]]:
    """What a reader can select lines by: gamma, the factors that differ and, with factors, the method.

    By filter, the value of each line; a line that a filter does not concern has none. A filter is left out if lines of
    the same name differ in its value, because the views separate the values in that case.
    """
    names = varied(line.curve.factors for line in lines)
    found = {"gamma": {name: f"{gamma:g}" for name, gamma in _gammas_by_line(lines).items()}}
    for name, heading in display_names(names, taken=("gamma", "method")).items():
        of_lines = [(line.name, dict(line.curve.factors)) for line in lines]
        found[heading] = {line: format_factor(values[name]) for line, values in of_lines if name in values}
        if any(name in values and found[heading][line] != format_factor(values[name]) for line, values in of_lines):
            del found[heading]
    if names and len({line.curve.method for line in lines}) > 1:
        found["method"] = {line.name: line.curve.method for line in lines}
    return {name: by_line for name, by_line in found.items() if by_line}


def _gammas_by_line(lines: Sequence[Line]) -> dict[str, float]:
    """The gamma of each line, by name, for methods that have several gammas.

    Empty if lines of the same name differ in gamma, because the views separate the gammas in that case.
    """
    of_method: dict[str, set[float | None]] = {}
    of_name: dict[str, set[float | None]] = {}
    for line in lines:
        of_method.setdefault(line.curve.method, set()).add(line.curve.gamma)
        of_name.setdefault(line.name, set()).add(line.curve.gamma)
    if any(len(gammas) > 1 for gammas in of_name.values()):
        return {}
    return {
        line.name: line.curve.gamma
        for line in lines
        if line.curve.gamma is not None and len(of_method[line.curve.method]) > 1
    }


def color_of(method: str) -> str:
    return COLORS.get(method, UNKNOWN_COLOR)


def color_of_norm(name: str) -> str:
    """The color of an attention norm, in hexadecimal: one per kind, because sixteen colors look too much alike."""
    variant = ATTENTION_NORMS.get(name)
    if variant is None:
        return UNKNOWN_COLOR
    kinds = (
        (variant.norms_v, "#009e73"),
        (variant.norms_qk, "#0072b2"),
        (variant.softmax != "plain" or variant.qk_clip, "#e69f00"),
        (variant.sigma_reparam or variant.layer_scale, "#cc79a7"),
        (variant.norms_outputs, "#d55e00"),
    )
    return next((color for has, color in kinds if has), GREY)
