"""What is answered in place of what was asked: one form for every refusal, that of ``InvalidInput``."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import Field
from starlette.exceptions import HTTPException

from search_spaces.cell import Frozen
from search_spaces.errors import InvalidInput
from service.home.writer import LedgerLocked

SHOWN = 200
"""Characters of a value that an answer repeats."""
OF_THE_HOME = {"ledger", "metrics"}
"""Fields of errors that are no fault of the request: a file of the home is damaged."""


class Problem(Frozen):
    """Why a request was refused."""

    field: str = Field(description="What the refusal is about.")
    value: str | None = Field(description="The value that was met.")
    problem: str = Field(description="What is wrong with it, in one clause.")
    remedy: str = Field(description="What would be right.")


class Refused(Exception):
    """An answer other than that of bad input."""

    def __init__(
        self,
        status: HTTPStatus,
        field: str,
        value: str | None,
        problem: str,
        remedy: str,
        retry_after: int | None = None,
    ) -> None:
        self.status, self.retry_after = status, retry_after
        self.problem = Problem(field=field, value=value, problem=problem, remedy=remedy)
        super().__init__(f"{field}: {value!r} {problem}; {remedy}")

    def response(self) -> JSONResponse:
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status is HTTPStatus.UNAUTHORIZED:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.problem.model_dump(), self.status, headers)


def no_study(name: str) -> Refused:
    return Refused(HTTPStatus.NOT_FOUND, "study", name, "is no study of this home", "GET /api/v1/studies lists them")


def written(value: object) -> str | None:
    """A value for an answer: short, and nothing but text."""
    return None if value is None else str(value)[:SHOWN].encode(errors="replace").decode()


RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": HTTPStatus(status).phrase}
    for status in (400, 401, 403, 404, 405, 409, 413, 422, 429, 503)
}
"""Of every route, for its description."""


def install(app: FastAPI) -> None:
    """Answer the errors of handlers."""

    @app.exception_handler(Refused)
    def refused(request: Request, error: Refused) -> JSONResponse:
        return error.response()

    @app.exception_handler(InvalidInput)
    def bad_input(request: Request, error: InvalidInput) -> JSONResponse:
        conflict = isinstance(error, LedgerLocked) or error.field in OF_THE_HOME
        status = HTTPStatus.CONFLICT if conflict else HTTPStatus.UNPROCESSABLE_ENTITY
        return Refused(status, error.field, written(error.value), error.problem, error.remedy).response()

    @app.exception_handler(RequestValidationError)
    def bad_parameter(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"][1:]) or "body"
        remedy = "see /api/v1/openapi.json"
        status = HTTPStatus.UNPROCESSABLE_ENTITY
        return Refused(status, field, written(first.get("input")), first["msg"], remedy).response()

    @app.exception_handler(HTTPException)
    def by_starlette(request: Request, error: HTTPException) -> JSONResponse:
        remedy = "see /api/v1/openapi.json"
        answer = Refused(HTTPStatus(error.status_code), "request", request.url.path, str(error.detail), remedy)
        response = answer.response()
        response.headers.update(error.headers or {})
        return response
