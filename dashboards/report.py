"""One study as a folder that needs nothing else: a page, figures, tables, and the runs behind them."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import altair as alt
import pandas as pd
import vl_convert
from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from dashboards.figures import Figure, Section, figures, forecast_figure
from dashboards.files import DATA_FORMATS, FIGURE_FORMATS, FORMATS, VEGA_LITE, chosen, save, save_sheet, stem
from dashboards.forecast import Forecast
from dashboards.importance import importance, importance_figures, parallel
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
from dashboards.verdict import less_sensitive, strength_ranges
from dashboards.views import Line, View, lines, views


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
) -> Path:
    """Write ``report.html``, ``figures/``, ``tables/`` and ``runs.*`` into ``folder``; the path of the page, or of the
    folder where no page is asked for.

    The page is one file that works from disk without a network. Files of an earlier report are overwritten.

    Args:
        runs: columns ``RUN_COLUMNS``.
        title: the page's heading.
        grid: see ``dashboards.sensitivity.curves``.
        provenance: what the section "How it was made" lists, by name.
        notes: sentences for the reader, shown with the warnings.
        formats: of ``FORMATS``.
        only: globs of names: those of figures and tables, ``runs``, and ``report`` for the page; all if there are none.
        known: what there is beside the runs.

    Raises:
        InvalidInput: see ``dashboards.sensitivity.curves`` and ``dashboards.files.chosen``.
        OSError: the folder can not be written.
    """
    folder, known = Path(folder), known or Known()
    with ThreadPoolExecutor(1) as beside:
        # It takes a second, in which Python can do something else.
        vega = beside.submit(_vega) if "html" in formats else None
        return _write(runs, folder, title, grid, provenance or {}, notes, formats, only, known, vega)


def _write(
    runs: pd.DataFrame,
    folder: Path,
    title: str,
    grid: Grid,
    provenance: Mapping[str, str],
    notes: Sequence[str],
    formats: Collection[str],
    only: Sequence[str],
    known: Known,
    vega: Future[Markup] | None,
) -> Path:
    found = curves(_with_measured(runs, known), grid)
    drawn = lines(found)
    seen, shares = views(drawn), importance(runs)
    charts = [*figures(drawn, published=known.published), *surfaces(runs, seen)]
    charts += [*importance_figures(shares, seen), *parallel(runs, seen)]
    charts += forecast_figure(known.forecast.runs) if known.forecast else ()
    folder.mkdir(parents=True, exist_ok=True)
    cost = sheet("cost", cost_table(runs, found, known.cores))
    tables = [*sheets(sensitivity_table(found)), cost, sheet("importance", shares)]
    if not (ratios := b_ratio_table(runs)).empty:
        tables.append(Sheet(name="b_ratio", values=ratios, texts=ratios.map(_two_digits)))
    wanted = chosen(
        {
            "report": ("html",),
            "runs": DATA_FORMATS,
            **{stem(figure): FIGURE_FORMATS for figure in charts},
            **{table.name: tuple(RENDERERS) for table in tables},
        },
        formats,
        only,
    )
    for figure in charts:
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
    made = _page(runs, drawn, charts, cost, title, provenance, notes, known, vega.result())
    page.write_text(made, encoding="utf-8")
    return page


def _two_digits(value: Any) -> str:
    return value if isinstance(value, str) else MISSING if pd.isna(value) else f"{value:.2f}"


def _with_measured(runs: pd.DataFrame, known: Known) -> pd.DataFrame:
    """``runs`` with the addresses, and the layers' norms at the end of training."""
    if known.links:
        runs = runs.assign(url=runs["cell"].map(known.links))
    if known.steps:
        last = {key: [at_end(known.steps.get(cell, {}), key) for cell in runs["cell"]] for key in LAYER_NORMS}
        runs = runs.assign(**last)
    return runs


HIGH_BY = 0.02
"""Nats by which a flat curve's best loss may lie above the lowest before the answer says so."""


NAMED = 3
"""Curves that share the highest learning rate are named up to this many, then counted."""


