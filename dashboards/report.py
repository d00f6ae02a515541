"""Writes the report of a study: a self-contained folder with a page, figures, tables, and the runs behind them."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import altair as alt
import pandas as pd
from altair.utils.schemapi import debug_mode
from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from dashboards import agreement
from dashboards.analysis import Analysis, b_ratio_figures, cell_figures, cell_labels, representative_cells
from dashboards.answer import answer, best_by_scale
from dashboards.charts import CellFigure, Figure, Section, json_rows
from dashboards.drawing import Drawing, can_draw, draw_all
from dashboards.drift import drift_table, drifts
from dashboards.drift_figure import drift_figures, drift_texts
from dashboards.factors import axis_title, by_name
from dashboards.figures import figures, forecast_figures
from dashboards.files import (
    DATA_FORMATS,
    FIGURE_FORMATS,
    FORMATS,
    NOT_DRAWN,
    PAGE_AND_TABLES,
    drawings,
    file_stem,
    save_sheet,
    select_formats,
    write_atomically,
)
from dashboards.forecast import Forecast
from dashboards.given_up import given_up_text
from dashboards.importance import importance_figures, parallel_figures, start_importance
from dashboards.packing import ColumnStore
from dashboards.pareto import pareto_figures
from dashboards.processes import Submit, here
from dashboards.recommendation import recommendation
from dashboards.sensitivity import CurveFacts, Grid, curves, labels
from dashboards.steps import LAYER_NORMS, METRICS, Columns, at_end
from dashboards.surface import start_surfaces
from dashboards.tables import (
    COUNTED,
    RENDERERS,
    Sheet,
    b_ratio_table,
    cost_table,
    format_highest_lr,
    format_overhead,
    format_value,
    format_values,
    heading_of,
    join_words,
    make_sheet,
    merge_notes,
    merge_overheads,
    sensitivity_table,
    sheets,
)
from dashboards.valley_table import valley_texts
from dashboards.vega import Script
from dashboards.views import Line, View, filters_by_line, lines, views
from search_spaces.errors import InvalidInput
from search_spaces.factors import LR, short_name

Track = Callable[[Iterable[Any], int], Iterable[Any]]


@dataclass(frozen=True, kw_only=True)
class ReportContext:
    """What a report can show besides the table of runs; each part is omitted if it is unknown."""

    steps: Mapping[str, Columns] = field(default_factory=dict)
    """By cell, the measurements taken during training."""
    forecast: Forecast | None = None
    cores: int | None = None
    """Number of cores per cell."""
    links: Mapping[str, str] = field(default_factory=dict)
    """By cell, the address of its MLflow run."""
    published: bool = True
    """Whether the page offers the published curves as an overlay on those of the same scale and vocabulary."""
    agreement: agreement.Agreement | None = None
    """The comparison of published runs with the published numbers."""
    analysis: Analysis | None = None
    """The analysis of kept weights."""
    refresh_s: int | None = None
    """Seconds after which the page reloads, while its study is running."""


def write_report(
    runs: pd.DataFrame,
    folder: str | Path,
    *,
    title: str,
    grid: Grid = None,
    provenance: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
    formats: Collection[str] = (),
    only: Sequence[str] = (),
    context: ReportContext | None = None,
    facts: Sequence[CurveFacts] | None = None,
    submit: Submit = here,
    processes: int = 1,
    track: Track = lambda items, total: items,
) -> Path:
    """Write ``report.html``, ``tables/`` and ``runs.*`` into ``folder``, and ``figures/`` if they are requested.

    The page is a single file that works from disk without a network. Files of an earlier report are overwritten. If the
    package that draws figures is not installed, the report consists of tables and a page that says so.

    Args:
        runs: columns ``RUN_COLUMNS``.
        title: the heading of the page.
        grid: see ``dashboards.sensitivity.curves``.
        provenance: the entries of the section "How this report was made", by name.
        notes: sentences for the reader, shown with the warnings.
        formats: a selection of ``FORMATS``; default: ``PAGE_AND_TABLES``, because figures take much longer, or with
            ``only`` all of them.
        only: globs for the names of figures and tables, ``runs``, and ``report`` for the page; all if empty.
        context: what the report can show besides the runs.
        facts: the curves of the runs after ``add_measurements``, if they are already available.
        submit: how to compute importances.
        processes: how many processes draw the figures; see ``draw_all``.
        track: called with the drawn figures and their number, to show progress.

    Returns:
        The path of the page, or of the folder if no page was requested.

    Raises:
        InvalidInput: see ``dashboards.sensitivity.curves`` and ``dashboards.files.select_formats``; or only figures
            were requested, and the package that draws them is not installed.
        OSError: the folder cannot be written.
    """
    folder, context = Path(folder), context or ReportContext()
    formats = formats or (FORMATS if only else PAGE_AND_TABLES)
    if not can_draw():
        if formats and set(formats) <= set(FIGURE_FORMATS):
            reason, remedy = "needs vl-convert-python, which is not installed", "pip install vl-convert-python"
            raise InvalidInput("--format", ", ".join(formats), reason, remedy)
        notes = [*notes, NOT_DRAWN]
    # In debug mode, Altair validates each part of a chart. The tests do; here it would take a second.
    with Script() if "html" in formats else nullcontext() as vega, debug_mode(False):
        shares_of = start_importance(runs, submit)
        facts = curves(add_measurements(runs, context), grid) if facts is None else facts
        curve_lines, analysis = lines(facts), context.analysis
        all_views = views(curve_lines)
        surfaces_of = start_surfaces(runs, all_views, submit)
        # The importances take as long as all of this, so it comes before they are awaited.
        charts = [*figures(curve_lines, published=context.published), *pareto_figures(all_views)]
        charts += drift_figures(curve_lines)
        later_charts = [*parallel_figures(runs, all_views)]
        later_charts += forecast_figures(context.forecast.runs) if context.forecast else ()
        later_charts += b_ratio_figures(analysis) if analysis else ()
        cell_charts = cell_figures(analysis) if analysis else []
        cells = representative_cells(analysis).items() if analysis else ()
        costs = cost_table(runs, facts, context.cores)
        cost = Sheet(name="cost", values=costs, texts=merge_overheads(format_values(costs), costs))
        tables = [*sheets(sensitivity_table(facts)), cost]
        later_tables = [make_sheet("drift", drift_table(found))] if (found := drifts(facts)) else []
        if not (ratios := b_ratio_table(runs)).empty:
            texts = ratios.map(lambda value: value if isinstance(value, str) else format_value(value, "b_ratio"))
            later_tables.append(Sheet(name="b_ratio", values=ratios, texts=texts))
        later_tables += agreement.sheets(context.agreement) if context.agreement else ()
        later_tables += analysis.sheets() if analysis else ()
        template = Environment(
            loader=PackageLoader("dashboards", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
        ).get_template("report.html.j2")
        shares = shares_of()
        charts += [*surfaces_of(), *importance_figures(shares, all_views), *later_charts]
        tables += [make_sheet("importance", shares), *later_tables]
        files = [*charts]
        files += [figure.for_cell(cell, name) for figure in cell_charts for cell, name in cells if cell in figure.data]
        supported: dict[str, Collection[str]] = {file_stem(figure): FIGURE_FORMATS for figure in files}
        for table in tables:  # a figure and a table may share a name
            supported[table.name] = (*supported.get(table.name, ()), *RENDERERS)
        selected = select_formats({"report": ("html",), "runs": DATA_FORMATS, **supported}, formats, only)
        folder.mkdir(parents=True, exist_ok=True)
        drawn = _draw(files, folder, selected, processes, track)
        for table in tables:
            if forms := [form for form in selected.get(table.name, ()) if form in RENDERERS]:
                save_sheet(table, folder / "tables", forms)
        if "runs" in selected:
            save_sheet(Sheet(name="runs", values=by_name(runs), texts=runs), folder, selected["runs"])
        if "report" not in selected or vega is None:
            return folder
        content = _page_content(runs, curve_lines, charts, cell_charts, cost, context)
        page = folder / "report.html"
        content["warnings"] += notes
        html = template.render(
            content, title=title, provenance=provenance or {}, vega=vega.text(), context=context, drawn=drawn
        )
        write_atomically(page, html)
        return page


def _draw(
    figures: Sequence[Figure], folder: Path, formats: Mapping[str, Sequence[str]], processes: int, track: Track
) -> bool:
    """Draw the figures in those of the selected formats that are a figure's; returns whether there were any."""
    todo: list[Drawing] = []
    for figure in figures:
        forms = [form for form in formats.get(file_stem(figure), ()) if form in FIGURE_FORMATS]
        todo += drawings(figure, folder / "figures", forms) if forms else ()
    if not (todo and can_draw()):
        return False
    (folder / "figures").mkdir(exist_ok=True)
    for _ in track(draw_all(todo, processes), len(todo)):
        pass
    return True


