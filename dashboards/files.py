"""What a report writes beside its page: every figure and every table in every format, of the sizes of a paper."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

from dashboards.charts import LEGEND, VEGA_LITE, Figure
from dashboards.tables import RENDERERS, Sheet
from search_spaces.errors import InvalidInput

FIGURE_FORMATS = ("png", "svg", "pdf")
DATA_FORMATS = ("csv", "parquet")
"""Of the runs, which are too many to read."""
NOT_DRAWN = "No figures were drawn: vl-convert-python is not installed here (pip install vl-convert-python)."
FORMATS = ("html", *FIGURE_FORMATS, *RENDERERS)

POINT = 0.65
"""Points on paper of a pixel of a figure: its text of 11 and 12 pixels becomes 7 and 8 points high."""
PPI = 300
"""Resolution of a PNG."""
WIDTHS = {"": 6.9, "-column": 3.3}
"""Inches of a figure over two columns and over one, by what the names of its files end in."""
HEIGHT = {"": 300, "-column": 230}
"""Pixels of what the axes enclose."""
CHARACTER, SYMBOL = 6, 32
"""Pixels of a legend's entry: a character on average, and the symbol with the gaps."""
SIZE = re.compile(r'\b(width|height)="([\d.]+)"')
"""The first two of an SVG are those of the whole."""
AXIS = {"labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": 400}


def can_draw() -> bool:
    """Whether the package that draws figures is installed. It is large, and a machine for training may lack it."""
    return find_spec("vl_convert") is not None


def chosen(names: Mapping[str, Collection[str]], formats: Collection[str], only: Sequence[str]) -> dict[str, list[str]]:
    """The formats that are wanted of each name: those of ``formats`` that it has, if a glob of ``only`` matches it.

    Raises:
        InvalidInput: no such format; a glob matches nothing that there is in these formats.
    """
    for form in formats:
        if form not in FORMATS:
            raise InvalidInput("--format", form, "is no format", f"choose from {', '.join(FORMATS)}")
    there = {name: [form for form in formats if form in has] for name, has in names.items()}
    there = {name: forms for name, forms in there.items() if forms}
    remedy = f"there are {', '.join(there)}"
    for glob in only:
        if not any(fnmatchcase(name, glob) for name in there):
            raise InvalidInput("--only", glob, f"matches nothing to write as {', '.join(formats)}", remedy)
    return {name: forms for name, forms in there.items() if not only or any(fnmatchcase(name, glob) for glob in only)}


def stem(figure: Figure) -> str:
    """What the files of a figure are named by. A view has a name from elsewhere: nothing in it may lead out of the
    folder."""
    return re.sub(r"[^\w.-]+", "-", figure.name)


def save(figure: Figure, folder: Path, formats: Iterable[str] = FIGURE_FORMATS) -> list[Path]:
    """Write a file of each width and format, without the title, which a caption says; their paths.

    None where nothing ``can_draw``.
    """
    if not can_draw():
        return []
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for ending in WIDTHS:
        svg = _svg(figure, ending)
        for form in formats:
            path = folder / f"{stem(figure)}{ending}.{form}"
            path.write_bytes(_converted(svg, form))
            paths.append(path)
    return paths


def write_at_once(path: Path, text: str) -> None:
    """In place of what is there, which others read, or write, at the same time."""
    new = path.with_name(f".{path.name}-{uuid4().hex}")
    try:
        new.write_text(text, encoding="utf-8")
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)  # a half of it, where there is no room


def save_sheet(sheet: Sheet, folder: Path, formats: Iterable[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for form in formats:
        (folder / f"{sheet.name}.{form}").write_bytes(RENDERERS[form](sheet))


def _svg(figure: Figure, ending: str) -> str:
    """As wide as its place on paper and as high as its legend needs, in points."""
    import vl_convert

    size: dict[str, Any] = {
        "width": WIDTHS[ending] * 72 / POINT,
        "height": HEIGHT[ending],
        "autosize": {"type": "fit-x", "contains": "padding"},
        "background": "white",
        "padding": 2,
    }
    columns = max(1, int(size["width"] / (SYMBOL + CHARACTER * _longest(figure))))
    legend = LEGEND | {"columns": columns, "labelFontSize": AXIS["labelFontSize"]}
    config = figure.spec["config"] | {"legend": legend, "axis": AXIS}
    svg = vl_convert.vegalite_to_svg(figure.spec | size | {"config": config}, vl_version=VEGA_LITE)
    # The viewBox goes on to measure in pixels, and so scales what is drawn.
    return SIZE.sub(lambda found: f'{found[1]}="{float(found[2]) * POINT:g}"', svg, count=2)


def _longest(figure: Figure) -> int:
    """Characters of the longest entry of the legend."""
    colors = [layer["encoding"].get("color", {}) for layer in figure.spec["layer"]]
    return max((len(str(name)) for color in colors for name in color.get("scale", {}).get("domain", ())), default=0)


def _converted(svg: str, form: str) -> bytes:
    import vl_convert

    if form == "png":
        return vl_convert.svg_to_png(svg, scale=1, ppi=PPI)
    if form == "pdf":  # takes a number for points, as SVG does for pixels of 1/96 inch
        return vl_convert.svg_to_pdf(svg)
    return SIZE.sub(r'\1="\2pt"', svg, count=2).encode()