def answer(found: Sequence[CurveFacts]) -> str:
    """The study in a few sentences: what is least sensitive, and how far that can be trusted; where attention norms are
    compared, also what converges at the highest learning rate."""
    ranked = [curve for curve in found if curve.LRS is not None]
    if not ranked:
        missing = sum(len(curve.missing) for curve in found)
        return f"No curve has an LRS yet. Cells without a result: {missing}, in {len(found)} curves."
    best = _best_by_scale(ranked)
    return " ".join([_winners(ranked, best), *_by_strength(ranked), *_highest(found), _caveat(found, ranked, best)])


def _best_by_scale(ranked: Sequence[CurveFacts]) -> dict[str, CurveFacts]:
    best: dict[str, CurveFacts] = {}
    for curve in sorted(ranked, key=_lrs_of):
        best.setdefault(curve.scale, curve)
    return best


def _winners(ranked: Sequence[CurveFacts], best: Mapping[str, CurveFacts]) -> str:
    scales_of: dict[str, list[str]] = {}
    for scale in dict.fromkeys(curve.scale for curve in ranked):
        scales_of.setdefault(best[scale].label, []).append(scale)
    winners = listed([f"{name} at {listed(scales)}" for name, scales in scales_of.items()])
    verb = "is" if len(scales_of) == 1 else "are"
    sentence = f"{winners} {verb} the least sensitive to the learning rate, with an LRS of {_span(best.values())}"
    baselines = [curve for curve in ranked if curve.method == "baseline"]
    if any(curve.method != "baseline" for curve in best.values()):
        sentence += f", against {_span(baselines)} for the baseline" if baselines else "; there is no baseline"
    return f"{sentence}{_price(ranked, best.values())}."


def _highest(found: Sequence[CurveFacts]) -> Iterator[str]:
    """A sentence a scale, where there are several attention norms."""
    if len({curve.attention_norm for curve in found}) < 2:
        return
    for scale in dict.fromkeys(curve.scale for curve in found):
        at_scale = [curve for curve in found if curve.scale == scale]
        limit = max(curve.highest_lr or 0.0 for curve in at_scale)
        top = [curve for curve in at_scale if curve.highest_lr == limit]
        if top:
            few = len(top) <= NAMED
            names = listed([curve.label for curve in top]) if few else f"{len(top)} of {len(at_scale)} curves"
            lr = highest(limit, top[0].diverged)
            yield f"The highest learning rate that converges at {scale}, {lr}, is that of {names}."


def _price(ranked: Sequence[CurveFacts], best: Iterable[CurveFacts]) -> str:
    """A curve can be flat because it is bad everywhere; say so."""
    for curve in best:
        lowest = min(other.best_loss for other in ranked if other.scale == curve.scale and other.best_loss is not None)
        if curve.best_loss is not None and curve.best_loss > lowest + HIGH_BY:
            where = f" of {curve.label} at {curve.scale}"
            return f"; but the best loss{where} is {curve.best_loss:.3f}, where another curve reaches {lowest:.3f}"
    return ""


def _caveat(found: Sequence[CurveFacts], ranked: Sequence[CurveFacts], best: Mapping[str, CurveFacts]) -> str:
    left_out = len(found) - len(ranked)
    also = f" Not ranked for want of cells: {left_out} of {len(found)} curves." if left_out else ""
    if min(curve.seeds for curve in ranked) < 2:
        return f"This rests on one seed, which can not tell a small difference from chance.{also}"
    return (
        " ".join(_noise([c for c in ranked if c.scale == scale], of_scale) for scale, of_scale in best.items()) + also
    )


def _noise(at_scale: Sequence[CurveFacts], best: CurveFacts) -> str:
    """Against which curves of its scale the best one's LRS is lower by more than noise."""
    others = [curve for curve in at_scale if curve is not best]
    if not others:
        return f"It is the only curve at {best.scale}."
    beaten = less_sensitive(at_scale).get(at_scale.index(best), set())
    close = [curve.label for i, curve in enumerate(at_scale) if curve is not best and i not in beaten]
    test = f"(t-tests over {best.seeds} seeds, 5 % for all pairs of curves together)"
    if not close:
        return f"At {best.scale} that is lower than every other curve's by more than noise {test}."
    few = listed(close) if len(close) <= NAMED else f"{len(close)} of {len(others)} curves"
    if not beaten:
        return f"At {best.scale} no other curve's LRS is higher by more than noise {test}."
    return f"At {best.scale} that is lower by more than noise, but for {few} {test}."