def add_measurements(runs: pd.DataFrame, context: ReportContext) -> pd.DataFrame:
    """``runs`` with the addresses of the MLflow runs and the layers' output norms at the end of training."""
    if context.links:
        runs = runs.assign(url=runs["cell"].map(context.links))
    if context.steps:
        last = {key: [at_end(context.steps.get(cell, {}), key) for cell in runs["cell"]] for key in LAYER_NORMS}
        runs = runs.assign(**last)
    return runs


def _page_content(
    runs: pd.DataFrame,
    curve_lines: Sequence[Line],
    charts: Sequence[Figure],
    cell_charts: Sequence[CellFigure],
    cost: Sheet,
    context: ReportContext,
) -> dict[str, Any]:
    """The variables of the page's template that are computed from the runs."""
    facts, all_views = [line.curve for line in curve_lines], views(curve_lines)
    filters = filters_by_line(curve_lines)
    axis = next((curve.lr_factor for curve in facts), LR)
    listing = runs.assign(label=labels(runs))
    panels: dict[str, dict[str, dict[str, Any]]] = {}
    sections: dict[str, dict[str, None]] = {section: {} for section in get_args(Section)}
    store = ColumnStore()
    for figure in charts:
        data = {name: store.add_table(rows) for name, rows in figure.spec["datasets"].items()}
        spec = {key: value for key, value in figure.spec.items() if key != "datasets"}
        content = {"spec": spec, "data": data, "caption": figure.caption, "overlay": figure.overlay}
        panels.setdefault(figure.title, {})[figure.view or ""] = content
        sections[figure.section][figure.title] = None
    trivial = {column for column in cost.values if cost.values[column].isna().all()}
    trivial |= {column for column in ("study", "attention_norm") if cost.values[column].nunique() < 2}
    everyone = [f"{curve.scale} {curve.label}" for curve in facts]
    warnings_by_name = {name: curve.warnings for name, curve in zip(everyone, facts, strict=True)}
    warnings = [f"{warning}." for warning in merge_notes(warnings_by_name, everyone)]
    warnings += filter(None, [given_up_text(runs)])
    if facts and max(curve.seeds for curve in facts) < 2:
        warnings.insert(0, "With only one seed, there are no intervals.")
    return {
        "recommendation": recommendation(facts),
        "answer": answer(facts),
        "norms": {curve.attention_norm for curve in facts},
        "several_scales": len({curve.scale for curve in facts}) > 1,
        "views": [view.name for view in all_views],
        "axis": short_name(axis).replace("_", " "),
        "axis_title": axis_title(axis),
        "filter_values": {name: _sorted_values(by_line.values()) for name, by_line in filters.items()},
        "filters": _json(filters),
        "comparable": bool(set(filters) - {"gamma"}),
        "sections": sections,
        "overall": {figure.title for figure in charts if figure.view is None},
        "specs": _json(panels),
        "overlays": any(figure.overlay for figure in charts),
        "steps": _json(_step_data(all_views, context, store)),
        "weights": _json(_cell_figure_data(cell_charts, context.steps, store)),
        "listing": _json(_run_list(listing, store)),
        "columns": Markup(store.json().replace("<", "\\u003c")),
        "metrics": METRICS if context.steps else {},
        "cell_charts": cell_charts,
        "analysis_tables": _analysis_tables(context.analysis) if context.analysis else {},
        "cost_sentence": _cost_sentence(cost.values),
        "cost": cost.texts.drop(columns=list(trivial), errors="ignore").rename(columns=heading_of),
        "lines": curve_lines,
        "valleys": [valley_texts(curve) for curve in facts],
        "drifts": drift_texts(curve_lines),
        "best": list(best_by_scale([curve for curve in facts if curve.LRS is not None]).values()),
        "intervals": any(curve.interval for curve in facts),
        "format_highest_lr": format_highest_lr,
        "format_overhead": format_overhead,
        "format_value": format_value,
        "warnings": warnings,
        "crashed": listing[listing["state"] == "crashed"].to_dict("records"),
        "runs": len(listing),
    }


