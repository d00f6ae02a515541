"""The routes under ``/api/v1``. Handlers parse and call, nothing else; those that wait for files or Ray are threads."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response, Security
from fastapi.responses import StreamingResponse
from fastapi.security import HTTPBearer

from search_spaces.record import State
from search_spaces.study import Study
from service.home.layout import Home
from service.http.audit import Audit
from service.http.backend import Backend
from service.http.errors import RESPONSES, Refused
from service.http.events import Watching
from service.http.feed import Feeds
from service.http.guard import token_of
from service.http.metrics import CONTENT_TYPE, Metrics
from service.http.models import (
    CellPage,
    Curves,
    Logs,
    Priced,
    Resumed,
    ResumeRequest,
    Stopping,
    StudyDetail,
    StudyList,
    StudySummary,
    Submitted,
    Table,
)
from service.http.pages import Pages
from service.http.results import cells_of, curves_of, table_of
from service.http.settings import Settings
from service.http.studies import Studies
from service.http.tokens import Token, TokenFile
from service.http.untrusted import study_of

REPORT_POLICY = (
    "sandbox allow-scripts allow-popups; default-src 'none'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline' 'unsafe-eval'; img-src data:; frame-ancestors 'none'"
)
"""A report has its scripts within it. Opened from here it is of no origin and reaches nothing."""
MOST_SEQ = 2**53
PAGE = 1_000
LOG_CHARACTERS = 200_000


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the routes work with."""

    home: Home
    settings: Settings
    tokens: TokenFile
    backend: Backend
    feeds: Feeds
    audit: Audit
    metrics: Metrics
    watching: Watching
    pages: Pages
    studies: Studies

    @property
    def data_root(self) -> Any:
        return self.settings.data_root or self.home.path / "data"


def parts_of(request: Request) -> Parts:
    parts: Parts = request.app.state.parts
    return parts


P = Annotated[Parts, Depends(parts_of)]
Name = Annotated[str, Path(description="Of a study.", max_length=63)]


def known_study(parts: P, name: Name) -> str:
    parts.studies.require(name)
    return name


def runner(request: Request, parts: P) -> Token:
    """Whose request it is, if that token may change something."""
    token = token_of(request)
    if token.role != "run":
        parts.audit.refused(token.name, request.method, request.url.path, "refused: role read")
        problem, remedy = "may look and not change anything", "use a token of role run"
        raise Refused(HTTPStatus.FORBIDDEN, "token", token.name, problem, remedy)
    return token


async def body_of(request: Request) -> bytes:
    return await request.body()


def submitted_study(request: Request, parts: P, body: Annotated[bytes, Depends(body_of)]) -> Study:
    return study_of(body, request.headers.get("content-type", ""), parts.data_root)


