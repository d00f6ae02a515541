"""The routes under ``/api/v1``. Handlers parse and call, nothing else. Handlers that block run in threads."""

from __future__ import annotations

import pathlib
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response, Security
from fastapi.responses import StreamingResponse
from fastapi.security import HTTPBearer
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from search_spaces.record import State
from search_spaces.study import Study
from service.http.audit import Audit
from service.http.backend import Backend
from service.http.comparisons import Comparisons
from service.http.drafts import choices, draft
from service.http.errors import RESPONSES, ApiError
from service.http.events import EventStreams
from service.http.feed import LedgerFeeds
from service.http.metrics import Metrics
from service.http.models import (
    CellPage,
    Choices,
    Compared,
    Curves,
    Draft,
    Estimate,
    Logs,
    ResumeRequest,
    ResumeResponse,
    StopResponse,
    StudyDetail,
    StudyList,
    SubmitResponse,
    Table,
)
from service.http.report_pages import ReportPages
from service.http.results import cells_response, curves_response, table_response
from service.http.studies import Studies
from service.http.tokens import Token, TokenFile
from service.http.untrusted import parse_fields, parse_study

REPORT_POLICY = (
    "sandbox allow-scripts allow-popups; default-src 'none'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline' 'unsafe-eval'; img-src data:; frame-ancestors 'none'"
)
"""A report has inline scripts. The sandbox gives it an opaque origin, so they reach neither token nor network."""
MAX_SEQ = 2**53
MAX_PAGE_CELLS = 1_000
MAX_LOG_CHARACTERS = 200_000
MAX_COMPARED = 6


@dataclass(frozen=True, kw_only=True)
class AppContext:
    """The components that the routes use."""

    data_root: pathlib.Path
    tokens: TokenFile
    backend: Backend
    feeds: LedgerFeeds
    audit: Audit
    metrics: Metrics
    streams: EventStreams
    report_pages: ReportPages
    comparisons: Comparisons
    studies: Studies


def app_context(request: Request) -> AppContext:
    context: AppContext = request.app.state.context
    return context


Context = Annotated[AppContext, Depends(app_context)]


def existing_study(context: Context, name: Annotated[str, Path(description="Name of a study.", max_length=63)]) -> str:
    """The name in the path, if the home has that study."""
    context.studies.require(name)
    return name


def run_token(request: Request, context: Context) -> Token:
    """The token of the request, if its role allows changes."""
    token: Token = request.state.token
    if token.role != "run":
        context.audit.log_refusal(token.name, request.method, request.url.path, "refused: role read")
        problem, remedy = "is read-only", "use a token with the role run"
        raise ApiError(HTTPStatus.FORBIDDEN, "token", token.name, problem, remedy)
    return token


async def request_body(request: Request) -> bytes:
    return await request.body()


def submitted_study(request: Request, context: Context, body: Annotated[bytes, Depends(request_body)]) -> Study:
    return parse_study(body, request.headers.get("content-type", ""), context.data_root)


def submitted_fields(request: Request, body: Annotated[bytes, Depends(request_body)]) -> dict[str, Any]:
    return parse_fields(body, request.headers.get("content-type", ""))


StudyName = Annotated[str, Depends(existing_study)]
RunToken = Annotated[Token, Depends(run_token)]
SubmittedStudy = Annotated[Study, Depends(submitted_study)]
SubmittedFields = Annotated[dict[str, Any], Depends(submitted_fields)]


def _body(schema: dict[str, str]) -> dict[str, Any]:
    """A request body in either format. The schema of YAML is that of its content, not of its text."""
    content = {f"application/{name}": {"schema": schema} for name in ("json", "yaml")}
    return {"requestBody": {"required": True, "content": content}}


STUDY_BODY = _body({"$ref": "#/components/schemas/Study"})
DRAFT_BODY = _body({"type": "object", "description": "Fields of a study."})
EVENT_SCHEMA = {
    "type": "object",
    "properties": {
        "event": {"enum": ["ledger", "state", "progress", "reset", "end"]},
        "id": {"type": "string", "pattern": "^[0-9]+$", "description": "Number of the event in the ledger."},
        "data": {"type": "string", "contentMediaType": "application/json"},
        "retry": {"type": "integer"},
    },
}

router = APIRouter(
    prefix="/api/v1", responses=RESPONSES, dependencies=[Security(HTTPBearer(auto_error=False, scheme_name="token"))]
)


@router.get("/schema", response_model=dict[str, Any])
def schema() -> dict[str, Any]:
    """The JSON schema of a study."""
    content: dict[str, Any] = Study.model_json_schema()
    return content


@router.get("/choices")
def list_choices() -> Choices:
    """The scales, attention norms and methods that a study may choose, and the shipped studies."""
    return choices()


@router.post("/draft", openapi_extra=DRAFT_BODY)
def check_draft(context: Context, fields: SubmittedFields) -> Draft:
    """Check a study that may be incomplete: all its problems, its file, and its estimate. This starts nothing."""
    return draft(fields, context.data_root, context.studies.estimate)


@router.post("/plan", openapi_extra=STUDY_BODY)
def plan(context: Context, study: SubmittedStudy) -> Estimate:
    """Estimate what a study trains and what it costs. This starts nothing and reads no data."""
    return context.studies.estimate(study)


@router.get("/studies")
def list_studies(context: Context) -> StudyList:
    """All studies of the home, with their states."""
    studies = list(map(context.studies.summary, context.studies.names()))
    return StudyList(studies=studies, cluster=context.backend.jobs_if_connected() is not None)


