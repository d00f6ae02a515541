"""Writes the figures and tables of a report in every format, with figures sized for a paper."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from uuid import uuid4

from dashboards.charts import LEGEND, VEGA_LITE, Figure
from dashboards.drawing import POINTS_PER_PIXEL, Drawing, can_draw, draw
from dashboards.tables import RENDERERS, Sheet
from search_spaces.errors import InvalidInput

FIGURE_FORMATS = ("png", "svg", "pdf")
DATA_FORMATS = ("csv", "parquet")
"""Formats for the table of runs, which is too long to be read as Markdown or LaTeX."""
NOT_DRAWN = "No figures were drawn because vl-convert-python is not installed (pip install vl-convert-python)."
PAGE_AND_TABLES = ("html", *RENDERERS)
FORMATS = ("html", *FIGURE_FORMATS, *RENDERERS)

WIDTHS_IN = {"": 6.9, "-column": 3.3}
"""Width of a figure over two columns and over one, by the suffix of its file name."""
HEIGHTS_PX = {"": 300, "-column": 230}
"""Height of the plot area, by the same suffix."""
CHARACTER_PX, SYMBOL_PX = 6, 32
"""Width of a legend entry in pixels: an average character, and the symbol with its padding."""
AXIS = {"labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": 400}


def select_formats(
    names: Mapping[str, Collection[str]], formats: Collection[str], only: Sequence[str]
) -> dict[str, list[str]]:
    """The formats to write for each name: those of ``formats`` that it supports, if a glob of ``only`` matches it.

    Raises:
        InvalidInput: a format is unknown, or a glob matches nothing that exists in these formats.
    """
    for form in formats:
        if form not in FORMATS:
            raise InvalidInput("--format", form, "is not a valid format", f"choose from {', '.join(FORMATS)}")
    available = {name: [form for form in formats if form in supported] for name, supported in names.items()}
    available = {name: forms for name, forms in available.items() if forms}
    remedy = f"choose from {', '.join(available)}"
    for glob in only:
        if not any(fnmatchcase(name, glob) for name in available):
            raise InvalidInput("--only", glob, f"matches nothing to write as {', '.join(formats)}", remedy)
    return {
        name: forms for name, forms in available.items() if not only or any(fnmatchcase(name, glob) for glob in only)
    }


def file_stem(figure: Figure) -> str:
    """The stem of a figure's file names. Names may come from outside, so nothing in them may leave the folder."""
    return re.sub(r"[^\w.-]+", "-", figure.name)


def drawings(figure: Figure, folder: Path, formats: Iterable[str] = FIGURE_FORMATS) -> Iterator[Drawing]:
    """A figure in each width, without its title, which belongs in the caption of a paper."""
    for ending, width_in in WIDTHS_IN.items():
        size: dict[str, Any] = {
            "width": width_in * 72 / POINTS_PER_PIXEL,
            "height": HEIGHTS_PX[ending],
            "autosize": {"type": "fit-x", "contains": "padding"},
            "background": "white",
            "padding": 2,
        }
        columns = max(1, int(size["width"] / (SYMBOL_PX + CHARACTER_PX * _longest_label(figure))))
        legend = LEGEND | {"columns": columns, "labelFontSize": AXIS["labelFontSize"]}
        config = figure.spec["config"] | {"legend": legend, "axis": AXIS}
        stem = folder / f"{file_stem(figure)}{ending}"
        spec = figure.spec | size | {"config": config}
        yield Drawing(spec=spec, vl_version=VEGA_LITE, stem=stem, formats=tuple(formats))


def save_figure(figure: Figure, folder: Path, formats: Iterable[str] = FIGURE_FORMATS) -> list[Path]:
    """Write a figure in each width and format.

    Returns the paths, none unless the figure package is installed.
    """
    if not can_draw():
        return []
    folder.mkdir(parents=True, exist_ok=True)
    return [path for drawing in drawings(figure, folder, formats) for path in draw(drawing)]


def write_atomically(path: Path, text: str) -> None:
    """Replace a file that other processes may be reading or writing."""
    new = path.with_name(f".{path.name}-{uuid4().hex}")
    try:
        new.write_text(text, encoding="utf-8")
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)  # a partial file, if the disk is full


def save_sheet(sheet: Sheet, folder: Path, formats: Iterable[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for form in formats:
        (folder / f"{sheet.name}.{form}").write_bytes(RENDERERS[form](sheet))


def _longest_label(figure: Figure) -> int:
    colors = [layer["encoding"].get("color", {}) for layer in figure.spec["layer"]]
    return max((len(str(name)) for color in colors for name in color.get("scale", {}).get("domain", ())), default=0)
