"""Comparisons of studies: the numbers and sentences of ``oec diff``, and the figures of a report."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
from rich.console import Console

from dashboards.comparison import compare
from dashboards.sensitivity import curves
from search_spaces.cell import Cell
from search_spaces.study import Study
from service.home.layout import Home
from service.home.studies import read_ledger, register_study
from service.report.report import diff
from service.report.sources import load_each
from tests.service.http.conftest import Served, ended, served

FILE: dict[str, Any] = {
    "name": "run-a",
    "scales": ["tiny"],
    "methods": ["baseline", "mu-centering"],
    "lrs": [1e-3, 1e-2, 1e-1],
    "seeds": 3,
    "training": {"steps": 20, "warmup_steps": 2},
}


def valley(shift: float, noise: float = 0.01) -> Any:
    """Returns a loss function of a cell that is lowest at a learning rate of 0.01."""

    def loss(cell: Cell) -> float:
        return 2.5 + shift + 0.2 * (math.log10(cell.lr) + 2) ** 2 + noise * cell.seed * cell.lr

    return loss


def three(home: Home) -> None:
    """Writes ``run-a``, ``run-b`` with higher losses, and ``run-c``, which shares one method with both."""
    ended(home, Study.validate_fields(FILE), valley(0))
    ended(
        home, Study.validate_fields(FILE | {"name": "run-b", "training": {"steps": 20, "warmup_steps": 4}}), valley(0.5)
    )
    ended(home, Study.validate_fields(FILE | {"name": "run-c", "methods": ["mu-centering", "max-z"]}), valley(0.1, 0.5))


@pytest.fixture
def service(home: Home) -> Served:
    three(home)
    return served(home)


def compared(service: Served, *names: str) -> dict[str, Any]:
    answer = service.reader.get("/api/v1/compare", params={"study": names})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_rows_and_sentences_match_diff(service: Served) -> None:
    (found,) = compared(service, "run-a", "run-b")["comparisons"]
    sources = load_each(("run-a", "run-b"), service.home, {})
    expected = compare(*(curves(source.runs, source.grid) for source in sources))
    for told, row in zip(found["rows"], expected.rows.to_dict("records"), strict=True):
        known = {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}
        assert told == known
    changed = [row["curve"] for row in found["rows"] if row["verdict"] == "changed"]
    assert changed == ["tiny baseline", "tiny mu-centering"]
    console = Console(file=io.StringIO(), width=200, color_system=None)
    for renderable in diff(*sources):
        console.print(renderable, soft_wrap=True)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    for sentence in found["sentences"]:
        assert sentence in printed
    for row in found["texts"]:
        assert all(text in printed for text in row.values()), row


def test_each_is_compared_with_the_first(service: Served) -> None:
    found = compared(service, "run-b", "run-c", "run-a")
    assert found["studies"] == ["run-b", "run-c", "run-a"]
    assert [(one["before"], one["after"]) for one in found["comparisons"]] == [("run-b", "run-c"), ("run-b", "run-a")]
    assert "Only in run-c: tiny max-z (gamma=0.0002)" in found["comparisons"][0]["sentences"]


def test_figures_have_every_cell(service: Served) -> None:
    figures = compared(service, "run-a", "run-c")["figures"]
    assert [figure["title"] for figure in figures] == ["Final loss over learning rate", "LRS by curve"]
    drawn = {row["cell"]: row["loss"] for row in figures[0]["spec"]["datasets"]["facts"]}
    entries = [entry for name in ("run-a", "run-c") for entry in read_ledger(service.home, name).entries.values()]
    expected = {entry.cell.id: entry.result.val_loss for entry in entries if entry.result}
    assert drawn == pytest.approx(expected)
    labels = {row["label"] for row in figures[0]["spec"]["datasets"]["facts"]}
    assert {"run-a: mu-centering", "run-c: mu-centering"} < labels


def test_what_cannot_be_compared(service: Served, home: Home) -> None:
    over_eps = {"lrs": [0.01], "factors": {"training.eps": [1e-8, 1e-6]}, "lr_factor": "training.eps"}
    ended(home, Study.validate_fields(FILE | {"name": "decay"} | over_eps), valley(0))

    def refused(*names: str) -> tuple[int, str]:
        answer = service.reader.get("/api/v1/compare", params={"study": names})
        return answer.status_code, answer.json()["problem"]

    assert refused("run-a", "absent") == (404, "is not in this home")
    assert refused("run-a", "run-a") == (422, "is given twice")
    assert refused("run-a", "decay")[0] == 422
    assert "are over different axes" in refused("run-a", "decay")[1]
    for names in ((), ("run-a",), ("run-a",) * 7):
        assert refused(*names)[0] == 422


def test_studies_without_a_result(home: Home) -> None:
    for name in ("one", "two"):
        register_study(home, Study.validate_fields(FILE | {"name": name}))
    found = compared(served(home), "one", "two")
    assert found["figures"] == []
    assert found["comparisons"][0]["sentences"] == ["one and two have no curve in common."]
