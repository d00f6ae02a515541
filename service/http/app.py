"""The FastAPI application: its components, its middleware, and the static files of the page."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.responses import Response

from search_spaces.study import Study
from service.home.layout import Home
from service.http.audit import Audit
from service.http.backend import Backend
from service.http.errors import install_handlers
from service.http.events import EventStreams
from service.http.feed import LedgerFeeds
from service.http.metrics import Metrics
from service.http.middleware import ResponseMiddleware, TokenMiddleware
from service.http.models import Health
from service.http.report_pages import ReportPages
from service.http.routes import REPORT_POLICY, AppContext, metrics_text, router
from service.http.settings import Settings
from service.http.studies import Studies
from service.http.tokens import TokenFile

logger = logging.getLogger(__name__)
PAGE_FOLDER = Path(__file__).parent / "page"
PAGE_FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/form.js": ("form.js", "text/javascript"),
    "/curves.js": ("curves.js", "text/javascript"),
    "/view": ("view.html", "text/html"),
    "/view.js": ("view.js", "text/javascript"),
}
"""The static files of the page, by path."""
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
    context = AppContext(
        home=home,
        settings=settings,
        tokens=tokens,
        backend=backend,
        feeds=feeds,
        audit=audit,
        metrics=metrics,
        streams=EventStreams(settings.max_watchers, metrics),
        report_pages=ReportPages(home),
        studies=Studies(home, settings, backend, feeds, audit),
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
        title="oec", version=version("oec-sensitivity"), docs_url=None, redoc_url=None, openapi_url=None,
        max_body_size=settings.max_body, lifespan=lifespan,
    )  # fmt: skip
    app.state.context = context
    install_handlers(app)
    app.include_router(router)
    app.add_api_route("/metrics", metrics_text, include_in_schema=False)
    app.add_api_route("/healthz", Health, response_model=Health, include_in_schema=False)
    for path, (name, media_type) in PAGE_FILES.items():
        app.add_api_route(path, static_file(name, media_type), include_in_schema=False)
    app.add_middleware(TokenMiddleware, tokens=tokens)
    app.add_middleware(ResponseMiddleware, metrics=metrics)
    app.openapi = lambda: openapi_description(app)  # type: ignore[method-assign]
    return app


def static_file(name: str, media_type: str) -> Any:
    """A handler that serves a file of the page. The file is read once, so an upgrade does not change a running
    service."""
    content = (PAGE_FOLDER / name).read_bytes()
    headers = {"Content-Security-Policy": VIEW_POLICY} if name == "view.html" else {}

    async def handler() -> Response:
        return Response(content, media_type=media_type, headers=headers)

    return handler


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
