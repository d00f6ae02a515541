"""Requests and responses of the service as types, from which its OpenAPI description is made."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field, create_model

from search_spaces.cell import Frozen
from search_spaces.record import COLUMNS, Column, Kind, Origin, State, columns_shown
from service.cluster.jobs import Status

StudyState = Literal["claimed", "starting", "running", "interrupted", "failed", "ended", "damaged"]
"""
``claimed``: its name is registered, and it has neither a job nor a ledger yet. ``starting``: it has a job and no ledger
yet. ``running``: a driver is training it. ``interrupted``: cells are missing; resume the study to train them.
``failed``: its job ended before any cell trained. ``ended``: every cell has ended, including crashed ones. ``damaged``:
its ledger or its file cannot be read.
"""


class PlannedCurve(Frozen):
    """A curve that a study will train."""

    scale: str
    parameters: int
    attention_norm: str
    method: str
    gamma: float | None
    label: str
    cells: int


class Estimate(Frozen):
    """What a study trains, and its cost. Times count training only, and assume that cells are spread evenly."""

    study: str
    hash: str
    curves: list[PlannedCurve]
    grid_cells: int
    cells: int = Field(description="Maximum number of cells, including those off the grid.")
    tokens: int = Field(description="Tokens of all cells together.")
    seconds: float = Field(
        description="Duration of the study, from speeds measured in this home, or from a nominal speed."
    )
    measured: bool = Field(description="Whether the speed was measured for every scale.")
    max_concurrent: int = Field(description="Maximum number of cells that run concurrently.")
    workers: int = Field(description="DDP workers that run concurrently.")
    bound_by: str = Field(description="The resource or setting that limits max_concurrent.")
    core_hours: float
    accelerator_hours: float


class JobOut(Frozen):
    """The newest job of a study on the cluster."""

    id: str
    status: Status
    exit_code: int | None
    submitted: datetime | None
    message: str


class SubmitResponse(Frozen):
    study: str
    hash: str
    job: str
    estimate: Estimate


class ResumeResponse(Frozen):
    study: str
    job: str


class StopResponse(Frozen):
    study: str
    job: str | None = Field(description="The job that was asked to stop; null if the driver is not a job.")


class StudySummary(Frozen):
    name: str
    description: str
    hash: str
    state: StudyState
    seq: int = Field(description="Number of the ledger's last event.")
    cells: dict[State, int] = Field(description="Number of cells in each state that occurs.")
    job: JobOut | None
    message: str = Field(description="Why the study failed, was interrupted, or is damaged.")


class StudyList(Frozen):
    studies: list[StudySummary]
    cluster: bool = Field(description="Whether the cluster answers; if not, jobs are missing from the summaries.")


class StudyDetail(StudySummary):
    file: dict[str, Any] = Field(description="The study file.")


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
    """A cell and its result."""

    label: str
    reused_from: str | None = Field(description="The study that trained the cell, if not this one.")


class CellPage(Frozen):
    total: int
    offset: int
    cells: list[CellOut]


class PointOut(Frozen):
    cell: str
    lr: float
    seed: int
    loss: float | None = Field(description="Final loss in nats; for a diverged cell, the loss at initialization.")
    diverged: bool


class CurveOut(Frozen):
    """A curve as charts draw it."""

    name: str
    scale: str
    attention_norm: str
    method: str
    gamma: float | None
    color: str
    dash: list[int]
    lr: list[float]
    mean: list[float | None] = Field(description="Mean over seeds at each lr; null where a cell is missing.")
    band: list[tuple[float, float] | None] = Field(description="95% interval of the mean at each lr.")
    points: list[PointOut]
    missing: list[str]
    l_init: float | None
    LRS: float | None


class ChartOut(Frozen):
    name: str
    curves: list[CurveOut]


class Curves(Frozen):
    study: str
    seq: int = Field(description="Number of the last ledger event that the charts include.")
    charts: list[ChartOut] = Field(description="Each chart has the curves of one figure.")


class Table(Frozen):
    study: str
    seq: int
    columns: list[str]
    rows: list[dict[str, str | float | int | None]]


class Logs(Frozen):
    job: str
    text: str


class ResumeRequest(Frozen):
    retry_crashed: bool = Field(default=False, description="Also retry crashed cells.")


class Health(Frozen):
    status: Literal["ok"] = "ok"
