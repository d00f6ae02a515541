"""Error responses, all of one form: the field, the value, the problem and the remedy, as in ``InvalidInput``."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import Field
from starlette.exceptions import HTTPException

from search_spaces.errors import InvalidInput
from search_spaces.frozen import Frozen
from service.home.writer import LedgerLocked

MAX_VALUE_CHARACTERS = 200
"""How much of a value an error repeats, as valid Unicode."""
HOME_FIELDS = {"ledger", "metrics"}
"""Fields of errors that the request did not cause: a file of the home is damaged."""
SEE_SCHEMA = "see /api/v1/openapi.json"
MAX_REQUESTS, RETRY_S = 8, 5


class Problem(Frozen):
    """Why a request failed."""

    field: str = Field(description="The field that the error is about.")
    value: str | None = Field(description="The value of that field.")
    problem: str = Field(description="What is wrong with the value, in one clause.")
    remedy: str = Field(description="What to do instead.")


def problem_of(error: InvalidInput) -> Problem:
    """The description of bad input; its value is shortened, and valid Unicode."""
    return _problem(error.field, error.value, error.problem, error.remedy)


def _problem(field: str, value: object, problem: str, remedy: str) -> Problem:
    shown = None if value is None else str(value)[:MAX_VALUE_CHARACTERS].encode(errors="replace").decode()
    return Problem(field=field, value=shown, problem=problem, remedy=remedy)


class ApiError(Exception):
    """An error response other than that for bad input."""

    def __init__(
        self, status: HTTPStatus, field: str, value: object, problem: str, remedy: str, retry_after_s: int | None = None
    ) -> None:
        self.status, self.retry_after_s = status, retry_after_s
        self.problem = _problem(field, value, problem, remedy)
        super().__init__(f"{field}: {value!r} {problem}; {remedy}")

    def response(self) -> JSONResponse:
        headers = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        if self.status is HTTPStatus.UNAUTHORIZED:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.problem.model_dump(), self.status, headers)


class ConcurrencyLimit:
    """Admits ``MAX_REQUESTS`` requests at a time, and answers 429 to the rest.

    Handlers that block share 40 threads. With this limit on requests that wait for the same work, the other threads
    stay free for the rest of the service.
    """

    def __init__(self, kind: str) -> None:
        self._kind, self._slots = kind, threading.BoundedSemaphore(MAX_REQUESTS)

    @contextmanager
    def slot(self) -> Iterator[None]:
        if not self._slots.acquire(blocking=False):
            problem = f"already have {MAX_REQUESTS} requests waiting"
            raise ApiError(HTTPStatus.TOO_MANY_REQUESTS, self._kind, None, problem, "try again later", RETRY_S)
        try:
            yield
        finally:
            self._slots.release()


RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": HTTPStatus(status).phrase}
    for status in (400, 401, 403, 404, 405, 409, 413, 422, 429, 503)
}
"""The error responses of every route, for the OpenAPI description."""


def install_handlers(app: FastAPI) -> None:
    """Turn the exceptions of route handlers into error responses."""

    @app.exception_handler(ApiError)
    def api_error(request: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(InvalidInput)
    def invalid_input(request: Request, error: InvalidInput) -> JSONResponse:
        is_conflict = isinstance(error, LedgerLocked) or error.field in HOME_FIELDS
        status = HTTPStatus.CONFLICT if is_conflict else HTTPStatus.UNPROCESSABLE_ENTITY
        return ApiError(status, error.field, error.value, error.problem, error.remedy).response()

    @app.exception_handler(RequestValidationError)
    def invalid_parameter(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"][1:]) or "body"
        status = HTTPStatus.UNPROCESSABLE_ENTITY
        return ApiError(status, field, first.get("input"), first["msg"], SEE_SCHEMA).response()

    @app.exception_handler(HTTPException)
    def http_exception(request: Request, error: HTTPException) -> JSONResponse:
        status = HTTPStatus(error.status_code)
        response = ApiError(status, "request", request.url.path, str(error.detail), SEE_SCHEMA).response()
        response.headers.update(error.headers or {})
        return response
