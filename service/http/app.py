"""The application: its parts put together, and what is served without a token."""

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
from service.http import errors
from service.http.audit import Audit
from service.http.backend import Backend
from service.http.events import Watching
from service.http.feed import Feeds
from service.http.guard import Guard, Outside
from service.http.metrics import Metrics
from service.http.models import Health
from service.http.pages import Pages
from service.http.routes import REPORT_POLICY, Parts, metrics, router
from service.http.settings import Settings
from service.http.studies import Studies
from service.http.tokens import TokenFile

logger = logging.getLogger(__name__)
FILES = Path(__file__).parent / "page"
PAGE = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/form.js": ("form.js", "text/javascript"),
    "/curves.js": ("curves.js", "text/javascript"),
    "/view": ("view.html", "text/html"),
    "/view.js": ("view.js", "text/javascript"),
}
VIEW_POLICY = f"{REPORT_POLICY}; script-src-elem 'self' 'unsafe-inline'"
"""Of the empty page that a report is written into."""


def create(
    home: Home, settings: Settings, *, connect: bool = True, report: Callable[[str], None] = logger.info
) -> FastAPI:
    """The application of a home. It holds nothing that would be missed.

    Args:
        connect: to the cluster, once it serves; else when that is first needed.
        report: gets a line when a Ray of this machine starts.
    """
    backend, feeds, measured = Backend(home, settings.cluster, report), Feeds(home), Metrics()
    audit, tokens = Audit(home.service), TokenFile(home)
    parts = Parts(
        home=home,
        settings=settings,
        tokens=tokens,
        backend=backend,
        feeds=feeds,
        audit=audit,
        metrics=measured,
        watching=Watching(settings.max_watchers, measured),
        pages=Pages(home),
        studies=Studies(home, settings, backend, feeds, audit),
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        over = threading.Event()
        if connect:
            threading.Thread(target=backend.keep, args=(over,), name="cluster", daemon=True).start()
        yield
        over.set()
        parts.pages.close()

    app = FastAPI(
        title="oec", version=version("oec-sensitivity"), docs_url=None, redoc_url=None, openapi_url=None,
        max_body_size=settings.max_body, lifespan=lifespan,
    )  # fmt: skip
    app.state.parts = parts
    errors.install(app)
    app.include_router(router)
    app.add_api_route("/metrics", metrics, include_in_schema=False)
    app.add_api_route("/healthz", Health, response_model=Health, include_in_schema=False)
    for path, (name, media_type) in PAGE.items():
        app.add_api_route(path, static(name, media_type), include_in_schema=False)
    app.add_middleware(Guard, tokens=tokens, rate=settings.rate, burst=settings.burst)
    app.add_middleware(Outside, metrics=measured)
    app.openapi = lambda: described(app)  # type: ignore[method-assign]
    return app


def static(name: str, media_type: str) -> Any:
    """A handler that answers with a file of the page; read once, so that an upgrade under a service changes nothing."""
    content = (FILES / name).read_bytes()
    headers = {"Content-Security-Policy": VIEW_POLICY} if name == "view.html" else {}

    async def handler() -> Response:
        return Response(content, media_type=media_type, headers=headers)

    return handler


def described(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI description, with the study as its own schema says."""
    if app.openapi_schema is None:
        description = get_openapi(title=app.title, version=app.version, routes=app.routes)
        study = Study.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas = description["components"]["schemas"]
        schemas |= study.pop("$defs")
        schemas["Study"] = study
        app.openapi_schema = description
    return app.openapi_schema
