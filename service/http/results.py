"""The results of a study as JSON, computed from a snapshot of its ledger by the same functions as its report."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dashboards.runs import from_records
from dashboards.sensitivity import CurveFacts, curves
from dashboards.tables import sensitivity_table
from dashboards.views import Line, lines, views
from search_spaces.record import columns_shown
from search_spaces.study import Study
from service.home.ledger import Entry
from service.http.feed import Snapshot
from service.http.models import CellOut, ChartOut, CurveOut, Curves, PointOut, Table


def curve_facts(study: Study, snapshot: Snapshot) -> list[CurveFacts]:
    return curves(from_records(snapshot.records), study.lrs) if snapshot.entries else []


def curves_response(study: Study, snapshot: Snapshot) -> Curves:
    """The charts of loss against learning rate, as in the report."""
    charts = [
        ChartOut(name=view.name, curves=[_curve(line) for line in view.lines])
        for view in views(lines(curve_facts(study, snapshot)))
    ]
    return Curves(study=study.name, seq=snapshot.seq, charts=charts)


def table_response(study: Study, snapshot: Snapshot) -> Table:
    """The table of sensitivities, one row per curve; unknown values are null."""
    table = sensitivity_table(curve_facts(study, snapshot))
    rows = [{str(name): _value(value) for name, value in row.items()} for row in table.to_dict("records")]
    return Table(study=study.name, seq=snapshot.seq, columns=list(map(str, table.columns)), rows=rows)


def cells_response(study: str, entries: Sequence[Entry]) -> list[CellOut]:
    """The cells and their results."""
    found = []
    for entry in entries:
        record = entry.record(study)
        columns = {name: record.get(name) for name in columns_shown("http")}
        found.append(CellOut(**columns, label=entry.cell.label, reused_from=entry.reused_from))
    return found


def _curve(line: Line) -> CurveOut:
    curve = line.curve
    return CurveOut(
        name=line.name,
        scale=curve.scale,
        attention_norm=curve.attention_norm,
        method=curve.method,
        gamma=curve.gamma,
        color=line.color,
        dash=list(line.dash),
        lr=list(curve.lr),
        mean=[_finite(loss) for loss in curve.mean],
        band=list(curve.band),
        points=[
            PointOut(cell=p.cell, lr=p.lr, seed=p.seed, loss=_finite(p.loss), diverged=p.diverged) for p in curve.points
        ],
        missing=list(curve.missing),
        l_init=_finite(curve.l_init),
        LRS=curve.LRS,
    )


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None


def _value(value: object) -> str | float | int | None:
    if isinstance(value, float):
        return _finite(value)
    return value if isinstance(value, str | int) else None