@router.post("/studies", status_code=HTTPStatus.CREATED, openapi_extra=STUDY_BODY)
def submit(context: Context, token: RunToken, study: SubmittedStudy) -> SubmitResponse:
    """Validate a study and start it as a job. Submit the same study again to train its missing cells."""
    return context.studies.submit(token.name, study)


@router.get("/studies/{name}")
def detail(context: Context, name: StudyName) -> StudyDetail:
    """The state of a study, and its file."""
    summary = context.studies.summary(name)
    file = context.studies.load(name).model_dump(mode="json") if summary.state != "damaged" else {}
    return StudyDetail(**summary.model_dump(), file=file)


@router.get("/studies/{name}/cells")
def cells(
    context: Context,
    name: StudyName,
    offset: Annotated[int, Query(ge=0, le=10**9)] = 0,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE_CELLS)] = 100,
    state: Annotated[State | None, Query(description="Only cells in this state.")] = None,
) -> CellPage:
    """The cells in the order in which they were planned."""
    found = [entry for entry in context.feeds.get(name).read().entries if state in (None, entry.state)]
    return CellPage(total=len(found), offset=offset, cells=cells_response(name, found[offset : offset + limit]))


@router.get("/studies/{name}/curves")
def curves(context: Context, name: StudyName) -> Curves:
    """Final loss against learning rate, as charts. Later results arrive as events."""
    feed, study = context.feeds.get(name), context.studies.load(name)
    return feed.cached("curves", feed.read(), partial(curves_response, study))


@router.get("/studies/{name}/table")
def table(context: Context, name: StudyName) -> Table:
    """The table of sensitivities, with the columns of `sensitivity.csv`."""
    feed, study = context.feeds.get(name), context.studies.load(name)
    return feed.cached("table", feed.read(), partial(table_response, study))


@router.get(
    "/studies/{name}/events",
    response_class=Response,  # FastAPI's EventSourceResponse would require the handler itself to be the generator
    responses={200: {"content": {"text/event-stream": {"itemSchema": EVENT_SCHEMA}}}},
)
async def events(
    request: Request,
    context: Context,
    name: StudyName,
    since: Annotated[int, Query(ge=0, le=MAX_SEQ, description="Start after this event of the ledger.")] = 0,
    last_event_id: Annotated[
        int | None, Header(ge=0, le=MAX_SEQ, description="Same as `since`, and takes precedence.")
    ] = None,
) -> Response:
    """Server-sent events: `ledger` (its id is its number in the ledger), `state`, `progress`, `reset`, `end`."""
    token: Token = request.state.token
    context.streams.check_capacity(token.name)

    def is_authorized() -> bool:
        return any(valid == token and not valid.is_expired for valid in context.tokens.all())

    after = since if last_event_id is None else last_event_id
    summarize = partial(context.studies.summary, name)
    stream = context.streams.stream(context.feeds.get(name), summarize, after, is_authorized)
    return StreamingResponse(stream, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


@router.get("/compare")
def compare(
    context: Context,
    study: Annotated[
        list[str],
        Query(
            min_length=2,
            max_length=MAX_COMPARED,
            description="Names of studies; the others are compared with the first.",
        ),
    ],
) -> Compared:
    """Loss curves of several studies over each other, and the tables of `oec diff`."""
    for name in study:
        context.studies.require(name)
    return context.comparisons.compare(study)


@router.post("/studies/{name}/stop", status_code=HTTPStatus.ACCEPTED)
def stop(context: Context, token: RunToken, name: StudyName) -> StopResponse:
    """Ask a study to stop. It saves its state and can be resumed."""
    return context.studies.stop(token.name, name)


@router.post("/studies/{name}/resume", status_code=HTTPStatus.CREATED)
def resume(context: Context, token: RunToken, name: StudyName, request: ResumeRequest) -> ResumeResponse:
    """Train the missing cells."""
    return context.studies.resume(token.name, name, retry_crashed=request.retry_crashed)


@router.get(
    "/studies/{name}/report",
    response_class=Response,
    responses={200: {"content": {"text/html": {"schema": {"type": "string"}}}}},
)
def report(context: Context, name: StudyName) -> Response:
    """The report page, also of a running study."""
    page = context.report_pages.page(name, context.feeds.get(name).read())
    return Response(page, media_type="text/html", headers={"Content-Security-Policy": REPORT_POLICY})


@router.get("/studies/{name}/logs")
def logs(context: Context, name: StudyName) -> Logs:
    """The output of the newest job of a study; only the end of it if it is long."""
    job = next((job for job in context.backend.jobs() if job.study == name), None)
    if job is None:
        problem, remedy = "has no job on this cluster", f"GET /api/v1/studies/{name}/cells returns its results"
        raise ApiError(HTTPStatus.NOT_FOUND, "study", name, problem, remedy)
    return Logs(job=job.id, text=context.backend.client().logs(job.id)[-MAX_LOG_CHARACTERS:])


@router.get("/openapi.json", include_in_schema=False, response_model=dict[str, Any])
def openapi(request: Request) -> dict[str, Any]:
    description: dict[str, Any] = request.app.openapi()
    return description


def metrics_text(context: Context) -> Response:
    """The metrics, for Prometheus."""
    studies = map(context.studies.summary, context.studies.names())
    text = context.metrics.render(studies, context.audit.lines_written)
    return Response(text, media_type=CONTENT_TYPE_LATEST)
