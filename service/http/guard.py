"""What stands before every route: the token, its rate, the headers of every answer, and how long answers take."""

from __future__ import annotations

import math
import time
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.errors import Refused
from service.http.metrics import Metrics
from service.http.tokens import Token, TokenFile

OPEN = frozenset({"/", "/page.css", "/page.js", "/curves.js", "/form.js", "/view", "/view.js", "/healthz"})
"""Paths that are answered without a token: the page's own files and a sign of life. None tells anything of a home."""
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": PAGE_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Bucket:
    """Of a token: filled at ``rate``, emptied by its requests."""

    def __init__(self, rate: float, burst: int) -> None:
        self._rate, self._burst, self._left, self._at = rate, float(burst), float(burst), time.monotonic()

    def take(self) -> float:
        """Seconds until there is one more; 0.0 where one was left, and was taken."""
        now = time.monotonic()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1:
            return (1 - self._left) / self._rate
        self._left -= 1
        return 0.0


class Guard:
    """Lets a request through with ``scope["state"]["token"]``, or answers 401 or 429; also to paths that are none."""

    def __init__(self, app: ASGIApp, tokens: TokenFile, rate: float, burst: int) -> None:
        self._app, self._tokens, self._rate, self._burst = app, tokens, rate, burst
        self._buckets: dict[str, Bucket] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["path"] not in OPEN:
            try:
                scope.setdefault("state", {})["token"] = self._admitted(Headers(scope=scope))
            except Refused as refused:
                await refused.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _admitted(self, headers: Headers) -> Token:
        scheme, _, secret = headers.get("authorization", "").partition(" ")
        token = self._tokens.owner(secret.strip()) if scheme.lower() == "bearer" else None
        if token is None:
            remedy = "send `Authorization: Bearer TOKEN`; `oec token add NAME` makes one"
            raise Refused(HTTPStatus.UNAUTHORIZED, "Authorization", None, "is no token of this service", remedy)
        wait = self._buckets.setdefault(token.name, Bucket(self._rate, self._burst)).take()
        if wait:
            seconds = math.ceil(wait)
            problem, remedy = "makes requests too fast", f"wait {seconds} s; at most {self._rate:g} a second"
            raise Refused(HTTPStatus.TOO_MANY_REQUESTS, "token", token.name, problem, remedy, seconds)
        return token


class Outside:
    """The outermost layer: headers of every answer that does not set them itself, and the time until it begins."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                self._metrics.answered(scope, message["status"], time.monotonic() - began)
            await send(message)

        await self._app(scope, receive, sending)


def token_of(request: Request) -> Token:
    """Whose request it is."""
    token: Token = request.state.token
    return token
