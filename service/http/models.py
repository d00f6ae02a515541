"""What the service answers, as types: they are its OpenAPI description."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field, create_model

from search_spaces.cell import Frozen
from search_spaces.record import COLUMNS, Column, Kind, Origin, State, columns_shown
from service.cluster.jobs import Status

StudyState = Literal["claimed", "starting", "running", "interrupted", "failed", "ended", "damaged"]
"""claimed: submitted, and nothing more is known. starting: its job is there and its ledger is not. running: a driver is
at work on it. interrupted: cells are missing; resume goes on. failed: its job ended before it trained. ended: every
cell has ended, crashed ones included. damaged: its ledger or its file can not be read."""


class PlannedCurve(Frozen):
    """A curve before it is trained."""

    scale: str
    parameters: int
    attention_norm: str
    method: str
    gamma: float | None
    label: str
    cells: int


class Priced(Frozen):
    """What a study would train and take; times are of training, were the cells spread evenly."""

    study: str
    hash: str
    curves: list[PlannedCurve]
    grid_cells: int
    cells: int = Field(description="Of the grid and beside it, at most.")
    tokens: int = Field(description="Of all cells.")
    seconds: float = Field(description="Until the study ends, from speeds measured in this home or a nominal one.")
    measured: bool = Field(description="Whether every scale was measured.")
    max_concurrent: int = Field(description="Cells that run in parallel, at most.")
    workers: int = Field(description="DDP workers at once.")
    bound_by: str = Field(description="What keeps more cells from running at once.")
    core_hours: float
    accelerator_hours: float


class JobOut(Frozen):
    """The job of the cluster that ran, or runs, a study last."""

    id: str
    status: Status
    exit_code: int | None
    submitted: datetime | None
    message: str


class Submitted(Frozen):
    study: str
    hash: str
    job: str
    priced: Priced


class Resumed(Frozen):
    study: str
    job: str


class Stopping(Frozen):
    study: str
    job: str | None = Field(description="The job that was asked to end; null for a driver that is no job.")


class StudySummary(Frozen):
    name: str
    description: str
    hash: str
    state: StudyState
    seq: int = Field(description="Of the ledger's last event.")
    cells: dict[State, int] = Field(description="By state, of the states that there are.")
    job: JobOut | None
    message: str = Field(description="Why it failed or is damaged.")


class StudyList(Frozen):
    studies: list[StudySummary]
    cluster: bool = Field(description="Whether the cluster answers; without it jobs are not known.")


class StudyDetail(StudySummary):
    file: dict[str, Any] = Field(description="The study as it was submitted.")


_TYPES: dict[Kind, type] = {"text": str, "integer": int, "number": float}
_REQUIRED: dict[str, Any] = {"state": State, "origin": Origin, "gamma": float | None}


def _column_field(column: Column) -> Any:
    kind = _TYPES[column.kind]
    own = _REQUIRED.get(column.name, kind if column.source in ("ledger", "cell") else kind | None)
    return Annotated[own, Field(description=column.meaning)], ...


_CellColumns = create_model(
    "_CellColumns", __base__=Frozen, **{name: _column_field(COLUMNS[name]) for name in columns_shown("http")}
)


class CellOut(_CellColumns):
    """A cell with its result."""

    label: str
    reused_from: str | None = Field(description="The study that trained it, if not this one.")


class CellPage(Frozen):
    total: int
    offset: int
    cells: list[CellOut]


class PointOut(Frozen):
    cell: str
    lr: float
    seed: int
    loss: float | None = Field(description="Nats; that of initialisation for a diverged cell.")
    diverged: bool


class CurveOut(Frozen):
    """A curve as it is drawn."""

    name: str
    scale: str
    attention_norm: str
    method: str
    gamma: float | None
    color: str
    dash: list[int]
    lr: list[float]
    mean: list[float | None] = Field(description="Over seeds, at each lr; null where a cell is missing.")
    band: list[tuple[float, float] | None] = Field(description="95 % interval of the mean, at each lr.")
    points: list[PointOut]
    missing: list[str]
    l_init: float | None
    LRS: float | None


class ChartOut(Frozen):
    name: str
    curves: list[CurveOut]


class Curves(Frozen):
    study: str
    seq: int = Field(description="Of the ledger's last event that they hold: the events after it are news.")
    charts: list[ChartOut] = Field(description="Curves that belong into one picture.")


class Table(Frozen):
    study: str
    seq: int
    columns: list[str]
    rows: list[dict[str, str | float | int | None]]


class Logs(Frozen):
    job: str
    text: str


class ResumeRequest(Frozen):
    retry_crashed: bool = Field(default=False, description="Also try the crashed cells again.")


class Health(Frozen):
    status: Literal["ok"] = "ok"
