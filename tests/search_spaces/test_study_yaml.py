"""Reading of study files: YAML 1.2 numbers, no duplicate keys, and no tracebacks."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from search_spaces import study_yaml
from search_spaces.errors import InvalidInput
from search_spaces.shipped import SHIPPED, shipped
from search_spaces.study import Study
from service.http.untrusted import parse_study

BASE = """\
name: mine
scales: [tiny]
methods: [baseline]
training: {steps: 10, warmup_steps: 1}
"""


def parsed(more: str) -> Study:
    return Study.parse(BASE + more)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("-010", -10),
        ("0o17", 15),
        ("0x1F", 31),
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        ("+.5", 0.5),
        ("1.", 1.0),
        (".inf", float("inf")),
        ("1:30", "1:30"),
        ("1:30.5", "1:30.5"),
        ("0b11", "0b11"),
        ("1_000", "1_000"),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("Off", "Off"),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("2024-01-01", "2024-01-01"),
        ("=", "="),
        ("1e", "1e"),
        ("08.5", 8.5),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    (found,) = study_yaml.read(f"[{text}]")
    assert (found, type(found)) == (value, type(value))


def test_numbers_in_a_study() -> None:
    study = parsed("lrs: [1e-3, 01]\nseeds: [010, 011]\nmodel: {tied: yes}\nresources: {compile: no}\n")
    assert (study.lrs, study.seeds, study.model.tied, study.resources.compile) == ((0.001, 1.0), (10, 11), True, False)


@pytest.mark.parametrize("value", ["1:30", "0b11", "1__0", "2024-01-01", "1,5", "½"])
def test_invalid_numbers_are_refused(value: str) -> None:
    with pytest.raises(InvalidInput, match="valid integer") as caught:
        Study.parse(
            BASE.replace("steps: 10,", f"steps: 10, batch_size: {value if ',' not in value else repr(value)},")
            + "lrs: [1]"
        )
    assert caught.value.field == "training.batch_size"


@pytest.mark.parametrize(
    ("text", "key", "lines"),
    [
        ("lrs: [1e-3, 1e-2]\nseeds: 2\nlrs: [1e-4]\n", "lrs", (5, 7)),
        ("lrs: [1]\nname: other\n", "name", (1, 6)),
        ("lrs: [1]\n'name': other\n", "name", (1, 6)),
        ("lrs: [1]\ndata: {source: text,\n  path: a, path: b}\n", "path", (7, 7)),
        ("lrs: [1]\nrefine:\n  trials: 1\n  budget: {cells: 2, cells: 2}\n", "cells", (8, 8)),
        ("lrs: &x [1]\nintervals: {<<: {evaluate: 1}, <<: {checkpoint: 1}}\n", "<<", (6, 6)),
    ],
)
def test_a_duplicate_key_is_refused_with_its_lines(text: str, key: str, lines: tuple[int, int]) -> None:
    with pytest.raises(InvalidInput) as caught:
        parsed(text)
    assert f"has the key {key!r} twice, at line {lines[0]} and line {lines[1]}" in str(caught.value)
    with pytest.raises(InvalidInput, match=r"twice|aliases"):
        parse_study((BASE + text).encode(), "application/yaml", SHIPPED)


def test_a_duplicate_key_in_json(tmp_path: Any) -> None:
    body = b'{"name": "a", "scales": ["tiny"], "methods": ["baseline"], "lrs": [1], "data": {"path": "a", "path": "b"}}'
    with pytest.raises(InvalidInput, match="has the key 'path' twice"):
        parse_study(body, "application/json", tmp_path)


def test_merge_keys_still_work() -> None:
    """A key next to ``<<`` replaces the merged one. Neither counts as a duplicate, however often the anchor is used."""
    study = parsed(
        "lrs: [1]\nintervals: &base {evaluate: 3, checkpoint: 4}\ndescription: x\n"
        "resources: {<<: {workers: 1}, workers: 2}\nkeep_weights: {last: true}\n"
    )
    assert study.resources.workers == 2
    text = "a: &a {x: 1, y: 2}\nb: &b {<<: *a, y: 3}\nc: {<<: *b}\nd: {<<: [*a, *b], x: 9}\n"
    assert study_yaml.read(text) == yaml.safe_load(text)


@pytest.mark.parametrize(
    "text",
    [
        "name: " + "[" * 2000 + "]" * 2000,
        "{a: " * 2000,
        "- " * 5000,
        "a: &a [*a]",
        "name: !!python/object/apply:os.system [x]",
        "steps: " + "9" * (sys.get_int_max_str_digits() + 1),
        "a: b\n---\nc: d",
        "a: *nothing",
        "\ttabs: 1",
        "a: '\0'",
        "? [a]\n: b",
        "? {a: 1}\n: b",
        'name: "\\ud800"\nscales: [tiny]',
        "",
        "- a",
    ],
)
def test_files_that_are_not_studies_are_refused_without_a_traceback(text: str) -> None:
    with pytest.raises(InvalidInput):
        Study.parse(text)
    with pytest.raises(InvalidInput):
        parse_study(text.encode(errors="surrogatepass"), "application/yaml", SHIPPED)


@pytest.mark.parametrize("name", shipped())
def test_shipped_studies_read_the_same_in_both_yaml_versions(name: str) -> None:
    """This shows that no cell and no hash has changed."""
    text = (SHIPPED / f"{name}.yaml").read_text(encoding="utf-8")
    study = Study.parse(text)
    assert study == Study.validate_fields(yaml.safe_load(text))
    assert Study.parse(study.to_yaml()) == study == Study.validate_fields(yaml.safe_load(study.to_yaml()))


LOOKALIKES = st.sampled_from(
    [
        "010",
        "1e3",
        "1.5",
        "0o7",
        "0x1",
        "yes",
        "no",
        "null",
        "~",
        "",
        "1:30",
        "<<",
        "=",
        "-",
        "true",
        "2024-01-01",
        ".inf",
    ]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | LOOKALIKES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | LOOKALIKES, inner, max_size=4),
    max_leaves=10,
)


@given(values)
def test_values_are_read_back_as_written(value: object) -> None:
    assert study_yaml.read(study_yaml.write(value)) == value
