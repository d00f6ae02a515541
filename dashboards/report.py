"""One study as a folder that needs nothing else: a page, figures, tables, and the runs behind them."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import vl_convert
from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from dashboards.figures import Figure, figures
from dashboards.files import DATA_FORMATS, FIGURE_FORMATS, FORMATS, VEGA_LITE, chosen, save, save_sheet, stem
from dashboards.sensitivity import CurveFacts, Grid, curves, labels
from dashboards.surface import surfaces
from dashboards.tables import RENDERERS, Sheet, highest, listed, sensitivity_table, sheets, shown, whose
from dashboards.verdict import less_sensitive, strength_ranges
from dashboards.views import Line, lines, views


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

    Raises:
        InvalidInput: see ``dashboards.sensitivity.curves`` and ``dashboards.files.chosen``.
        OSError: the folder can not be written.
    """
    folder = Path(folder)
    found = curves(runs, grid)
    drawn = lines(found)
    charts = [*figures(drawn), *surfaces(runs, views(drawn))]
    folder.mkdir(parents=True, exist_ok=True)
    tables = sheets(sensitivity_table(found))
    wanted = chosen(
        {
            "report": ("html",),
            "runs": DATA_FORMATS,
            **{stem(figure): FIGURE_FORMATS for figure in charts},
            **{sheet.name: tuple(RENDERERS) for sheet in tables},
        },
        formats,
        only,
    )
    for figure in charts:
        if stem(figure) in wanted:
            save(figure, folder / "figures", wanted[stem(figure)])
    for sheet in tables:
        if sheet.name in wanted:
            save_sheet(sheet, folder / "tables", wanted[sheet.name])
    if "runs" in wanted:
        save_sheet(Sheet(name="runs", values=runs, texts=runs), folder, wanted["runs"])
    if "report" not in wanted:
        return folder
    page = folder / "report.html"
    page.write_text(_page(runs, drawn, charts, title, provenance or {}, notes), encoding="utf-8")
    return page


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
    title: str,
    provenance: Mapping[str, str],
    notes: Sequence[str],
) -> str:
    found = [line.curve for line in drawn]
    listing = runs.assign(label=labels(runs))
    panels: dict[str, dict[str, dict[str, Any]]] = {}
    for figure in charts:
        panels.setdefault(figure.title, {})[figure.view or ""] = {"spec": figure.spec, "caption": figure.caption}
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
            views=[view.name for view in views(drawn)],
            panels=panels,
            specs=_json(panels),
            vega=_vega(),
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


def _json(content: Any) -> Markup:
    """JSON that can stand in a script element: no ``<`` in it, so nothing in it can close the element."""
    return Markup(json.dumps(content, allow_nan=False).replace("<", "\\u003c"))


def _vega() -> Markup:
    """Vega, Vega-Lite and vega-embed as one script, from the installed package."""
    return Markup(
        vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", VEGA_LITE).replace("</script", "<\\/script")
    )
