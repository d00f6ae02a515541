"""One study as a folder that needs nothing else: a page, figures, tables, and the runs behind them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import altair as alt
import pandas as pd
from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from dashboards import agreement
from dashboards.analysis import Analysis, b_ratio_figures, cell_figures, representative
from dashboards.analysis import labels as cell_labels
from dashboards.answer import answer, best_by_scale
from dashboards.charts import CellFigure, Figure, Section, rows
from dashboards.figures import figures, forecast_figure
from dashboards.files import (
    DATA_FORMATS,
    FIGURE_FORMATS,
    FORMATS,
    NOT_DRAWN,
    can_draw,
    chosen,
    save,
    save_sheet,
    stem,
    write_at_once,
)
from dashboards.forecast import Forecast
from dashboards.importance import importance, importance_figures, parallel
from dashboards.packing import Columns as Packed
from dashboards.runs import records
from dashboards.sensitivity import CurveFacts, Grid, curves, labels
from dashboards.steps import LAYER_NORMS, METRICS, Columns, at_end
from dashboards.surface import surfaces
from dashboards.tables import (
    HEADINGS,
    MISSING,
    RENDERERS,
    Sheet,
    b_ratio_table,
    cost_table,
    highest,
    listed,
    sensitivity_table,
    sheet,
    sheets,
    shown,
    whose,
)
from dashboards.vega import Script
from dashboards.views import Line, View, lines, strengths, views
from search_spaces.errors import InvalidInput


@dataclass(frozen=True, kw_only=True)
class Known:
    """What a report may say beside the table of runs; each part is left out where it is not known."""

    steps: Mapping[str, Columns] = field(default_factory=dict)
    """By cell, what was measured along the way."""
    forecast: Forecast | None = None
    cores: int | None = None
    """That a cell trains on."""
    links: Mapping[str, str] = field(default_factory=dict)
    """By cell, the address of its run in MLflow."""
    published: bool = True
    """Whether the published curves are offered beside those of the same scale and vocabulary."""
    agreement: agreement.Agreement | None = None
    """Of published runs: what they give beside what was published."""
    analysis: Analysis | None = None
    """Of kept weights."""
    refresh_s: int | None = None
    """Seconds after which the page loads itself again: that of a study that is being run."""


def write_report(
    runs: pd.DataFrame,
    folder: str | Path,
    *,
    title: str,
    grid: Grid = None,
    provenance: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
    formats: Collection[str] = FORMATS,
    only: Sequence[str] = (),
    known: Known | None = None,
    found: Sequence[CurveFacts] | None = None,
) -> Path:
    """Write ``report.html``, ``figures/``, ``tables/`` and ``runs.*`` into ``folder``; the path of the page, or of the
    folder where no page is asked for.

    The page is one file that works from disk without a network. Files of an earlier report are overwritten. Where the
    package that draws is not installed, there are tables and a page of tables that says so.

    Args:
        runs: columns ``RUN_COLUMNS``.
        title: the page's heading.
        grid: see ``dashboards.sensitivity.curves``.
        provenance: what the section "How it was made" lists, by name.
        notes: sentences for the reader, shown with the warnings.
        formats: of ``FORMATS``.
        only: globs of names: those of figures and tables, ``runs``, and ``report`` for the page; all if there are none.
        known: what there is beside the runs.
        found: the curves of ``with_measured`` runs, if they are there already.

    Raises:
        InvalidInput: see ``dashboards.sensitivity.curves`` and ``dashboards.files.chosen``; only figures are wanted,
            and the package that draws them is not installed.
        OSError: the folder can not be written.
    """
    folder, known = Path(folder), known or Known()
    if not can_draw():
        if formats and set(formats) <= set(FIGURE_FORMATS):
            reason, remedy = "needs vl-convert-python, which is not installed", "pip install vl-convert-python"
            raise InvalidInput("--format", ", ".join(formats), reason, remedy)
        notes = [*notes, NOT_DRAWN]
    with Script() if "html" in formats else nullcontext() as vega:
        found = curves(with_measured(runs, known), grid) if found is None else found
        return _write(runs, found, folder, title, provenance or {}, notes, formats, only, known, vega)


def _write(
    runs: pd.DataFrame,
    found: Sequence[CurveFacts],
    folder: Path,
    title: str,
    provenance: Mapping[str, str],
    notes: Sequence[str],
    formats: Collection[str],
    only: Sequence[str],
    known: Known,
    vega: Script | None,
) -> Path:
    drawn = lines(found)
    seen, shares = views(drawn), importance(runs)
    charts = [*figures(drawn, published=known.published), *surfaces(runs, seen)]
    charts += [*importance_figures(shares, seen), *parallel(runs, seen)]
    charts += forecast_figure(known.forecast.runs) if known.forecast else ()
    of_cells = cell_figures(known.analysis) if known.analysis else []
    charts += b_ratio_figures(known.analysis) if known.analysis else ()
    chosen_cells = representative(known.analysis).items() if known.analysis else ()
    files = [*charts]
    files += [figure.of(*one) for figure in of_cells for one in chosen_cells if one[0] in figure.data]
    folder.mkdir(parents=True, exist_ok=True)
    cost = sheet("cost", cost_table(runs, found, known.cores))
    tables = [*sheets(sensitivity_table(found)), cost, sheet("importance", shares)]
    if not (ratios := b_ratio_table(runs)).empty:
        tables.append(Sheet(name="b_ratio", values=ratios, texts=ratios.map(_two_digits)))
    tables += agreement.sheets(known.agreement) if known.agreement else ()
    tables += known.analysis.sheets() if known.analysis else ()
    wanted = chosen(
        {
            "report": ("html",),
            "runs": DATA_FORMATS,
            **{stem(figure): FIGURE_FORMATS for figure in files},
            **{table.name: tuple(RENDERERS) for table in tables},
        },
        formats,
        only,
    )
    for figure in files:
        if stem(figure) in wanted:
            save(figure, folder / "figures", wanted[stem(figure)])
    for table in tables:
        if table.name in wanted:
            save_sheet(table, folder / "tables", wanted[table.name])
    if "runs" in wanted:
        save_sheet(Sheet(name="runs", values=runs, texts=runs), folder, wanted["runs"])
    if "report" not in wanted or vega is None:
        return folder
    page = folder / "report.html"
    made = _page(runs, drawn, charts, of_cells, cost, title, provenance, notes, known, vega.text())
    write_at_once(page, made)
    return page


def _two_digits(value: Any) -> str:
    return value if isinstance(value, str) else MISSING if pd.isna(value) else f"{value:.2f}"


def with_measured(runs: pd.DataFrame, known: Known) -> pd.DataFrame:
    """``runs`` with the addresses, and the layers' norms at the end of training."""
    if known.links:
        runs = runs.assign(url=runs["cell"].map(known.links))
    if known.steps:
        last = {key: [at_end(known.steps.get(cell, {}), key) for cell in runs["cell"]] for key in LAYER_NORMS}
        runs = runs.assign(**last)
    return runs


