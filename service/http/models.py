"""Settings, requests and responses of the service as types; its OpenAPI description is made from the latter."""

from __future__ import annotations

import math
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, create_model

from dashboards.comparison import RowTexts
from search_spaces.factors import Value
from search_spaces.frozen import Frozen
from search_spaces.record import COLUMNS, Column, Kind, Origin, State, columns_shown
from service.cluster.jobs import Status
from service.http.errors import Problem

StudyState = Literal["claimed", "starting", "running", "interrupted", "failed", "ended", "damaged"]
"""
``claimed``: its name is registered, and it has neither a job nor a ledger yet. ``starting``: it has a job and no ledger
yet. ``running``: a driver is training it. ``interrupted``: cells are missing; resume the study to train them.
``failed``: its job ended before any cell trained. ``ended``: every cell has ended, including crashed ones. ``damaged``:
its ledger or its file cannot be read.
"""


def finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None


Finite = Annotated[float | None, BeforeValidator(finite)]
"""null in place of NaN and infinity, which JSON does not have."""


class Settings(Frozen):
    """The settings of one service. Limits on studies count those of all services of a home; others are per process."""

    cluster: str | None = Field(default=None, description="Ray's dashboard, http://HOST:8265; default: a local Ray.")
    data_root: Path | None = Field(
        default=None, description="Folder with the data that studies may use; default: HOME/data."
    )
    max_body: int = Field(default=65_536, gt=0, description="Maximum bytes of a request body.")
    max_cells: int = Field(default=2_000, gt=0, description="Maximum cells of a study, including refinement.")
    max_tokens: int = Field(default=10**13, gt=0, description="Maximum tokens of a study over all its cells.")
    max_active: int = Field(default=4, gt=0, description="Maximum running studies; each has a driver process.")
    max_watchers: int = Field(default=200, gt=0, description="Maximum open event streams.")


class PlannedCurve(Frozen):
    """A curve that a study will train."""

    scale: str
    parameters: int
    attention_norm: str
    method: str
    gamma: float | None
    factors: dict[str, Value]
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
    seconds: float = Field(description="Duration of the study, from this home's measured speeds or a nominal one.")
    measured: bool = Field(description="Whether the speed was measured for every scale.")
    max_concurrent: int = Field(description="Maximum number of cells that run concurrently.")
    workers: int = Field(description="DDP workers that run concurrently.")
    bound_by: str = Field(description="The resource or setting that limits max_concurrent.")
    core_hours: float
    accelerator_hours: float


class ScaleOut(Frozen):
    """A scale that a study may choose."""

    name: str
    blocks: int
    width: int
    heads: int


class AttentionNormOut(Frozen):
    """An attention norm that a study may choose."""

    name: str
    summary: str
    source: str


class MethodOut(Frozen):
    """A method that a study may choose."""

    name: str
    summary: str
    source: str
    symbol: str | None = Field(description="How papers write its gamma; null for a method without one.")
    default_gamma: float | None


class ShippedStudy(Frozen):
    """A study that comes with the package."""

    name: str
    description: str
    file: dict[str, Any] = Field(description="The fields that differ from their defaults.")


class Choices(Frozen):
    """The registries that a study chooses from, and the shipped studies."""

    scales: list[ScaleOut]
    attention_norms: list[AttentionNormOut]
    methods: list[MethodOut]
    studies: list[ShippedStudy]
    significant_digits: int = Field(description="To how many digits proposed learning rates are rounded.")


class Draft(Frozen):
    """A study that may be incomplete, and what it would take."""

    file: dict[str, Any] | None = Field(
        description="The fields that differ from their defaults; null if there are problems."
    )
    yaml: str = Field(description="The same as a study file; with problems, the fields as they were sent.")
    problems: list[Problem] = Field(description="What prevents the study from starting; the first 50.")
    parameters: dict[str, int] = Field(description="Parameters of each scale with the vocabulary of the study.")
    estimate: Estimate | None = Field(description="Null if there are problems.")


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

    factors: dict[str, Value]
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
    loss: Finite = Field(description="Final loss in nats; for a diverged cell, the loss at initialization.")
    diverged: bool


class CurveOut(Frozen):
    """A curve as charts draw it."""

    name: str
    scale: str
    attention_norm: str
    method: str
    gamma: float | None
    factors: dict[str, Value]
    lr_factor: str = Field(description="The factor on the curve's axis, whose values are ``lr``.")
    color: str
    dash: list[int]
    lr: list[float]
    mean: list[Finite] = Field(description="Mean over seeds at each lr; null where a cell is missing.")
    band: list[tuple[float, float] | None] = Field(description="95% interval of the mean at each lr.")
    points: list[PointOut]
    missing: list[str]
    l_init: Finite
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


class ChangeOut(Frozen):
    """A row of a comparison: one measure of one curve."""

    curve: str
    measure: str
    before: Finite
    after: Finite
    change: Finite = Field(description="A difference in nats; for a learning rate, a factor.")
    low: Finite = Field(description="Lower end of the 95% interval of a difference; null if noise is unknown.")
    high: Finite
    p: Finite = Field(description="From Welch's test over seeds, with Holm's correction over the table.")
    verdict: str


class ComparisonOut(Frozen):
    """The comparison of a study with the first of the request, as by `oec diff`."""

    before: str
    after: str
    rows: list[ChangeOut]
    texts: list[RowTexts] = Field(description="The rows of the curves that differ.")
    sentences: list[str]


class FigureOut(Frozen):
    """A figure of the report."""

    title: str
    view: str
    caption: str
    spec: dict[str, Any] = Field(description="Vega-Lite, with its data.")


class Compared(Frozen):
    """Several studies over each other."""

    studies: list[str]
    figures: list[FigureOut]
    comparisons: list[ComparisonOut]


class Logs(Frozen):
    job: str
    text: str


class ResumeRequest(Frozen):
    retry_crashed: bool = Field(default=False, description="Also retry crashed cells.")
