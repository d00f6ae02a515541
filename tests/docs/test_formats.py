"""docs/formats.md matches the code: its tables are compared with models and with the files of a trained study."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

from mlflow import MlflowClient
from pydantic import BaseModel

from dashboards import drift
from dashboards.analysis import TABLES
from dashboards.tables import TABLE_COLUMNS
from search_spaces.command_line import PLACEHOLDERS
from search_spaces.method_choice import MethodChoice
from search_spaces.metrics_spec import SOURCES
from search_spaces.plan import Plan
from search_spaces.record import COLUMNS, STATES
from search_spaces.study import Study
from service.home.ledger import FORMAT
from service.home.writer import Writer
from service.mlflow.store import EXPERIMENT
from tests.docs.blocks import blocks, names, rows, section
from trainers import checkpoint, weights
from trainers.data import shards, sources
from trainers.data.preparation import FinishedFile, Manifest, Recipe
from trainers.diagnostics import keys
from trainers.run import Progress
from trainers.usage import KEYS as USAGE

PAGE = "formats.md"


def models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yields the models in the annotation of a field, also of an optional field or of the items of a tuple."""
    if get_origin(annotation) in (Union, UnionType, tuple) or hasattr(annotation, "__metadata__"):
        for part in get_args(annotation):
            yield from models(part)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation


def study_rows(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yields the line of the table for each field that has a value."""
    for name, field in model.model_fields.items():
        name = field.alias or name
        inner = [found for found in models(field.annotation) if found is not MethodChoice]
        if inner:
            yield from study_rows(inner[0], f"{prefix}{name}.")
            continue
        default = "" if field.is_required() else json.dumps(field.get_default(call_default_factory=True))
        yield f"| `{prefix}{name}` | {default} | {field.description} |"
        if name == "methods":
            yield from study_rows(MethodChoice, "methods[].")


def test_the_fields_of_a_study_match_its_schema() -> None:
    want = "\n".join(["| field | default | meaning |", "|---|---|---|", *study_rows(Study)])
    assert want in section(PAGE, "Study files"), (
        f"docs/formats.md, section Study files, must contain this table:\n{want}"
    )


def test_placeholders_and_sources_of_a_command() -> None:
    documented = {row[0][0] for row in rows(PAGE, "Trainers")}
    assert documented == {*PLACEHOLDERS, *SOURCES, "finished", "diverged", "crashed"}
    (example,) = blocks(PAGE, "yaml")
    assert Study.parse(example).trainer is not None


def test_the_lines_of_a_ledger(trained: Path) -> None:
    documented = {row[0][0]: set(row[1]) for row in rows(PAGE, "Ledger")}
    lines = [json.loads(line) for line in (trained / "studies/first/ledger.jsonl").read_text().splitlines()]
    assert set(documented) == {"open", *STATES}
    optional = {"reused_from"}
    for line in lines:
        assert set(line) - {"seq", "at", "event"} == documented[line["event"]] - optional, line["event"]
    assert f"`format` is {FORMAT}" in section(PAGE, "Ledger")


def test_the_writer_of_a_ledger_in_a_bucket() -> None:
    assert set(names(PAGE, "Ledger in a bucket")) == set(Writer.model_fields)


def test_the_keys_of_a_row_of_metrics(trained: Path) -> None:
    documented = set(names(PAGE, "Metrics"))
    assert documented == {"step", "time", *keys(1)}
    for path in trained.glob("studies/first/cells/*/metrics.jsonl"):
        for line in path.read_text().splitlines():
            assert {re.sub(r"/\d+$", "/0", key) for key in json.loads(line)} <= documented


def test_a_checkpoint(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, "cell", 20, {}, {})
    (written,) = tmp_path.glob("*.json")
    documented = names(PAGE, "Checkpoints")
    assert list(dict.fromkeys(name.partition(".")[0] for name in documented)) == list(json.loads(written.read_text()))
    progress = [name.removeprefix("progress.") for name in documented if name.startswith("progress.")]
    assert sorted(progress) == sorted(field.name for field in fields(Progress))


def test_weights(tmp_path: Path) -> None:
    weights.save(tmp_path, Plan(Study.load("smoke"), "data").cells[0], 20, {})
    (written,) = tmp_path.glob("*.json")
    documented = names(PAGE, "Weights")
    assert list(dict.fromkeys(name.partition(".")[0] for name in documented)) == list(json.loads(written.read_text()))


def test_tables_of_an_analysis() -> None:
    documented = {row[0][0]: row[1] for row in rows(PAGE, "Analyses")}
    assert documented == {f"{name}.csv": list(columns) for name, columns in TABLES.items()}


def test_token_files_and_their_manifests() -> None:
    text = section(PAGE, "Token files")
    for number in (shards.MAGIC, shards.VERSION, shards.HEADER_BYTES):
        assert f"{number:,}" in text or str(number) in text
    assert names(PAGE, "Manifest of a study's text") == list(sources.TextManifest.model_fields)
    prepared = [*Manifest.model_fields, *(f"recipe.{name}" for name in Recipe.model_fields)]
    prepared += [f"files[].{name}" for name in FinishedFile.model_fields]
    assert names(PAGE, "Manifest of `oec data prepare`") == prepared


def test_the_columns_of_runs_match_the_registry() -> None:
    lines = (f"| `{column.name}` | {column.unit} | {column.meaning} |" for column in COLUMNS.values())
    want = "\n".join(["| column | unit | meaning |", "|---|---|---|", *lines])
    assert want in section(PAGE, "Runs"), f"docs/formats.md, section Runs, must contain this table:\n{want}"


def test_the_columns_of_curves() -> None:
    assert names(PAGE, "Curves") == list(TABLE_COLUMNS)
    assert names(PAGE, "Drift") == list(drift.COLUMNS)


def test_mlflow_keys(trained: Path) -> None:
    client = MlflowClient(f"sqlite:///{trained / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.`oec.study` = 'first'")
    cells = [run for run in runs if "oec.cell" in run.data.tags]
    documented = {(row[0][0], name) for row in rows(PAGE, "MLflow") for name in row[1]}
    found = {("tag", name) for run in cells for name in run.data.tags if not name.startswith("mlflow.")}
    found |= {("param", re.sub(r"\..*", ".*", name)) for run in cells for name in run.data.params}
    of_rows = {*keys(9), *USAGE}
    found |= {("metric", name) for run in cells for name in run.data.metrics if name not in of_rows}
    assert found == documented
