"""Draws Vega-Lite specifications as files with vl-convert, in several processes if there are many.

A drawing process imports this file alone. It needs neither pandas nor Altair, so it starts in a tenth of a second.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dashboards.processes import process_pool

POINTS_PER_PIXEL = 0.65
"""Points on paper per pixel of a figure; text of 11 and 12 pixels becomes 7 and 8 points high."""
PPI = 300
"""Resolution of a PNG."""
SIZE = re.compile(r'\b(width|height)="([\d.]+)"')
"""The first two matches in an SVG are the size of the whole image."""
MAX_PROCESSES = 8
"""Each of them holds about 250 MB."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One figure at one width, and the files to write it to."""

    spec: dict[str, Any]
    """Vega-Lite, with its size in pixels."""
    vl_version: str
    """The Vega-Lite version of ``spec``, in vl-convert's notation."""
    stem: Path
    """The path of the files without the format."""
    formats: tuple[str, ...]

    @property
    def paths(self) -> list[Path]:
        return [self.stem.with_name(f"{self.stem.name}.{form}") for form in self.formats]


def can_draw() -> bool:
    """Whether the package that draws figures is installed; it is large, and a training machine may lack it."""
    return find_spec("vl_convert") is not None


def draw(drawing: Drawing) -> list[Path]:
    """Write the files of one drawing and return their paths.

    Raises:
        OSError: the folder cannot be written.
    """
    import vl_convert

    svg = vl_convert.vegalite_to_svg(drawing.spec, vl_version=drawing.vl_version)
    # The viewBox stays in pixels, which scales the drawing.
    svg = SIZE.sub(lambda match: f'{match[1]}="{float(match[2]) * POINTS_PER_PIXEL:g}"', svg, count=2)
    for path, form in zip(drawing.paths, drawing.formats, strict=True):
        path.write_bytes(_convert(svg, form))
    return drawing.paths


def draw_all(drawings: Sequence[Drawing], processes: int = 1) -> Iterator[list[Path]]:
    """Draw in up to ``processes`` processes, which must be one in a script that does not guard its main module.

    Yields the paths of each drawing, in order, as soon as it has been drawn.
    """
    processes = min(processes, MAX_PROCESSES, len(drawings))
    if processes < 2:
        yield from map(draw, drawings)
        return
    with process_pool(processes) as pool:
        yield from pool.map(draw, drawings)


def _convert(svg: str, form: str) -> bytes:
    import vl_convert

    if form == "png":
        return vl_convert.svg_to_png(svg, scale=1, ppi=PPI)
    if form == "pdf":  # treats a plain number as points; SVG treats it as pixels of 1/96 inch
        return vl_convert.svg_to_pdf(svg)
    return SIZE.sub(r'\1="\2pt"', svg, count=2).encode()
