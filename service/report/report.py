"""Writing reports: tables on the terminal, the page with its figures, the live page, and the comparison of two
sources."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import track

from dashboards.agreement import agreement, published_studies, terminal_tables
from dashboards.answer import answer
from dashboards.comparison import compare, comparison_tables
from dashboards.drawing import can_draw
from dashboards.factors import axis_title
from dashboards.files import FIGURE_FORMATS, NOT_DRAWN
from dashboards.processes import Submit, here, usable_cores
from dashboards.report import add_measurements, write_report
from dashboards.sensitivity import curves, studies
from dashboards.tables import sensitivity_table, terminal_table
from search_spaces.errors import InvalidInput
from search_spaces.factors import LR
from service.home.layout import Home
from service.report.sources import Source, gc_disabled, load

OLD_FIGURES = "The figures in {} are from an earlier report; --format svg, png or pdf draws them again."


@gc_disabled()
def report(
    source: Source,
    folder: Path | None,
    console: Console,
    formats: Sequence[str] = (),
    only: Sequence[str] = (),
    submit: Submit = here,
) -> Path:
    """Print the table and write page, tables and, if they are requested, figures; returns the path of the page, or of
    the folder without a page.

    Args:
        folder: where to write; default: ``source.folder``.
        formats: see ``dashboards.report.write_report``.
        only: see ``dashboards.report.write_report``.
        submit: see ``dashboards.report.write_report``.
    """
    found = curves(add_measurements(source.runs, source.context), source.grid)
    published = published_studies(source.runs)
    context, notes = replace(source.context, published=not published), source.notes
    replicated = agreement(curve for curve in found if curve.study in published)
    if replicated is None or len(replicated.curves) < len(found):
        axis = next((fact.lr_factor for fact in found), LR)
        what = "Learning-rate sensitivity" if axis == LR else f"Sensitivity to {axis_title(axis)}"
        title = f"{what}: {source.title}"
        console.print(terminal_table(sensitivity_table(found), title=title))
        console.print(f"{answer(found)}\n")
    if replicated is not None:
        context, notes = replace(context, agreement=replicated), (*notes, replicated.sentence)
        for table in terminal_tables(replicated):
            console.print(table)
    for note in notes:
        console.print(note)
    target = folder or source.folder
    try:
        page = _write(
            replace(source, context=context, notes=notes),
            target,
            formats,
            only=only,
            facts=found,
            submit=submit,
            processes=usable_cores(),
            track=partial(_track, console),
        )
    except OSError as error:
        raise InvalidInput("--out", str(target), f"cannot be written ({error.strerror})", "choose a folder") from error
    if not can_draw():
        console.print(NOT_DRAWN, soft_wrap=True, highlight=False)
    elif not only and not set(formats) & set(FIGURE_FORMATS) and (target / "figures").is_dir():
        console.print(OLD_FIGURES.format(target / "figures"), soft_wrap=True, highlight=False)
    console.print(f"report: {page.resolve()}", soft_wrap=True, highlight=False)
    return page


def _track(console: Console, drawn: Iterable[Any], total: int) -> Iterable[Any]:
    """Show on a terminal how many figures have been drawn."""
    return track(drawn, "drawing figures", total, console=console, transient=True, disable=not console.is_terminal)


def write_live_page(name: str, home: Home, refresh_s: int | None, folder: Path | None = None) -> Path:
    """Write only the page of a study, and return its path.

    Args:
        refresh_s: the interval at which the page reloads itself; None: never.
        folder: where to write; default: the report of the study.
    """
    source = load(name, home)
    live = replace(source, context=replace(source.context, refresh_s=refresh_s))
    return _write(live, folder or source.folder, ("html",))


def _write(source: Source, folder: Path, formats: Sequence[str], **options: Any) -> Path:
    return write_report(
        source.runs,
        folder,
        title=source.title,
        grid=source.grid,
        provenance=source.provenance,
        notes=source.notes,
        context=source.context,
        formats=formats,
        **options,
    )


def diff(before: Source, after: Source) -> list[RenderableType]:
    """Which curves moved between two sources, by how much, and which are in only one of them.

    Raises:
        InvalidInput: a source has several studies.
    """
    for source in (before, after):
        if studies(source.runs).nunique() > 1:
            raise InvalidInput("SOURCE", source.title, "has several studies", "give a source with one study")
    found = compare(*(curves(source.runs, source.grid) for source in (before, after)))
    names = (before.title, after.title) if before.title != after.title else ("before", "after")
    notes = [f"{name}: {note}" for name, source in zip(names, (before, after), strict=True) for note in source.left_out]
    return [*comparison_tables(found, *names), *notes]