def _sorted_values(texts: Iterable[str]) -> list[str]:
    """Distinct values: numbers in ascending order, others in order of appearance."""
    values = list(dict.fromkeys(texts))
    try:
        return sorted(values, key=float)
    except ValueError:
        return values


def _run_list(runs: pd.DataFrame, store: ColumnStore) -> dict[str, int]:
    """The list of all runs, as displayed. The page fills it in when the reader opens it."""
    columns = {name: name for name in ("cell", "scale", "method", "lr", "seed", "state")}
    columns |= {"val_loss": "best_loss", "train_seconds": "seconds"}
    texts = format_values(runs.assign(method=runs["label"])[list(columns)].rename(columns=columns))
    texts = texts.rename(columns={"best_loss": "loss"})
    return {str(name): store.add_column(texts[name].tolist()) for name in texts}


def _step_data(all_views: Sequence[View], context: ReportContext, store: ColumnStore) -> dict[str, Any]:
    """The cells that the reader can select, their columns, and the specification shared by all their charts."""
    cells = [
        {
            "cell": point.cell,
            "view": view.name,
            "label": f"{line.name}, {short_name(line.curve.lr_factor)} {point.lr:g}, seed {point.seed}"
            + (", diverged" if point.diverged else ""),
            "url": context.links.get(point.cell),
        }
        for view in all_views
        for line in view.lines
        for point in line.curve.points
        if point.cell in context.steps
    ]
    chart = alt.Chart({"values": []}).mark_line(point={"size": 22}, strokeWidth=1.5)
    chart = chart.encode(
        x=alt.X("step:Q", title="step", axis=alt.Axis(tickCount=5, format="~s")),
        y=alt.Y("value:Q", title=None, scale=alt.Scale(zero=False)),
        tooltip=["step:Q", alt.Tooltip("value:Q", format=".4g")],
        color=alt.value("#0072b2"),
    ).properties(width="container", height=150)  # fmt: skip
    values = {
        cell: {key: store.add_column(column) for key, column in columns.items()}
        for cell, columns in context.steps.items()
    }
    return {"cells": cells, "values": values, "spec": chart.to_dict()}


