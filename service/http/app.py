"""The FastAPI application: its components, its middleware, and the static files of the page."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.responses import Response

from search_spaces.study import Study
from service import __version__
from service.home.layout import Home
from service.http.audit import Audit
from service.http.backend import Backend
from service.http.comparisons import Comparisons
from service.http.errors import install_handlers
from service.http.events import EventStreams
from service.http.feed import LedgerFeeds
from service.http.metrics import Metrics
from service.http.middleware import CHARTS, PAGE_FILES, ResponseMiddleware, TokenMiddleware
from service.http.models import Settings
from service.http.report_pages import ReportPages
from service.http.routes import REPORT_POLICY, AppContext, metrics_text, router
from service.http.studies import Studies
from service.http.tokens import TokenFile

logger = logging.getLogger(__name__)
MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
CHARTS_MAX_AGE_S = 3600
VIEW_POLICY = f"{REPORT_POLICY}; script-src-elem 'self' 'unsafe-inline'"
"""The policy of the empty page that a report is written into."""


def create_app(
    home: Home, settings: Settings, *, connect: bool = True, log: Callable[[str], None] = logger.info
) -> FastAPI:
    """Create the application for a home. It keeps no state that would be lost with its process.

    Args:
        connect: connect to the cluster at startup; otherwise on the first request that needs it.
        log: receives a line when a local Ray head starts.
    """
    backend, feeds, metrics = Backend(home, settings.cluster, log), LedgerFeeds(home), Metrics()
    audit, tokens = Audit(home.service), TokenFile(home)
    studies = Studies(home, settings, backend, feeds, audit)
    context = AppContext(
        data_root=settings.data_root or home.path / "data",
        tokens=tokens,
        backend=backend,
        feeds=feeds,
        audit=audit,
        metrics=metrics,
        streams=EventStreams(settings.max_watchers, metrics),
        report_pages=ReportPages(home),
        comparisons=Comparisons(studies, feeds),
        studies=studies,
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        shutdown = threading.Event()
        if connect:
            threading.Thread(target=backend.stay_connected, args=(shutdown,), name="cluster", daemon=True).start()
        yield
        shutdown.set()
        context.report_pages.close()

    app = FastAPI(
        title="oec", version=__version__, docs_url=None, redoc_url=None, openapi_url=None,
        max_body_size=settings.max_body, lifespan=lifespan,
    )  # fmt: skip
    app.state.context = context
    install_handlers(app)
    app.include_router(router)
    app.add_api_route("/metrics", metrics_text, include_in_schema=False)
    app.add_api_route("/healthz", lambda: {"status": "ok"}, include_in_schema=False)
    for path, name in PAGE_FILES.items():
        app.add_api_route(path, static_file(name), include_in_schema=False)
    app.add_api_route(CHARTS, chart_script, include_in_schema=False)
    app.add_middleware(TokenMiddleware, tokens=tokens)
    app.add_middleware(ResponseMiddleware, metrics=metrics)
    app.openapi = lambda: openapi_description(app)  # type: ignore[method-assign]
    return app


def static_file(name: str) -> Any:
    """A handler for a file of the page. The file is read once, so an upgrade does not change a running service."""
    path = Path(__file__).parent / "page" / name
    content, media_type = path.read_bytes(), MEDIA_TYPES[path.suffix]
    headers = {"Content-Security-Policy": VIEW_POLICY} if name == "view.html" else {}

    async def handler() -> Response:
        return Response(content, media_type=media_type, headers=headers)

    return handler


def chart_script() -> Response:
    """Vega and the look of its charts; only the latter if the package that draws figures is not installed."""
    headers = {"Cache-Control": f"max-age={CHARTS_MAX_AGE_S}"}
    return Response(_chart_script(), media_type=MEDIA_TYPES[".js"], headers=headers)


@cache
def _chart_script() -> str:
    from dashboards.vega import THEME, Script  # these imports take a second

    with Script() as script:
        return f"{script.text()}\n{THEME.read_text(encoding='utf-8')}"


def openapi_description(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI description, which includes the JSON schema of a study."""
    if app.openapi_schema is None:
        description = get_openapi(title=app.title, version=app.version, routes=app.routes)
        study = Study.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas = description["components"]["schemas"]
        schemas |= study.pop("$defs")
        schemas["Study"] = study
        app.openapi_schema = description
    return app.openapi_schema
