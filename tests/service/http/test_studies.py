"""Studies over the API: rejected input, and that responses match the ledger."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from dashboards.runs import from_records
from dashboards.sensitivity import curves
from search_spaces.errors import InvalidInput
from search_spaces.methods import label
from search_spaces.study import Study
from service.home.layout import Home
from service.home.studies import read_ledger, register_study
from service.http.audit import Audit
from service.http.backend import Backend
from service.http.feed import LedgerFeeds
from service.http.models import Settings
from service.http.studies import Studies
from service.http.untrusted import parse_study
from tests.service.http.conftest import CELLS, STUDY, TOKENS_PER_SECOND, Served, served

FILE: dict[str, Any] = yaml.safe_load(STUDY.to_yaml())
YAML = {"Content-Type": "application/yaml"}


def test_a_plan_matches_the_command_line(service: Served) -> None:
    as_json = service.reader.post("/api/v1/plan", json=FILE)
    as_yaml = service.reader.post("/api/v1/plan", content=STUDY.to_yaml(), headers=YAML)
    assert as_json.status_code == 200, as_json.text
    assert as_json.json() == as_yaml.json()
    told = as_json.json()
    assert (told["study"], told["hash"], told["cells"]) == ("smoke", STUDY.hash, 6)
    assert [curve["label"] for curve in told["curves"]] == ["baseline", label("z-loss", 1e-4), "mu-centering"]
    assert told["tokens"] == sum(cell.tokens for cell in CELLS)
    assert told["measured"]
    seconds = sum(cell.tokens for cell in CELLS) / TOKENS_PER_SECOND / told["max_concurrent"]
    assert told["seconds"] == pytest.approx(seconds)
    assert told["core_hours"] == pytest.approx(seconds / 3600 * told["max_concurrent"] * 2)


@pytest.mark.parametrize(
    ("change", "field", "remedy"),
    [
        ({"methods": ["z-los"]}, "methods.0.method", "did you mean 'z-loss'?"),
        ({"lrs": []}, "lrs", "at least one"),
        ({"lrs": [0.1, 0.01]}, "lrs", "sort it"),
        ({"name": "../x"}, "name", "letters"),
        ({"resources": {"workers": 4096}, "training": {**FILE["training"], "batch_size": 4096, "eval_sequences": 4096}},
         "resources.workers", "use"),
        ({"seeds": 9999}, "study", "at most 2000"),
        ({"seeds": 10**9}, "seeds", "at most 10000"),
        ({"refine": 10**12}, "study", "at most 2000"),
        ({"training": {**FILE["training"], "steps": 10**12}}, "study", "at most"),
        ({"training": {**FILE["training"], "steps": 10**400}}, "training.steps", "2^53"),
        ({"description": "\ud800"}, "description", "remove it"),
        ({"unknown": 1}, "unknown", ""),
        ({"data": {"source": "text", "path": "/etc/passwd"}}, "data.path", "inside the data folder"),
        ({"data": {"source": "text", "path": "../../etc/passwd"}}, "data.path", "inside the data folder"),
        ({"data": {"source": "text", "path": "absent"}}, "data.path", "inside the data folder"),
        ({"data": {"source": "text", "path": "*" * 300}}, "data.path", "inside the data folder"),
    ],
)  # fmt: skip
def test_a_bad_study_is_refused_with_field_and_remedy(
    service: Served, change: dict[str, Any], field: str, remedy: str
) -> None:
    for path in ("/api/v1/plan", "/api/v1/studies"):
        answer = service.runner.post(
            path, content=json.dumps(FILE | change), headers={"Content-Type": "application/json"}
        )
        assert answer.status_code == 422, answer.text
        assert set(answer.json()) == {"field", "value", "problem", "remedy"}
        assert answer.json()["field"] == field
        assert remedy in answer.json()["remedy"]
    assert service.reader.get("/api/v1/studies").json()["studies"][0]["name"] == "smoke"


BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))


@pytest.mark.parametrize(
    "body",
    [b"", b"[", b"\xff", b"- a", b"1", b"[" * 60_000, b"{a: " * 10_000, BOMB.encode(), b"a: !!python/name:os.system",
     b"name: 2024-01-01", b"name: !!binary aGk=", b"? [a]\n: b", b"a: .inf", b"a: 0x" + b"f" * 9_000],
    ids=lambda body: repr(body[:20]),
)  # fmt: skip
@pytest.mark.parametrize("media_type", ["application/json", "application/yaml", ""])
def test_bytes_that_are_not_a_study(service: Served, body: bytes, media_type: str) -> None:
    answer = service.runner.post("/api/v1/plan", content=body, headers={"Content-Type": media_type})
    assert answer.status_code == 422, answer.text[:300]


def test_data_must_be_below_the_root(tmp_path: Path) -> None:
    root = tmp_path / "data"
    (root / "texts").mkdir(parents=True)
    (root / "texts" / "a.txt").write_text("a")
    (tmp_path / "secret.txt").write_text("s")
    (root / "link").symlink_to(tmp_path)

    def path_of(path: str) -> str | None:
        body = json.dumps(FILE | {"data": {"source": "text", "path": path}}).encode()
        return parse_study(body, "application/json", root).data.path

    for path in ("texts", "texts/a.txt", "texts/*.txt", "**/*.txt", str(root / "texts"), "./texts"):
        assert path_of(path) == str(root / path), path
    for path in ("../secret.txt", str(tmp_path / "secret.txt"), "link/secret.txt", "texts/../../secret.txt", "/", "~",
                 "texts/b.txt", "link", "**x", "../*", "texts/[a]/../../../*"):  # fmt: skip
        with pytest.raises(InvalidInput, match=r"data\.path"):
            path_of(path)


def test_a_request_cannot_start_a_command(tmp_path: Path) -> None:
    command = {"command": "touch {lr}", "metrics": {"stdout": "(?P<val_loss>.)"}}
    for trainer in (command, {"python": "os:system"}, {"directory": "/etc", "unknown": 1}):
        body = json.dumps({"name": "mine", "lrs": [1.0], "trainer": trainer})
        with pytest.raises(InvalidInput, match="is not taken by this service"):
            parse_study(body.encode(), "application/json", tmp_path)


def test_a_study_with_a_command_cannot_be_resumed_here(service: Served, tmp_path: Path) -> None:
    """The study was started in this home with ``oec run``."""
    command = {"command": "touch {lr}", "metrics": {"stdout": "(?P<val_loss>.)"}, "directory": str(tmp_path)}
    register_study(service.home, Study.validate_fields({"name": "mine", "lrs": [1.0], "trainer": command}))
    backend = Backend(service.home, None, print)
    studies = Studies(service.home, Settings(), backend, LedgerFeeds(service.home), Audit(service.home.service))
    with pytest.raises(InvalidInput, match="is not started by this service; use oec run or oec submit"):
        studies._start_job(studies.load("mine"), retry_crashed=False)


def test_cells_can_be_paged_and_filtered_by_state(service: Served) -> None:
    everything = service.reader.get("/api/v1/studies/smoke/cells").json()
    assert everything["total"] == len(CELLS)
    assert [cell["cell"] for cell in everything["cells"]] == [cell.id for cell in CELLS]
    page = service.reader.get("/api/v1/studies/smoke/cells?offset=1&limit=2").json()
    assert [cell["cell"] for cell in page["cells"]] == [cell.id for cell in CELLS[1:3]]
    diverged = service.reader.get("/api/v1/studies/smoke/cells?state=diverged").json()
    assert [(cell["cell"], cell["reason"]) for cell in diverged["cells"]] == [(CELLS[1].id, "the loss is nan")]


def test_curves_and_table_match_the_report(service: Served) -> None:
    ledger = read_ledger(service.home, "smoke")
    facts = {curve.label: curve for curve in curves(from_records(ledger.records()), STUDY.lrs)}
    told = service.reader.get("/api/v1/studies/smoke/curves").json()
    assert told["seq"] == ledger.seq
    (chart,) = told["charts"]
    assert {curve["name"] for curve in chart["curves"]} == {name for name, curve in facts.items() if curve.points}
    for curve in chart["curves"]:
        expected = facts[curve["name"]]
        assert [(p["cell"], p["loss"], p["diverged"]) for p in curve["points"]] == [
            (p.cell, p.loss, p.diverged) for p in expected.points
        ]
    table = service.reader.get("/api/v1/studies/smoke/table").json()
    assert [row["method"] for row in table["rows"]] == [curve.method for curve in facts.values()]
    assert all(set(row) == set(table["columns"]) for row in table["rows"])


def test_the_status_of_a_study(service: Served, home: Home) -> None:
    told = service.reader.get("/api/v1/studies/smoke").json()
    assert (told["state"], told["cells"]) == ("running", {"finished": 1, "diverged": 1, "running": 1, "planned": 3})
    assert told["file"]["lrs"] == list(STUDY.lrs)
    register_study(home, Study.validate_fields(FILE | {"name": "untouched"}))
    assert service.reader.get("/api/v1/studies/untouched").json()["state"] == "claimed"
    assert service.reader.get("/api/v1/studies/untouched/curves").json()["charts"] == []
    assert service.reader.get("/api/v1/studies/untouched/table").json()["rows"] == []


def test_an_interrupted_study_and_a_damaged_one(home: Home, service: Served) -> None:
    folder = home.study("other")
    folder.mkdir()
    os.link(home.ledger("smoke"), folder / "ledger.jsonl")
    (folder / "study.yaml").write_text(STUDY.to_yaml())
    assert service.reader.get("/api/v1/studies/other").json()["state"] == "running", (
        "a study whose ledger is held is running"
    )
    (folder / "ledger.jsonl").unlink()
    (folder / "ledger.jsonl").write_bytes(home.ledger("smoke").read_bytes())
    assert service.reader.get("/api/v1/studies/other").json()["state"] == "interrupted"
    (folder / "ledger.jsonl").write_text("damaged\n")
    told = {one["name"]: one for one in service.reader.get("/api/v1/studies").json()["studies"]}
    assert told["other"]["state"] == "damaged"
    assert "ledger.jsonl:1" in told["other"]["message"]
    assert told["smoke"]["state"] == "running", "a damaged study must not hide the others"
    assert service.reader.get("/api/v1/studies/other/curves").status_code == 409


def test_metrics_for_prometheus(service: Served) -> None:
    service.reader.get("/api/v1/studies/smoke")
    text = service.reader.get("/metrics").text
    assert 'oec_studies{state="running"} 1.0' in text
    assert 'oec_cells{state="planned"} 3.0' in text
    assert 'oec_http_requests_total{method="GET",route="/api/v1/studies/{name}",status="200"} 1.0' in text
    assert 'oec_http_seconds_count{method="GET",route="/api/v1/studies/{name}"} 1.0' in text
    assert 'route="/api/v1/studies/smoke"' not in text, (
        "a study's name as a label would create a time series for each study"
    )


def test_an_unreachable_cluster_is_reported(home: Home) -> None:
    lost = served(home, cluster="http://127.0.0.1:9")
    answer = lost.runner.post("/api/v1/studies", json=FILE)
    assert answer.status_code == 503
    assert answer.headers["Retry-After"]
    assert "does not answer" in answer.json()["problem"]
    assert lost.reader.get("/api/v1/studies").json() == {"studies": [], "cluster": False}
