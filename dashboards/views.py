"""Which curves stand in one chart, what each is called there, and how it is drawn.

A chart compares methods under one attention norm, or, where a study has more norms than methods, attention norms
under one method. Colour is what is compared (Okabe and Ito's palette, safe for colour-blind readers), the same in
every figure of a study; dash and shape tell apart what shares a colour: the strengths of a method, the norms of a
kind, the studies.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dashboards.sensitivity import CurveFacts
from search_spaces.attention_norms import ATTENTION_NORMS
from search_spaces.methods import label

GREY = "#8a8a8a"
"""Of what the others are compared with: neither black nor white, so that it is seen on both backgrounds."""
COLORS = {
    "baseline": GREY,
    "z-loss": "#e69f00",
    "mu-loss": "#0072b2",
    "mu-centering": "#009e73",
    "soft-cap": "#d55e00",
    "max-z": "#cc79a7",
}
UNKNOWN_COLOR = "#56b4e9"
DASHES = ((1, 0), (7, 3), (2, 2), (9, 3, 2, 3))
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "triangle-left", "triangle-right")


@dataclass(frozen=True, kw_only=True)
class Line:
    """A curve as it is drawn."""

    curve: CurveFacts
    name: str
    """What the legend calls it."""
    of: str
    """What it shares with the other lines of its chart, beside the scale: an attention norm, a method, or nothing."""
    color: str
    """Hexadecimal."""
    dash: tuple[int, ...]
    shape: str


@dataclass(frozen=True, kw_only=True)
class View:
    """The lines of one chart, all of one scale."""

    name: str
    """E.g. ``16M``, ``tiny, qkv-norm``, ``tiny, mu-centering``."""
    lines: tuple[Line, ...]


def lines(curves: Sequence[CurveFacts]) -> list[Line]:
    """Every curve with its name and looks, in their order."""
    norms = {curve.attention_norm for curve in curves}
    methods = {(curve.method, curve.gamma) for curve in curves}
    compares_norms = len(norms) > len(methods)
    several = len({curve.study for curve in curves}) > 1
    drawn = []
    alike: dict[str, list[str]] = {}
    for curve in curves:
        method = label(curve.method, curve.gamma)
        if len(norms) == 1:
            name, of, color = curve.label, "", color_of(curve.method)
        elif compares_norms:
            name, of, color = curve.attention_norm, method, color_of_norm(curve.attention_norm)
        else:
            name, of, color = method, curve.attention_norm, color_of(curve.method)
        if several and len(norms) > 1:
            name = f"{curve.study}: {name}"
        of_color = alike.setdefault(color, [])
        if name not in of_color:
            of_color.append(name)
        rank = of_color.index(name)
        dash, shape = DASHES[rank % len(DASHES)], SHAPES[rank % len(SHAPES)]
        drawn.append(Line(curve=curve, name=name, of=of, color=color, dash=dash, shape=shape))
    return drawn


def views(drawn: Iterable[Line]) -> list[View]:
    """The lines with a result, those of one chart together."""
    found: dict[str, list[Line]] = {}
    for line in drawn:
        if line.curve.points:
            name = f"{line.curve.scale}, {line.of}" if line.of else line.curve.scale
            found.setdefault(name, []).append(line)
    return [View(name=name, lines=tuple(of_view)) for name, of_view in found.items()]


def strengths(drawn: Sequence[Line]) -> dict[str, float]:
    """The strength of each line that is one of several of its method, by the line's name.

    Empty where lines of one name differ in it: there the views tell the strengths apart.
    """
    of_method: dict[str, set[float | None]] = {}
    of_name: dict[str, set[float | None]] = {}
    for line in drawn:
        of_method.setdefault(line.curve.method, set()).add(line.curve.gamma)
        of_name.setdefault(line.name, set()).add(line.curve.gamma)
    if any(len(gammas) > 1 for gammas in of_name.values()):
        return {}
    return {
        line.name: line.curve.gamma
        for line in drawn
        if line.curve.gamma is not None and len(of_method[line.curve.method]) > 1
    }


def color_of(method: str) -> str:
    """The one colour of a method, hexadecimal."""
    return COLORS.get(method, UNKNOWN_COLOR)


def color_of_norm(name: str) -> str:
    """The colour of an attention norm, hexadecimal: one for each kind, as thirteen could not be told apart."""
    variant = ATTENTION_NORMS.get(name)
    if variant is None:
        return UNKNOWN_COLOR
    kinds = (
        (variant.norms_v, "#009e73"),
        (variant.norms_qk, "#0072b2"),
        (variant.softmax != "plain", "#e69f00"),
        (variant.sigma_reparam or variant.layer_scale, "#cc79a7"),
    )
    return next((color for has, color in kinds if has), GREY)
