"""The results of a study as JSON, computed from a snapshot of its ledger by the same functions as its report."""

from __future__ import annotations

from collections.abc import Sequence

from dashboards.runs import from_records
from dashboards.sensitivity import CurveFacts, curves
from dashboards.tables import sensitivity_table
from dashboards.views import Line, lines, views
from search_spaces.record import columns_shown
from search_spaces.study import Study
from service.home.ledger import Entry
from service.http.feed import Snapshot
from service.http.models import CellOut, ChartOut, CurveOut, Curves, Table, finite


def curve_facts(study: Study, snapshot: Snapshot) -> list[CurveFacts]:
    records = [entry.record(study.name) for entry in snapshot.entries]
    return curves(from_records(records), study.grid) if records else []


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
    return [
        CellOut(
            **{name: record.get(name) for name in columns_shown("http")},
            factors=entry.cell.factors,
            label=entry.cell.label,
            reused_from=entry.reused_from,
        )
        for entry in entries
        for record in [entry.record(study)]
    ]


def _curve(line: Line) -> CurveOut:
    style = {name: getattr(line, name) for name in ("name", "color", "dash")}
    facts = {name: getattr(line.curve, name) for name in CurveOut.model_fields.keys() - style}
    return CurveOut.model_validate(style | facts | {"factors": dict(line.curve.factors)}, from_attributes=True)


def _value(value: object) -> str | float | int | None:
    if isinstance(value, float):
        return finite(value)
    return value if isinstance(value, str | int) else None
