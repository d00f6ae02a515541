"""What the page's form asks the service: the available choices, and what a draft still lacks."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from search_spaces.attention_norms import ATTENTION_NORMS
from search_spaces.cell import round_significant
from search_spaces.methods import METHODS
from search_spaces.scales import SCALES
from search_spaces.shipped import shipped
from search_spaces.study import Study
from service.home.layout import Home
from tests.service.http.conftest import STUDY, Served, served

FILE: dict[str, Any] = yaml.safe_load(STUDY.to_yaml())


def draft(service: Served, content: dict[str, Any]) -> dict[str, Any]:
    answer = service.reader.post("/api/v1/draft", json=content)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_choices_match_the_registries(service: Served) -> None:
    found = service.reader.get("/api/v1/choices").json()
    scales = [(scale["name"], scale["blocks"], scale["width"], scale["heads"]) for scale in found["scales"]]
    assert scales == [(scale.name, scale.L, scale.D, scale.H) for scale in SCALES.values()]
    assert [norm["name"] for norm in found["attention_norms"]] == list(ATTENTION_NORMS)
    assert {one["name"]: one["default_gamma"] for one in found["methods"]} == {
        name: method.default_gamma for name, method in METHODS.items()
    }
    assert float(f"{1 / 3:.{found['significant_digits']}g}") == round_significant(1 / 3)
    assert [study["name"] for study in found["studies"]] == shipped()
    for study in found["studies"]:
        assert Study.validate_fields(study["file"]) == Study.load(study["name"]), study["name"]


def test_a_complete_draft_has_the_estimate_of_a_plan(service: Served) -> None:
    found = draft(service, FILE)
    assert found["problems"] == []
    assert found["estimate"] == service.reader.post("/api/v1/plan", json=FILE).json()
    assert Study.validate_fields(found["file"]) == Study.parse(found["yaml"]) == STUDY
    assert set(found["file"]) < set(FILE), "fields with default values must be left out"
    as_yaml = service.reader.post("/api/v1/draft", content=STUDY.to_yaml(), headers={"Content-Type": "text/yaml"})
    assert as_yaml.json() == found


def test_a_draft_lists_every_problem(service: Served) -> None:
    sent = {"scales": ["tiny"], "methods": ["baselin", {"method": "z-loss", "gamma": [0]}], "training": {"steps": 0}}
    found = draft(service, sent)
    fields = [problem["field"] for problem in found["problems"]]
    assert fields == ["name", "methods.0.method", "methods.1.gamma", "lrs", "training.steps"]
    assert found["problems"][0] == service.reader.post("/api/v1/plan", json=sent).json()
    assert (found["file"], found["estimate"]) == (None, None)
    assert yaml.safe_load(found["yaml"]) == sent


def test_the_number_of_problems_of_a_draft_is_limited(service: Served) -> None:
    assert len(draft(service, FILE | {"lrs": ["x"] * 1_000})["problems"]) == 50


def test_sizes_depend_on_the_vocabulary(service: Served) -> None:
    small = draft(service, {"data": {"tokenizer": "bytes"}})["parameters"]
    assert small == {name: scale.parameters(256) for name, scale in SCALES.items()}
    tied = draft(service, {"data": {"tokenizer": "gpt2"}, "model": {"tied": True}})["parameters"]
    assert tied == {name: scale.parameters(50304, tied=True) for name, scale in SCALES.items()}
    for unusable in (3, {"vocab_size": -1}):
        assert draft(service, {"data": unusable})["parameters"]["tiny"] == SCALES["tiny"].parameters(1024)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"trainer": {"python": "os:system"}}, "trainer"),
        ({"trainer": {"directory": "/etc", "unknown": 1}}, "trainer"),
        ({"data": {"source": "text", "path": "/etc/passwd"}}, "data.path"),
        ({"data": {"source": "text", "path": "../x"}}, "data.path"),
        ({"seeds": 9999}, "study"),
    ],
)
def test_a_draft_may_not_do_more_than_a_study(service: Served, change: dict[str, Any], field: str) -> None:
    found = draft(service, FILE | change)
    assert [problem["field"] for problem in found["problems"]] == [field]


@pytest.mark.parametrize("depth", [100, 300, 900, 5_000])
@pytest.mark.parametrize("route", ["draft", "plan"])
def test_deeply_nested_input_causes_no_error(service: Served, route: str, depth: int) -> None:
    answer = service.reader.post(
        f"/api/v1/{route}",
        content=f'{{"a": {"[" * depth}{"]" * depth}}}',
        headers={"Content-Type": "application/json"},
    )
    assert answer.status_code in ((200, 422) if route == "draft" else (422,)), answer.text


def test_a_draft_is_checked_without_a_cluster(home: Home) -> None:
    lost = served(home, cluster="http://127.0.0.1:9")
    found = draft(lost, FILE)
    (problem,) = found["problems"]
    assert (problem["field"], found["estimate"]) == ("--cluster", None)
    assert draft(lost, FILE | {"lrs": []})["problems"][0]["field"] == "lrs"


def test_what_a_draft_refuses(service: Served) -> None:
    for body in ("[", "- a", "a: &a [*a]", "a: 1\na: 2", "a: .nan"):
        answer = service.reader.post("/api/v1/draft", content=body, headers={"Content-Type": "application/yaml"})
        assert answer.status_code == 422, body
    assert service.reader.post("/api/v1/draft", content=json.dumps("x" * 70_000)).status_code == 413
