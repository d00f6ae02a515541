"""Access control: no route answers without a token, no change is made without the role, and limits are enforced."""

from __future__ import annotations

import hashlib
import json
import stat
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from http import HTTPStatus

import pytest
from fastapi.routing import APIRoute
from starlette.routing import Route

from search_spaces.errors import InvalidInput
from search_spaces.study import Study
from service.home.layout import Home
from service.home.location import open_home
from service.http.errors import MAX_REQUESTS, ApiError, ConcurrencyLimit
from service.http.middleware import PUBLIC_PATHS
from service.http.tokens import TOKENS, TokenFile
from tests.service.http.conftest import Served, begin, client, served
from tests.service.oec import oec

CHANGES = ("/api/v1/studies", "/api/v1/studies/smoke/stop", "/api/v1/studies/smoke/resume")


def every_route(service: Served) -> list[tuple[str, str]]:
    """Returns method and path of each route, as listed by the application itself."""
    described = [
        (method.upper(), path.replace("{name}", "smoke"))
        for path, methods in service.app.openapi()["paths"].items()
        for method in methods
    ]
    beside = [
        (method, route.path)
        for route in service.app.routes
        if isinstance(route, APIRoute | Route) and not getattr(route, "include_in_schema", True)
        for method in route.methods or ()
    ]
    return [*described, *beside, ("GET", "/api/v1/openapi.json")]


def test_no_route_answers_without_a_token(service: Served) -> None:
    routes = every_route(service)
    assert len(routes) > 20, routes
    for method, path in routes:
        if path in PUBLIC_PATHS:
            continue
        for headers in ({}, {"Authorization": "Bearer oec_wrong"}, {"Authorization": "Basic YTpi"}):
            answer = service.anybody.request(method, path, headers=headers)
            assert answer.status_code == 401, (method, path, answer.text)
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert "smoke" not in answer.text
    for method, path in (("GET", "/nothing"), ("DELETE", "/api/v1/studies/smoke"), ("GET", "/docs")):
        assert service.anybody.request(method, path).status_code == 401, (
            "without a token, not even the existence of a path is revealed"
        )


def test_public_paths_reveal_nothing(service: Served) -> None:
    for path in PUBLIC_PATHS:
        before = service.anybody.get(path)
        assert before.status_code == 200, path
        assert before.content, f"{path} is empty"
        for secret in ("smoke", "a-reader", "a-runer", str(service.home.path)):
            assert secret not in before.text.replace("whitesmoke", ""), (path, secret)  # a chart color
    other = service.home.path.parent / "empty"
    empty = served(open_home(other))
    assert all(empty.anybody.get(path).text == service.anybody.get(path).text for path in PUBLIC_PATHS), (
        "it is not static"
    )


def test_a_reader_changes_nothing(service: Served) -> None:
    for path in CHANGES:
        answer = service.reader.post(path, json={})
        assert answer.status_code == 403, (path, answer.text)
    assert service.reader.get("/api/v1/studies").status_code == 200
    audit = [json.loads(line) for line in (service.home.service / "audit.jsonl").read_text().splitlines()]
    assert [line["outcome"] for line in audit] == ["refused: role read"] * 3
    assert {line["token"] for line in audit} == {"a-reader"}


def test_tokens_are_hashed_private_and_expire(home: Home) -> None:
    tokens = TokenFile(home)
    secret = tokens.add("somebody", "read", 1)
    path = home.service / "tokens.json"
    assert secret not in path.read_text()
    assert hashlib.sha256(secret.encode()).hexdigest() in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.service.stat().st_mode) == 0o700
    owner = tokens.authenticate(secret)
    assert owner is not None
    assert owner.name == "somebody"
    assert tokens.authenticate(secret + "x") is None
    assert tokens.authenticate("") is None
    over = owner.model_copy(update={"expires": datetime.now(UTC) - timedelta(seconds=1)})
    path.write_bytes(TOKENS.dump_json((over,)))
    assert tokens.authenticate(secret) is None, "an expired token was accepted"
    with pytest.raises(InvalidInput, match="NAME: 'somebody' already has a token"):
        tokens.add("somebody", "run", None)
    path.write_text("{")
    with pytest.raises(InvalidInput, match="is damaged"):
        tokens.all()


