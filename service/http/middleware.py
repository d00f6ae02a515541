"""Middleware around every route: the token of a request, and the headers and latency of its response."""

from __future__ import annotations

import time
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.errors import ApiError
from service.http.metrics import Metrics
from service.http.tokens import TokenFile

SCRIPTS = ("page", "api", "list", "study", "curves", "compare", "form", "fields", "choices", "view")
PAGE_FILES = {"/": "index.html", "/view": "view.html", "/page.css": "page.css"} | {
    f"/{name}.js": f"{name}.js" for name in SCRIPTS
}
"""The static files of the page, by path."""
CHARTS = "/vega.js"
"""The script that draws charts, from the packages that draw those of a report."""
PUBLIC_PATHS = PAGE_FILES.keys() | {CHARTS, "/healthz"}
"""Paths that need no token. None of them reveals data of a home."""
DEFAULT_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class TokenMiddleware:
    """Passes a request on with ``scope["state"]["token"]``, or answers 401, even for paths that do not exist."""

    def __init__(self, app: ASGIApp, tokens: TokenFile) -> None:
        self._app, self._tokens = app, tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in PUBLIC_PATHS:
            scheme, _, secret = Headers(scope=scope).get("authorization", "").partition(" ")
            token = self._tokens.authenticate(secret.strip()) if scheme.lower() == "bearer" else None
            if token is None:
                problem = "is not a valid token of this service"
                remedy = "send `Authorization: Bearer TOKEN`; `oec token add NAME` creates a token"
                error = ApiError(HTTPStatus.UNAUTHORIZED, "Authorization", None, problem, remedy)
                await error.response()(scope, receive, send)
                return
            scope.setdefault("state", {})["token"] = token
        await self._app(scope, receive, send)


class ResponseMiddleware:
    """The outermost layer: adds the default headers that a response does not set itself, and measures its latency."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = time.monotonic()

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in DEFAULT_HEADERS.items():
                    headers.setdefault(name, value)
                self._metrics.record_response(scope, message["status"], time.monotonic() - start)
            await send(message)

        await self._app(scope, receive, send_with_headers)
