"""The stack without containers: every service of docker/compose.yaml, and studies that run through all of them."""

from __future__ import annotations

import base64
import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from search_spaces.study import Study
from service.home.layout import Home
from service.home.studies import read_ledger
from tests.docker.stack import Stack, started

pytestmark = [pytest.mark.slow, pytest.mark.long]

ROOT = Path(__file__).parents[2]
JOB_S = 480


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """Yields all services, with two Ray workers of one CPU each."""
    with started(workers=2) as stack:
        yield stack


def submit(stack: Stack, *arguments: str) -> str:
    """Submits a job with the command of the service ``demo`` up to its ``--``, and returns the job's output."""
    job = stack.demo(*arguments, capture_output=True, timeout=JOB_S, cwd=ROOT)
    assert job.returncode == 0, f"{job.stdout}{job.stderr}\n{stack.logs()}"
    return job.stdout


def test_a_job_trains_on_two_nodes_and_its_runs_are_in_postgres(stack: Stack) -> None:
    command = stack.command("demo")
    assert command[-3:] == ["oec", "run", "demo"]
    printed = submit(stack, "--", "oec", "run", "smoke")
    home = Home(stack.volumes["/oec-home"])
    ended = read_ledger(home, "smoke").ended()
    assert len(ended) == 6, printed
    assert "one cell at a time, 2 DDP workers each" in printed  # two CPUs, each on its own node

    where = {"host": "127.0.0.1", "port": stack.here("5432"), "user": "mlflow", "dbname": "mlflow"}
    with psycopg.connect(**where, password=stack.secrets["postgres-password"]) as connection:
        rows = connection.execute(
            "select t.value, m.value from runs r"
            " join tags t on t.run_uuid = r.run_uuid and t.key = 'oec.cell'"
            " join latest_metrics m on m.run_uuid = r.run_uuid and m.key = 'final_val_loss'"
            " where r.status = 'FINISHED'"
        ).fetchall()
    assert dict(rows) == {entry.id: pytest.approx(entry.result.val_loss) for entry in ended}
    assert list(stack.volumes["/artifacts"].rglob("report.html")), "the report's page is not among MLflow's artifacts"


def test_a_working_directory_ships_only_the_sources_and_its_code_is_what_runs(stack: Stack) -> None:
    look = "import os, service; print('SHIPPED', service.__file__, os.getcwd(), *os.listdir())"
    printed = submit(stack, "--working-dir", ".", "--", sys.executable, "-c", look)
    (shipped,) = (line.split()[1:] for line in printed.splitlines() if line.startswith("SHIPPED"))
    module, folder, *names = shipped
    assert module == f"{folder}/service/__init__.py"
    assert {"service", "trainers", "pyproject.toml"} <= set(names)
    assert not {".git", ".venv", "oec-home"} & set(names)


def test_the_service_submits_a_study_to_the_same_cluster(stack: Stack) -> None:
    studies = f"{stack.address('serve')}/api/v1/studies"
    headers = {"Authorization": f"Bearer {stack.token('test')}", "Content-Type": "application/yaml"}
    study = Study.load("smoke").model_copy(update={"name": "sent", "lrs": (1e-3, 1e-2)})

    def call(url: str, body: bytes | None = None) -> Any:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=60) as answer:
            return json.load(answer)

    call(studies, study.to_yaml().encode())
    deadline = time.monotonic() + JOB_S
    while (found := call(f"{studies}/sent"))["state"] in ("claimed", "starting", "running"):
        assert time.monotonic() < deadline, f"{found}\n{stack.logs()}"
        time.sleep(0.5)
    assert (found["state"], found["cells"]) == ("ended", {"finished": 6}), found


def test_requests_without_a_token_or_password_or_with_another_host_name_are_refused(stack: Stack) -> None:
    ray, experiment = f"{stack.address('ray-head')}/api/jobs/", "/api/2.0/mlflow/experiments/get?experiment_id=0"
    admin = base64.b64encode(f"admin:{stack.secrets['mlflow-password']}".encode()).decode()
    service = stack.address("serve")
    for url, headers, status in (
        (f"{service}/healthz", {}, 200),
        (f"{service}/api/v1/studies", {}, 401),
        (ray, {}, 401),
        (ray, {"Authorization": f"Bearer {stack.secrets['ray-token']}"}, 200),
        (stack.address("mlflow") + experiment, {}, 401),
        (stack.address("mlflow") + experiment, {"Authorization": f"Basic {admin}"}, 200),
        (stack.address("mlflow") + experiment, {"Authorization": f"Basic {admin}", "Host": "evil"}, 403),
    ):
        try:
            answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30).status
        except urllib.error.HTTPError as refused:
            answer = refused.code
        assert answer == status, (url, sorted(headers))