def _cell_figure_data(figures: Sequence[CellFigure], cells: Collection[str], store: ColumnStore) -> dict[str, Any]:
    """By title, the specification of each figure and its data for each of ``cells``."""
    return {
        figure.title: {
            "spec": figure.spec,
            "cells": {
                cell: {name: store.add_table(json_rows(table)) for name, table in tables.items()}
                for cell, tables in figure.data.items()
                if cell in cells
            },
        }
        for figure in figures
    }


def _analysis_tables(analysis: Analysis) -> dict[str, pd.DataFrame]:
    captions = {
        "embeddings": "Output and input embeddings of kept weights; e·mu is the dot product of a row with mu.",
        "losses": "Loss of kept weights on other tokens and on the run's own validation tokens, in nats.",
    }
    tables = {}
    for sheet in analysis.sheets():
        hidden = {"attention_norm", "gamma", "state", "digest"}
        hidden |= {name for name in ("scale", "seed", "step") if sheet.values[name].nunique() < 2}
        texts = sheet.texts.assign(method=cell_labels(sheet.values))
        texts = texts.drop(columns=[name for name in texts if name in hidden])
        tables[captions[sheet.name]] = texts.rename(columns=heading_of)
    return tables


def _cost_sentence(cost: pd.DataFrame) -> str:
    states = {state: int(cost[state].sum()) for state in (*COUNTED, "waiting")}
    cells = join_words([f"{number} {state}" for state, number in states.items() if number] or ["none"])
    unit, per_hour = ("hours", 1) if cost["hours"].sum() >= 1 else ("minutes", 60)
    time = f"{format_value(per_hour * cost['hours'].sum(), 'hours')} {unit}"
    if cost["core_hours"].notna().any():
        time += f" ({format_value(per_hour * cost['core_hours'].sum(), 'core_hours')} core-{unit})"
    return f"Cells: {cells}. Total training time: {time}."


def _json(content: Any) -> Markup:
    """JSON for a script element, without any ``<`` that could close the element."""
    return Markup(json.dumps(content, allow_nan=False).replace("<", "\\u003c"))
