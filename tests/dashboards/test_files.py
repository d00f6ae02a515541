"""Figure files in paper sizes, and the selection of what is written."""

from __future__ import annotations

import math
import re
import struct
import sys
from collections.abc import Iterator
from multiprocessing import active_children
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
from made_up import GRID, curve, study

from dashboards.charts import Figure
from dashboards.drawing import draw_all
from dashboards.figures import figures
from dashboards.files import FIGURE_FORMATS, FORMATS, NOT_DRAWN, drawings, save_figure, select_formats
from dashboards.report import write_report
from dashboards.sensitivity import curves
from dashboards.vega import Script
from dashboards.views import lines
from search_spaces.errors import InvalidInput


def figure_of(**changes: object) -> Figure:
    return figures(lines(curves(study(curve([3.5, 3.0, 3.2, math.nan], **changes)), GRID)))[0]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return save_figure(figure_of(), tmp_path_factory.mktemp("figures") / "new" / "folder")


def test_a_figure_is_written_for_two_columns_and_for_one(saved: list[Path]) -> None:
    names = [f"loss-tiny{ending}.{form}" for ending in ("", "-column") for form in FIGURE_FORMATS]
    assert [path.name for path in saved] == names


@pytest.mark.parametrize(("first", "inches"), [(0, 6.9), (3, 3.3)])
def test_every_format_is_as_wide_as_its_space_on_paper(saved: list[Path], first: int, inches: float) -> None:
    png, svg, pdf = saved[first : first + 3]
    width = struct.unpack(">I", png.read_bytes()[16:20])[0]
    assert width / 300 == pytest.approx(inches, abs=0.01)
    assert ElementTree.parse(svg).getroot().attrib["width"] == f"{inches * 72:g}pt"
    (box,) = re.findall(rb"/MediaBox \[0 0 ([\d.]+)", pdf.read_bytes())
    assert float(box) / 72 == pytest.approx(inches, abs=0.01)


@pytest.mark.parametrize("first", [0, 3])
def test_the_text_of_a_figure_is_legible_on_paper(saved: list[Path], first: int) -> None:
    root = ElementTree.parse(saved[first + 1]).getroot()
    scale = float(root.attrib["width"].removesuffix("pt")) / float(root.attrib["viewBox"].split()[2])
    sizes = {
        float(element.attrib["font-size"].removesuffix("px")) * scale
        for element in root.iter()
        if "font-size" in element.attrib
    }
    assert sizes
    assert min(sizes) > 7, f"text of {min(sizes):.1f} pt is too small for a paper"
    words = "".join(root.itertext())
    for word in ("learning rate", "baseline", "l_init 6.93"):
        assert word in words


def texts(element: ElementTree.Element, x: float = 0.0) -> Iterator[tuple[float, str]]:
    """Yields the x position in pixels and the content of every text."""
    moved = re.match(r"translate\(([-\d.]+)", element.attrib.get("transform", ""))
    x += float(moved[1]) if moved else 0.0
    if element.text:
        yield x, element.text
    for child in element:
        yield from texts(child, x)


def test_long_legend_entries_are_not_cut_off(tmp_path: Path) -> None:
    method = "a-method-from-elsewhere-with-a-name"
    records = [curve([3.5, 3.0, 3.2, 3.4], method=method, gamma=gamma) for gamma in (0.001, 0.002)]
    figure = figures(lines(curves(study(*records), GRID)))[0]
    for path in save_figure(figure, tmp_path, formats=("svg",)):
        root = ElementTree.parse(path).getroot()
        ends = [x + 5.5 * len(text) for x, text in texts(root) if text.startswith(method)]
        assert len(ends) == 2
        assert max(ends) < float(root.attrib["viewBox"].split()[2])


def test_a_scale_of_any_name_stays_in_the_folder(tmp_path: Path) -> None:
    for path in save_figure(figure_of(scale="../../up"), tmp_path / "figures", formats=("svg",)):
        assert path.parent == tmp_path / "figures"
        assert path.is_file()


THERE = {"report": ("html",), "runs": ("csv", "parquet"), "loss-16M": ("png", "pdf"), "LRS": ("csv", "tex")}