def _page(
    runs: pd.DataFrame,
    drawn: Sequence[Line],
    charts: Sequence[Figure],
    of_cells: Sequence[CellFigure],
    cost: Sheet,
    title: str,
    provenance: Mapping[str, str],
    notes: Sequence[str],
    known: Known,
    vega: Markup,
) -> str:
    found, seen = [line.curve for line in drawn], views(drawn)
    by_strength = {name: f"{gamma:g}" for name, gamma in strengths(drawn).items()}
    listing = runs.assign(label=labels(runs))
    panels: dict[str, dict[str, dict[str, Any]]] = {}
    sections: dict[str, dict[str, None]] = {section: {} for section in get_args(Section)}
    packed = Packed()
    for figure in charts:
        data = {name: packed.table(rows) for name, rows in figure.spec["datasets"].items()}
        spec = {key: value for key, value in figure.spec.items() if key != "datasets"}
        content = {"spec": spec, "data": data, "caption": figure.caption, "overlay": figure.overlay}
        panels.setdefault(figure.title, {})[figure.view or ""] = content
        sections[figure.section][figure.title] = None
    silent = {column for column in cost.values if cost.values[column].isna().all()}
    silent |= {column for column in ("study", "attention_norm") if cost.values[column].nunique() < 2}
    everyone = [f"{curve.scale} {curve.label}" for curve in found]
    warned: dict[str, list[str]] = {}
    for name, curve in zip(everyone, found, strict=True):
        for warning in curve.warnings:
            warned.setdefault(warning, []).append(name)
    warnings = [f"{whose(names, everyone)}: {warning}." for warning, names in warned.items()]
    if found and max(curve.seeds for curve in found) < 2:
        warnings.insert(0, "One seed: no interval can be given.")
    return (
        Environment(loader=PackageLoader("dashboards", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True)
        .get_template("report.html.j2")
        .render(
            title=title,
            answer=answer(found),
            scales={curve.scale for curve in found},
            norms={curve.attention_norm for curve in found},
            views=[view.name for view in seen],
            gammas=sorted(set(by_strength.values()), key=float),
            strengths=_json(by_strength),
            sections=sections,
            overall={figure.title for figure in charts if figure.view is None},
            specs=_json(panels),
            overlays=any(figure.overlay for figure in charts),
            steps=_json(_steps(seen, known, packed)),
            weights=_json(_of_cells(of_cells, known.steps, packed)),
            listing=_json(packed.table(_listed(listing))),
            LEFT=("cell", "scale", "method", "embedding", "data"),
            columns=Markup(packed.json().replace("<", "\\u003c")),
            metrics=METRICS if known.steps else {},
            stepped=len(known.steps),
            of_cells=of_cells,
            analyzed=_analyzed(known.analysis) if known.analysis else {},
            forecast=known.forecast,
            refresh_s=known.refresh_s,
            spent=_spent(cost.values),
            cost=cost.texts.drop(columns=list(silent)).rename(columns=HEADINGS),
            vega=vega,
            lines=drawn,
            best=list(best_by_scale([curve for curve in found if curve.LRS is not None]).values()),
            intervals=any(curve.interval for curve in found),
            highest=highest,
            shown=shown,
            warnings=[*warnings, *notes],
            crashed=listing[listing["state"] == "crashed"].to_dict("records"),
            runs=len(listing),
            provenance=provenance,
        )
    )


LISTED = ("cell", "scale", "lr", "seed", "state", "val_loss", "train_seconds")
"""Columns of the table of every run on the page."""


def _listed(runs: pd.DataFrame) -> list[dict[str, str]]:
    """The table of every run, as people read it: the page fills it in when it is opened."""
    return [
        {
            "cell": run["cell"] or MISSING,
            "scale": run["scale"],
            "method": run["label"],
            "lr": shown(run["lr"], "best_lr"),
            "seed": str(run["seed"]),
            "state": run["state"],
            "loss": shown(run["val_loss"], "best_loss"),
            "seconds": shown(run["train_seconds"], "seconds"),
        }
        for run in records(runs[list(LISTED)].assign(label=runs["label"]))
    ]


def _steps(seen: Sequence[View], known: Known, packed: Packed) -> dict[str, Any]:
    """The cells that can be chosen, by view, with their columns, and the one specification of all their charts."""
    cells = [
        {
            "cell": point.cell,
            "view": view.name,
            "label": f"{line.name}, lr {point.lr:g}, seed {point.seed}" + (", diverged" if point.diverged else ""),
            "url": known.links.get(point.cell),
        }
        for view in seen
        for line in view.lines
        for point in line.curve.points
        if point.cell in known.steps
    ]
    chart = alt.Chart({"values": []}).mark_line(point={"size": 22}, strokeWidth=1.5)
    chart = chart.encode(
        x=alt.X("step:Q", title="step", axis=alt.Axis(tickCount=5, format="~s")),
        y=alt.Y("value:Q", title=None, scale=alt.Scale(zero=False)),
        tooltip=["step:Q", alt.Tooltip("value:Q", format=".4g")],
        color=alt.value("#0072b2"),
    ).properties(width="container", height=150)  # fmt: skip
    values = {
        cell: {key: packed.place(column) for key, column in columns.items()} for cell, columns in known.steps.items()
    }
    return {"cells": cells, "values": values, "spec": chart.to_dict()}


def _of_cells(figures: Sequence[CellFigure], cells: Collection[str], packed: Packed) -> dict[str, Any]:
    """By title, a figure of one cell and the data of each of ``cells``, which can be chosen."""
    return {
        figure.title: {
            "spec": figure.spec,
            "cells": {
                cell: {name: packed.table(rows(table)) for name, table in tables.items()}
                for cell, tables in figure.data.items()
                if cell in cells
            },
        }
        for figure in figures
    }


def _analyzed(analysis: Analysis) -> dict[str, pd.DataFrame]:
    """The tables of an analysis as people read them, by caption."""
    captions = {
        "embeddings": "Output and input embeddings of kept weights; e·mu is the dot product of a row with mu.",
        "losses": "Losses of kept weights on other tokens, in nats, and on the run's own validation tokens.",
    }
    found = {}
    for one in analysis.sheets():
        silent = {"attention_norm", "gamma", "state", "digest"}
        silent |= {name for name in ("scale", "seed", "step") if one.values[name].nunique() < 2}
        texts = one.texts.assign(method=cell_labels(one.values))
        texts = texts.drop(columns=[name for name in texts if name in silent])
        found[captions[one.name]] = texts.rename(columns=HEADINGS)
    return found


def _spent(cost: pd.DataFrame) -> str:
    """What the study took, in a sentence."""
    states = {state: int(cost[state].sum()) for state in ("finished", "diverged", "crashed", "pruned", "waiting")}
    cells = listed([f"{number} {state}" for state, number in states.items() if number] or ["none"])
    hours = f"{shown(cost['hours'].sum(), 'hours')} hours of training, one cell after the other"
    if cost["core_hours"].notna().any():
        hours += f", or {shown(cost['core_hours'].sum(), 'core_hours')} core-hours"
    return f"Cells: {cells}. {hours}."


def _json(content: Any) -> Markup:
    """JSON that can stand in a script element: no ``<`` in it, so nothing in it can close the element."""
    return Markup(json.dumps(content, allow_nan=False).replace("<", "\\u003c"))
