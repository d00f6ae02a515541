"""The whole OpenAPI description against the application: whatever is sent, the answer is one that it describes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import CHECKS, load_all_checks

from service.home import Home
from tests.service.http.conftest import begin, served

load_all_checks()
AUTH = CHECKS.get_by_names(["ignored_auth"])
"""Sends without the token and then calls the 401 a success that should not be; tests/service/http/test_access.py
asks every route."""


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Iterator[schemathesis.schemas.BaseSchema]:
    home = Home.open(tmp_path_factory.mktemp("fuzzed") / "home")
    with begin(home):
        service = served(home)
        yield schemathesis.openapi.from_asgi(
            "/api/v1/openapi.json", service.app, headers={"Authorization": service.runner.headers["Authorization"]}
        )


schema = schemathesis.pytest.from_fixture("described")


@schema.parametrize()
@settings(max_examples=30, suppress_health_check=list(HealthCheck))
def test_every_answer_is_described(case: schemathesis.Case) -> None:
    case.call_and_validate(excluded_checks=AUTH)
