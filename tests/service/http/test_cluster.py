"""The real ``oec serve`` with its own Ray: submit, watch, stop, resume, two services, a kill, and a short load test."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import schemathesis
import yaml
from schemathesis import GenerationMode

from benchmarks.serve import Server
from search_spaces.record import TERMINAL
from search_spaces.study import Study
from service.cluster.connection import free_port
from service.cluster.local_head import process_start_ticks, read_head, stop_head
from service.home.location import open_home
from service.home.studies import read_ledger
from service.http.tokens import TokenFile
from tests.service.http.fuzzing import ask_everything
from tests.service.oec import oec

pytestmark = [pytest.mark.slow, pytest.mark.long]
WAIT_S = 180.0


class Service:
    """One or more servers for a home, and a client whose token has the role run."""

    def __init__(self, folder: Path) -> None:
        self.home = open_home(folder / "home")
        self.log = folder / "serve.log"
        secret = TokenFile(self.home).add("tester", "run", None)
        self.headers = {"Authorization": f"Bearer {secret}"}
        self.server = Server(self.home, free_port(), self.log, OMP_NUM_THREADS="1")
        self.until(lambda: self.get("/studies")["cluster"], "cluster")

    def url(self, path: str, server: Server | None = None) -> str:
        return f"http://127.0.0.1:{(server or self.server).port}/api/v1{path}"

    def get(self, path: str) -> Any:
        return httpx2.get(self.url(path), headers=self.headers, timeout=60).raise_for_status().json()

    def post(self, path: str, content: Any, server: Server | None = None) -> httpx2.Response:
        return httpx2.post(self.url(path, server), json=content, headers=self.headers, timeout=60)

    def state(self, name: str) -> str:
        state: str = self.get(f"/studies/{name}")["state"]
        return state

    def until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                if condition():
                    return
            except httpx2.TransportError:
                assert self.server.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, f"no {what} in {WAIT_S:g} s:\n{self.log.read_text()}"
            time.sleep(0.1)

    @contextmanager
    def another(self) -> Iterator[Server]:
        server = Server(self.home, free_port(), self.log)
        try:
            self.until(
                lambda: httpx2.get(self.url("/studies", server), headers=self.headers).json()["cluster"],
                "second service",
            )
            yield server
        finally:
            server.end()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("serve"))
    yield service
    service.server.end()
    head = read_head(service.home)
    assert head is not None
    assert stop_head(service.home)
    assert process_start_ticks(head.pid) is None, "its Ray is still running"


def study(name: str, steps: int = 20, **changes: object) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(Study.load("smoke").to_yaml())
    training = content["training"] | {"steps": steps}
    content |= {"name": name, "methods": ["baseline"], "training": training, "resources": {"workers": 1}}
    return content | {"intervals": {"evaluate": max(10, steps // 20)}} | changes


def test_from_submission_to_the_end(service: Service) -> None:
    answer = service.post("/studies", study("first"))
    assert answer.status_code == 201, answer.text
    assert answer.json()["estimate"]["cells"] == 2
    again = service.post("/studies", study("first"))
    assert again.status_code == 409, "a running study cannot be submitted again"
    assert answer.json()["job"] in again.json()["problem"]
    ids, last = [], ""
    url = service.url("/studies/first/events")
    with httpx2.stream("GET", url, headers=service.headers, timeout=WAIT_S) as stream:
        for line in stream.iter_lines():
            ids += [int(line.removeprefix("id: "))] if line.startswith("id: ") else []
            last = line if line.startswith("event: ") else last
    assert last == "event: end"
    ledger = read_ledger(service.home, "first")
    assert ids == list(range(1, ledger.seq + 1))
    assert service.state("first") == "ended"
    (chart,) = service.get("/studies/first/curves")["charts"]
    losses = {point["cell"]: point["loss"] for point in chart["curves"][0]["points"]}
    assert losses == {entry.id: entry.result.val_loss for entry in ledger.entries.values()}
    assert "2 cells" in service.get("/studies/first/logs")["text"]
    changed = service.post("/studies", study("first", steps=30))
    assert changed.status_code == 409
    assert "is taken" in changed.json()["problem"]
    page = httpx2.get(service.url("/studies/first/report"), headers=service.headers, timeout=60)
    assert "sandbox" in page.headers["Content-Security-Policy"]
    assert "<h1>first</h1>" in page.text


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_the_whole_description_of_a_service_with_a_cluster(service: Service, mode: GenerationMode) -> None:
    """The requests also stop, resume and resubmit an existing study. No response is a 5xx."""
    url = service.url("/openapi.json")
    schema = schemathesis.openapi.from_url(url, headers=service.headers)
    assert len(ask_everything(schema, service.headers, mode, "first", (), examples=8)) == 16


def test_stop_and_resume(service: Service) -> None:
    assert service.post("/studies", study("long", steps=3000)).status_code == 201
    service.until(lambda: service.get("/studies/long")["cells"].get("running", 0) > 0, "cell that runs")
    stopped = service.post("/studies/long/stop", {})
    assert stopped.status_code == 202, stopped.text
    service.until(lambda: service.state("long") == "interrupted", "interruption")
    assert service.post("/studies/long/stop", {}).status_code == 409, "the study is no longer running"
    resumed = service.post("/studies/long/resume", {})
    assert resumed.status_code == 201, resumed.text
    assert resumed.json()["job"] != stopped.json()["job"]
    service.until(lambda: service.state("long") == "ended", "end")
    assert service.get("/studies/long")["cells"] == {"finished": 2}
    actions = [
        (line["action"], line["outcome"].partition(":")[0])
        for line in map(json.loads, (service.home.service / "audit.jsonl").read_text().splitlines())
        if line["study"].startswith("long")
    ]
    assert actions == [
        (what, outcome)
        for what, end in (("submit", "done"), ("stop", "done"), ("stop", "ApiError"), ("resume", "done"))
        for outcome in ("asked", end)
    ]


def test_a_race_through_two_services_makes_one_job(service: Service) -> None:
    with service.another() as other, ThreadPoolExecutor(8) as clients:
        start = threading.Barrier(8)

        def submit(number: int) -> int:
            start.wait()
            return service.post("/studies", study("raced"), other if number % 2 else None).status_code

        assert sorted(clients.map(submit, range(8))) == [201] + [409] * 7
        assert httpx2.get(service.url("/studies/raced", other), headers=service.headers).json()["job"]
    service.until(lambda: service.state("raced") == "ended", "end")


def test_a_killed_service_does_not_end_its_studies(service: Service) -> None:
    head = read_head(service.home)
    assert service.post("/studies", study("killed", steps=1500)).status_code == 201
    service.until(lambda: service.get("/studies/killed")["cells"].get("running", 0) > 0, "cell that runs")
    service.server.kill()
    service.until(lambda: service.get("/studies")["cluster"], "service after its death")
    assert read_head(service.home) == head, "the new service started another Ray"
    assert service.state("killed") == "running"
    service.until(lambda: service.state("killed") == "ended", "end")
    assert set(service.get("/studies/killed")["cells"]) <= TERMINAL - {"crashed"}


def test_more_studies_than_the_service_runs_at_once(service: Service) -> None:
    names = [f"many-{i}" for i in range(5)]
    answers = [service.post("/studies", study(name)) for name in names]
    assert [answer.status_code for answer in answers] == [201] * 4 + [429]
    assert answers[-1].headers["Retry-After"]
    service.until(lambda: all(service.state(name) == "ended" for name in names[:4]), "end of them")


def test_a_short_load_test_with_a_kill() -> None:
    command = ["--watchers", "10", "--submitters", "3", "--seconds", "20", "--kill", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.serve", *command],
        capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing lost" in done.stdout


def test_errors_of_the_command(service: Service) -> None:
    taken = oec("serve", "--port", service.server.port, home=service.home.path)
    assert taken.returncode == 2
    assert "cannot be opened on 127.0.0.1" in taken.stderr
    assert oec("serve", "--max-active", "0", home=service.home.path).returncode == 2
