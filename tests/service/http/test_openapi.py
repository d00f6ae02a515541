"""The application against its entire OpenAPI description: every response to any request is one that it describes."""

from __future__ import annotations

import pytest
import schemathesis
from schemathesis import GenerationMode

from service.home.layout import Home
from tests.service.http.conftest import begin, served
from tests.service.http.fuzzing import ask_everything

NEED_RAY = ("POST /api/v1/studies/{name}/stop", "POST /api/v1/studies/{name}/resume", "GET /api/v1/studies/{name}/logs")
"""These need Ray if the study exists, so test_cluster.py tests them."""


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize("name", [None, "smoke"])
def test_every_response_is_described_and_none_is_5xx(home: Home, mode: GenerationMode, name: str | None) -> None:
    begin(home).close()  # the ledger is not held, so that an event stream ends
    service = served(home)
    token = {"Authorization": service.runner.headers["Authorization"]}
    schema = schemathesis.openapi.from_asgi("/api/v1/openapi.json", service.app, headers=token)
    asked = ask_everything(schema, token, mode, name, NEED_RAY if name else (), examples=10)
    assert len(asked) == 16 - (len(NEED_RAY) if name else 0)