Known = Annotated[str, Depends(known_study)]
Runner = Annotated[Token, Depends(runner)]
Sent = Annotated[Study, Depends(submitted_study)]
STUDY_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/Study"}},
            "application/yaml": {"schema": {"type": "string", "description": "A study file."}},
        },
    }
}
EVENT = {
    "type": "object",
    "properties": {
        "event": {"enum": ["ledger", "state", "progress", "reset", "end"]},
        "id": {"type": "string", "pattern": "^[0-9]+$", "description": "The ledger's number of the event."},
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
    found: dict[str, Any] = Study.model_json_schema()
    return found


@router.post("/plan", openapi_extra=STUDY_BODY)
def plan(parts: P, study: Sent) -> Priced:
    """What a study would train, and what that takes. Starts nothing and reads no data."""
    return parts.studies.price(study)


@router.get("/studies")
def list_studies(parts: P) -> StudyList:
    """Every study of the home, with where it stands."""
    jobs = parts.backend.known_jobs()
    found = [parts.studies.summary(name, jobs) for name in parts.studies.known()]
    return StudyList(studies=found, cluster=jobs is not None)


@router.post("/studies", status_code=HTTPStatus.CREATED, openapi_extra=STUDY_BODY)
def submit(parts: P, token: Runner, study: Sent) -> Submitted:
    """Validate and price a study, and start it as a job. The same study again goes on with what is missing."""
    return parts.studies.submit(token.name, study)


@router.get("/studies/{name}")
def detail(parts: P, name: Known) -> StudyDetail:
    """Where a study stands, and its file."""
    summary = parts.studies.summary(name, parts.backend.known_jobs())
    file = parts.studies.file(name).model_dump(mode="json") if summary.state != "damaged" else {}
    return StudyDetail(**summary.model_dump(), file=file)


@router.get("/studies/{name}/cells")
def cells(
    parts: P,
    name: Known,
    offset: Annotated[int, Query(ge=0, le=10**9)] = 0,
    limit: Annotated[int, Query(ge=1, le=PAGE)] = 100,
    state: Annotated[State | None, Query(description="Only cells in this state.")] = None,
) -> CellPage:
    """Cells in the order in which they were planned."""
    found = [entry for entry in parts.feeds.of(name).read().entries if state in (None, entry.state)]
    return CellPage(total=len(found), offset=offset, cells=cells_of(name, found[offset : offset + limit]))


@router.get("/studies/{name}/curves")
def curves(parts: P, name: Known) -> Curves:
    """Final loss over learning rate, as charts; what is drawn of them follows as events."""
    feed, study = parts.feeds.of(name), parts.studies.file(name)
    return feed.derived("curves", feed.read(), partial(curves_of, study))


@router.get("/studies/{name}/table")
def table(parts: P, name: Known) -> Table:
    """The table of sensitivities; its columns are those of `sensitivity.csv`."""
    feed, study = parts.feeds.of(name), parts.studies.file(name)
    return feed.derived("table", feed.read(), partial(table_of, study))


@router.get(
    "/studies/{name}/events",
    response_class=Response,  # FastAPI's own class for these would take the handler for the generator
    responses={200: {"content": {"text/event-stream": {"itemSchema": EVENT}}}},
)
async def events(
    request: Request,
    parts: P,
    name: Known,
    since: Annotated[int, Query(ge=0, le=MOST_SEQ, description="The ledger's event to go on behind.")] = 0,
    last_event_id: Annotated[int | None, Header(ge=0, le=MOST_SEQ, description="As since, which it replaces.")] = None,
) -> Response:
    """Server-sent events: `ledger` (id: its place), `state`, `progress`, `reset`, `end`."""
    token = token_of(request)
    parts.watching.admit(token.name)

    def summary() -> StudySummary:
        return parts.studies.summary(name, parts.backend.known_jobs())

    def still() -> bool:
        return any(known == token and not known.expired for known in parts.tokens.all())

    after = since if last_event_id is None else last_event_id
    stream: AsyncGenerator[bytes] = parts.watching.stream(parts.feeds.of(name), name, summary, after, still)
    return StreamingResponse(stream, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


@router.post("/studies/{name}/stop", status_code=HTTPStatus.ACCEPTED)
def stop(parts: P, token: Runner, name: Known) -> Stopping:
    """Ask a study to end; it saves its state, and can be resumed."""
    return parts.studies.stop(token.name, name)


@router.post("/studies/{name}/resume", status_code=HTTPStatus.CREATED)
def resume(parts: P, token: Runner, name: Known, request: ResumeRequest) -> Resumed:
    """Go on with the cells that are missing."""
    return parts.studies.resume(token.name, name, retry_crashed=request.retry_crashed)


@router.get(
    "/studies/{name}/report",
    response_class=Response,
    responses={200: {"content": {"text/html": {"schema": {"type": "string"}}}}},
)
def report(parts: P, name: Known) -> Response:
    """The report's page, also of a study that goes on."""
    page = parts.pages.page(name, parts.feeds.of(name).read())
    return Response(page, media_type="text/html", headers={"Content-Security-Policy": REPORT_POLICY})


@router.get("/studies/{name}/logs")
def logs(parts: P, name: Known) -> Logs:
    """What the newest job of a study printed; the end of it, if that is long."""
    job = next((job for job in parts.backend.jobs() if job.study == name), None)
    if job is None:
        problem, remedy = "has no job on this cluster", "its ledger says what was trained"
        raise Refused(HTTPStatus.NOT_FOUND, "study", name, problem, remedy)
    return Logs(job=job.id, text=parts.backend.client().logs(job.id)[-LOG_CHARACTERS:])


@router.get("/openapi.json", include_in_schema=False, response_model=dict[str, Any])
def openapi(request: Request) -> dict[str, Any]:
    description: dict[str, Any] = request.app.openapi()
    return description


def metrics(parts: P) -> Response:
    """For Prometheus."""
    jobs = parts.backend.known_jobs()
    found = [parts.studies.summary(name, jobs) for name in parts.studies.known()]
    text = parts.metrics.text(found, parts.audit.lines)
    return Response(text, media_type=CONTENT_TYPE)