def _by_strength(ranked: Sequence[CurveFacts]) -> Iterator[str]:
    """A sentence a scale on how far LRS depends on the strength, for methods that were tried at the same ones."""
    for scale in dict.fromkeys(curve.scale for curve in ranked):
        ranges = strength_ranges([curve for curve in ranked if curve.scale == scale])
        if len(ranges) < 2:
            continue
        shares = [f"{shown(width, 'LRS')} for {name}" for name, width in sorted(ranges.items(), key=lambda one: one[1])]
        yield f"Over the strengths that were tried for all of them at {scale}, LRS changes by {listed(shares)}."


def _span(curves: Iterable[CurveFacts]) -> str:
    values = sorted({shown(curve.LRS, "LRS") for curve in curves}, key=float)
    return values[0] if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _lrs_of(curve: CurveFacts) -> float:
    return math.inf if curve.LRS is None else curve.LRS


def _page(
    runs: pd.DataFrame,
    drawn: Sequence[Line],
    charts: Sequence[Figure],
    cost: Sheet,
    title: str,
    provenance: Mapping[str, str],
    notes: Sequence[str],
    known: Known,
    vega: Markup,
) -> str:
    found, seen = [line.curve for line in drawn], views(drawn)
    listing = runs.assign(label=labels(runs))
    panels: dict[str, dict[str, dict[str, Any]]] = {}
    sections: dict[str, dict[str, None]] = {section: {} for section in get_args(Section)}
    for figure in charts:
        content = {"spec": figure.spec, "caption": figure.caption, "overlay": figure.overlay}
        panels.setdefault(figure.title, {})[figure.view or ""] = content
        sections[figure.section][figure.title] = None
    silent = {column for column in cost.values if cost.values[column].isna().all()}
    silent |= {column for column in ("study", "attention_norm") if cost.values[column].nunique() < 2}
    warned: dict[str, list[str]] = {}
    for curve in found:
        for warning in curve.warnings:
            warned.setdefault(warning, []).append(f"{curve.scale} {curve.label}")
    warnings = [f"{whose(names, len(found))}: {warning}." for warning, names in warned.items()]
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
            sections=sections,
            specs=_json(panels),
            overlays=any(figure.overlay for figure in charts),
            steps=_json(_steps(seen, known)),
            metrics=METRICS if known.steps else {},
            stepped=len(known.steps),
            forecast=known.forecast,
            refresh_s=known.refresh_s,
            spent=_spent(cost.values),
            cost=cost.texts.drop(columns=list(silent)).rename(columns=HEADINGS),
            vega=vega,
            lines=drawn,
            best=list(_best_by_scale([curve for curve in found if curve.LRS is not None]).values()),
            intervals=any(curve.interval for curve in found),
            highest=highest,
            shown=shown,
            warnings=[*warnings, *notes],
            crashed=listing[listing["state"] == "crashed"].to_dict("records"),
            runs=listing.to_dict("records"),
            provenance=provenance,
        )
    )


def _steps(seen: Sequence[View], known: Known) -> dict[str, Any]:
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
        x=alt.X("step:Q", title="step"),
        y=alt.Y("value:Q", title=None, scale=alt.Scale(zero=False)),
        tooltip=["step:Q", alt.Tooltip("value:Q", format=".4g")],
        color=alt.value("#0072b2"),
    ).properties(width="container", height=150)  # fmt: skip
    return {"cells": cells, "values": known.steps, "spec": chart.to_dict()}


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


def _vega() -> Markup:
    """Vega, Vega-Lite and vega-embed as one script, from the installed package."""
    return Markup(
        vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", VEGA_LITE).replace("</script", "<\\/script")
    )