def test_everything_is_selected_by_default() -> None:
    assert select_formats(THERE, FORMATS, ()).keys() == THERE.keys()
    assert select_formats(THERE, ("csv", "png"), ()) == {"runs": ["csv"], "loss-16M": ["png"], "LRS": ["csv"]}
    assert select_formats(THERE, ("csv", "pdf"), ("loss-*", "L*")) == {"loss-16M": ["pdf"], "LRS": ["csv"]}


@pytest.mark.parametrize(
    ("formats", "only", "field", "there"),
    [
        (("gif",), (), "--format", "choose from html, png, svg, pdf, csv, parquet, md, tex"),
        (("pdf",), ("LRS",), "--only", "choose from loss-16M"),
        (FORMATS, ("loss-*", "nothing"), "--only", "choose from report, runs, loss-16M, LRS"),
    ],
)
def test_an_empty_selection_is_refused(formats: tuple[str, ...], only: tuple[str, ...], field: str, there: str) -> None:
    with pytest.raises(InvalidInput) as error:
        select_formats(THERE, formats, only)
    assert error.value.field == field
    assert error.value.remedy == there


def test_a_report_writes_only_what_is_selected(tmp_path: Path) -> None:
    runs = study(curve([3.5, 3.0, 3.2, 3.4]))
    folder = write_report(
        runs, tmp_path / "new", title="some", grid=GRID, formats=("svg", "parquet"), only=("l*", "runs")
    )
    assert folder == tmp_path / "new"
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {"figures/loss-tiny.svg", "figures/loss-tiny-column.svg", "runs.parquet"} | {
        f"figures/lrs-tiny{ending}.svg" for ending in ("", "-column")
    }
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "runs.parquet"), runs, check_dtype=False)


def test_a_report_has_figures_only_if_they_are_requested(tmp_path: Path) -> None:
    runs = study(curve([3.5, 3.0, 3.2, 3.4]))
    page = write_report(runs, tmp_path / "plain", title="some", grid=GRID)
    assert page.name == "report.html"
    assert not (tmp_path / "plain" / "figures").exists()
    assert "<code>figures/</code>" not in page.read_text()
    folder = write_report(runs, tmp_path / "only", title="some", grid=GRID, only=("loss-tiny",))
    assert len(list((folder / "figures").iterdir())) == 6, (
        "without --format, what --only names must be written in every format"
    )


def test_a_figure_and_a_table_of_one_name_are_both_written(tmp_path: Path) -> None:
    """The best learning rate over width is both a figure and a table."""
    runs = study(*(curve([3.5, 3.0, 3.2, 3.4], scale=scale) for scale in ("w96", "w192")))
    folder = write_report(runs, tmp_path, title="widths", formats=("svg", "csv"), only=("drift",))
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {"figures/drift.svg", "figures/drift-column.svg", "tables/drift.csv"}


def test_several_processes_draw_the_same_files(saved: list[Path], tmp_path: Path) -> None:
    todo = list(drawings(figure_of(), tmp_path, ("svg", "png")))
    drawn = [path for paths in draw_all(todo, processes=2) for path in paths]
    assert [path.name for path in drawn] == [
        f"loss-tiny{end}.{form}" for end in ("", "-column") for form in ("svg", "png")
    ]
    for path in drawn:
        assert path.read_bytes() == saved[0].with_name(path.name).read_bytes()


def test_an_error_in_a_drawing_process_stops_the_others(tmp_path: Path) -> None:
    todo = list(drawings(figure_of(), tmp_path / "missing", ("svg",)))
    with pytest.raises(FileNotFoundError):
        list(draw_all(todo, processes=2))
    assert not active_children()


def test_without_the_figure_package_a_report_has_only_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    runs = study(curve([3.5, 3.0, 3.2, 3.4]))
    page = write_report(runs, tmp_path, title="some", grid=GRID)
    assert NOT_DRAWN in page.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "runs.csv", "runs.parquet", "tables"]
    with Script() as script:
        assert script.text() == ""
    with pytest.raises(InvalidInput, match="vl-convert-python"):
        write_report(runs, tmp_path, title="some", grid=GRID, formats=("png",))