def test_a_removed_token_stops_working_at_once(service: Served) -> None:
    assert service.reader.get("/api/v1/studies").status_code == 200
    assert oec("token", "remove", "a-reader", home=service.home.path).returncode == 0
    assert service.reader.get("/api/v1/studies").status_code == 401
    assert service.runner.get("/api/v1/studies").status_code == 200


def test_the_commands_of_tokens(home: Home) -> None:
    made = oec("token", "add", "me", "--role", "run", "--days", "30", home=home.path)
    assert made.returncode == 0, made.stderr
    owner = TokenFile(home).authenticate(made.stdout.strip())
    assert owner is not None
    assert (owner.name, owner.role) == ("me", "run")
    listed = oec("token", "list", home=home.path).stdout
    assert "me" in listed
    assert made.stdout.strip() not in listed
    assert oec("token", "remove", "you", home=home.path).returncode == 2
    assert oec("token", "add", "../me", home=home.path).returncode == 2
    audit = (home.service / "audit.jsonl").read_text()
    assert audit.count('"token add"') == 4
    assert made.stdout.strip() not in audit


def test_waiting_requests_do_not_take_every_thread() -> None:
    limit = ConcurrencyLimit("changes")
    with ExitStack() as places:
        for _ in range(MAX_REQUESTS):
            places.enter_context(limit.slot())
        with pytest.raises(ApiError) as refused, limit.slot():
            pass
        assert refused.value.status is HTTPStatus.TOO_MANY_REQUESTS
    with limit.slot():
        pass


@pytest.mark.parametrize("path", ["/api/v1/plan", "/api/v1/studies", "/api/v1/studies/smoke/resume"])
def test_the_size_of_a_body_is_limited(service: Served, path: str) -> None:
    def chunks() -> object:
        for _ in range(10):
            yield b"x" * 10_000

    for content in (b"x" * 70_000, chunks()):
        answer = service.runner.post(path, content=content, headers={"Content-Type": "application/yaml"})  # type: ignore[arg-type]
        assert answer.status_code == 413, answer.text


def test_every_response_has_security_headers(service: Served) -> None:
    for answer in (
        service.anybody.get("/"),
        service.anybody.get("/api/v1/studies"),
        service.reader.get("/api/v1/studies"),
        service.reader.get("/nothing"),
    ):
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert "unsafe" not in answer.headers["Content-Security-Policy"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "no-store"
        assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.parametrize("name", ["..", "../x", "%2e%2e", "a%2fb", "a%00b", "SMOKE", "x" * 64, "absent"])
def test_a_name_in_a_path_cannot_leave_the_home(service: Served, name: str) -> None:
    for path in ("", "/cells", "/curves", "/table", "/events", "/report", "/logs"):
        answer = service.reader.get(f"/api/v1/studies/{name}{path}")
        assert answer.status_code in (404, 422) or answer.url.path == "/api/v1/studies", (path, answer.text)


def test_two_services_of_a_home_agree(service: Served) -> None:
    other = client(served_again(service), service.reader.headers["Authorization"].removeprefix("Bearer "))
    assert other.get("/api/v1/studies").json() == service.reader.get("/api/v1/studies").json()
    with begin(service.home, Study.load("smoke").model_copy(update={"name": "more"})):
        assert other.get("/api/v1/studies").json() == service.reader.get("/api/v1/studies").json()
        assert [one["name"] for one in other.get("/api/v1/studies").json()["studies"]] == ["more", "smoke"]


def served_again(service: Served):  # type: ignore[no-untyped-def]
    from service.http.app import create_app
    from service.http.models import Settings

    return create_app(service.home, Settings())
