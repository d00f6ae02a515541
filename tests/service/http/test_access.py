"""Who gets an answer: no route without a token, no change without the role, and no more than the limits allow."""

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
from service.http.app import PAGE
from service.http.errors import Refused
from service.http.guard import OPEN
from service.http.queueing import MOST, Queue
from service.http.tokens import TOKENS, TokenFile
from tests.service.http.conftest import Served, begin, client, served
from tests.service.oec import oec

CHANGES = ("/api/v1/studies", "/api/v1/studies/smoke/stop", "/api/v1/studies/smoke/resume")


def every_route(service: Served) -> list[tuple[str, str]]:
    """Method and path of each, as the application itself lists them."""
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
        if path in OPEN:
            continue
        for headers in ({}, {"Authorization": "Bearer oec_wrong"}, {"Authorization": "Basic YTpi"}):
            answer = service.anybody.request(method, path, headers=headers)
            assert answer.status_code == 401, (method, path, answer.text)
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert "smoke" not in answer.text
    for method, path in (("GET", "/nothing"), ("DELETE", "/api/v1/studies/smoke"), ("GET", "/docs")):
        assert service.anybody.request(method, path).status_code == 401, "not even whether there is such a path"


def test_what_is_open_tells_nothing(service: Served) -> None:
    assert set(PAGE) | {"/healthz"} == OPEN
    for path in OPEN:
        before = service.anybody.get(path)
        assert before.status_code == 200, path
        assert before.content, f"{path} is empty"
        for secret in ("smoke", "a-reader", "a-runer", str(service.home.path)):
            assert secret not in before.text, (path, secret)
    other = service.home.path.parent / "empty"
    empty = served(open_home(other))
    assert all(empty.anybody.get(path).text == service.anybody.get(path).text for path in OPEN), "it is not static"


def test_a_reader_changes_nothing(service: Served) -> None:
    for path in CHANGES:
        answer = service.reader.post(path, json={})
        assert answer.status_code == 403, (path, answer.text)
    assert service.reader.get("/api/v1/studies").status_code == 200
    audit = [json.loads(line) for line in (service.home.service / "audit.jsonl").read_text().splitlines()]
    assert [line["outcome"] for line in audit] == ["refused: role read"] * 3
    assert {line["token"] for line in audit} == {"a-reader"}


def test_tokens_are_hashed_private_and_end(home: Home) -> None:
    tokens = TokenFile(home)
    secret = tokens.add("somebody", "read", 1)
    path = home.service / "tokens.json"
    assert secret not in path.read_text()
    assert hashlib.sha256(secret.encode()).hexdigest() in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.service.stat().st_mode) == 0o700
    owner = tokens.owner(secret)
    assert owner is not None
    assert owner.name == "somebody"
    assert tokens.owner(secret + "x") is None
    assert tokens.owner("") is None
    over = owner.model_copy(update={"expires": datetime.now(UTC) - timedelta(seconds=1)})
    path.write_bytes(TOKENS.dump_json((over,)))
    assert tokens.owner(secret) is None, "it has expired"
    with pytest.raises(InvalidInput, match="NAME: 'somebody' has a token"):
        tokens.add("somebody", "run", None)
    path.write_text("{")
    with pytest.raises(InvalidInput, match="is damaged"):
        tokens.all()


def test_a_removed_token_ends_at_once(service: Served) -> None:
    assert service.reader.get("/api/v1/studies").status_code == 200
    assert oec("token", "remove", "a-reader", home=service.home.path).returncode == 0
    assert service.reader.get("/api/v1/studies").status_code == 401
    assert service.runner.get("/api/v1/studies").status_code == 200


def test_the_commands_of_tokens(home: Home) -> None:
    made = oec("token", "add", "me", "--role", "run", "--days", "30", home=home.path)
    assert made.returncode == 0, made.stderr
    owner = TokenFile(home).owner(made.stdout.strip())
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


def test_a_token_has_a_rate(home: Home) -> None:
    slow = served(home, rate=0.5, burst=3)
    assert [slow.reader.get("/api/v1/schema").status_code for _ in range(4)] == [200, 200, 200, 429]
    again = slow.reader.get("/api/v1/schema")
    assert int(again.headers["Retry-After"]) in (1, 2)
    assert slow.runner.get("/api/v1/schema").status_code == 200, "one token's haste is not another's"


def test_what_waits_does_not_take_every_thread() -> None:
    queue = Queue("changes")
    with ExitStack() as places:
        for _ in range(MOST):
            places.enter_context(queue.place())
        with pytest.raises(Refused) as refused, queue.place():
            pass
        assert refused.value.status is HTTPStatus.TOO_MANY_REQUESTS
    with queue.place():
        pass


@pytest.mark.parametrize("path", ["/api/v1/plan", "/api/v1/studies", "/api/v1/studies/smoke/resume"])
def test_a_body_has_a_size(service: Served, path: str) -> None:
    def chunks() -> object:
        for _ in range(10):
            yield b"x" * 10_000

    for content in (b"x" * 70_000, chunks()):
        answer = service.runner.post(path, content=content, headers={"Content-Type": "application/yaml"})  # type: ignore[arg-type]
        assert answer.status_code == 413, answer.text


def test_every_answer_has_its_headers(service: Served) -> None:
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
def test_a_name_in_a_path_can_not_leave_the_home(service: Served, name: str) -> None:
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
    from service.http.app import create
    from service.http.settings import Settings

    return create(service.home, Settings())
