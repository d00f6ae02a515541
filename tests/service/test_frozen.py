"""Frozen public names, on which users' scripts depend. A change needs a line in the changelog."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from dashboards.tables import TABLE_COLUMNS
from search_spaces.attention_norms import ATTENTION_NORMS
from search_spaces.methods import METHODS
from search_spaces.plan import Plan
from search_spaces.record import STATES, CellResult, EndState
from search_spaces.study import Study
from service import exit_codes
from service.cli import commands as cli
from service.home.ledger import Entry
from service.home.location import open_home
from service.http.app import create_app
from service.http.middleware import PUBLIC_PATHS
from service.http.models import Settings
from service.mlflow import store
from service.mlflow.saved_view import view_key
from trainers.diagnostics import keys


def options(command: click.Command) -> list[str]:
    return sorted(name for parameter in command.params for name in (parameter.opts or [parameter.name]))


def commands(group: click.Group, prefix: str = "") -> dict[str, list[str]]:
    found = {}
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            found |= commands(command, f"{prefix}{name} ")
        else:
            found[f"{prefix}{name}"] = options(command)
    return found


def test_command_line() -> None:
    assert commands(cli.main) == {
        "init": ["--force", "--name", "--out", "script"],
        "run": ["--address", "--home", "--retry-crashed", "study"],
        "plan": ["--cluster", "--home", "study"],
        "status": ["--cells", "--home", "study"],
        "submit": [
            "--cluster", "--driver-label", "--driver-resource", "--follow", "--home", "--max-megabytes",
            "--retry-crashed", "--working-dir", "study",
        ],
        "jobs": ["--cluster"],
        "logs": ["--cell", "--cluster", "--follow", "--home", "job"],
        "stop": ["--cell", "--cluster", "--home", "study"],
        "watch": ["--home", "--once", "--page", "study"],
        "report": ["--column", "--format", "--home", "--only", "--out", "sources"],
        "diff": ["--column", "--home", "after", "before"],
        "forecast": ["--cells", "--home", "studies"],
        "train": ["--attention-norm", "--gamma", "--home", "--lr", "--method", "--scale", "--seed", "study"],
        "doctor": ["--cluster", "--home", "--json"],
        "data prepare": [
            "--column", "--config", "--home", "--out", "--shard-tokens", "--split", "--tokenizer", "--tokens",
            "--val-tokens", "--workers", "source",
        ],
        "analyze": [
            "--cell", "--data", "--embedding", "--home", "--out", "--sequences", "--shards", "--weights", "study",
        ],
        "clean": ["--checkpoints", "--home", "--weights", "--yes", "study"],
        "methods": [],
        "schema": [],
        "sync": ["--home", "study"],
        "ui": ["--home", "--port"],
        "serve": [
            "--cluster", "--data-root", "--home", "--host", "--max-active", "--max-cells", "--port", "--stop-ray",
        ],
        "token add": ["--days", "--home", "--role", "name"],
        "token remove": ["--home", "name"],
        "token list": ["--home"],
    }  # fmt: skip
    assert (exit_codes.CRASHED, exit_codes.BAD_INPUT, exit_codes.INTERRUPTED) == (1, 2, 75)


def test_routes_of_the_service(tmp_path: Path) -> None:
    described = create_app(open_home(tmp_path), Settings()).openapi()
    studies = "/api/v1/studies"
    assert {path: sorted(methods) for path, methods in described["paths"].items()} == {
        "/api/v1/schema": ["get"],
        "/api/v1/choices": ["get"],
        "/api/v1/draft": ["post"],
        "/api/v1/plan": ["post"],
        "/api/v1/compare": ["get"],
        studies: ["get", "post"],
        studies + "/{name}": ["get"],
        **{f"{studies}/{{name}}/{what}": ["get"] for what in ("cells", "curves", "table", "events", "report", "logs")},
        **{f"{studies}/{{name}}/{what}": ["post"] for what in ("stop", "resume")},
    }
    fields = {name: list(schema["properties"]) for name, schema in described["components"]["schemas"].items()}
    assert fields["Problem"] == ["field", "value", "problem", "remedy"]
    assert fields["SubmitResponse"] == ["study", "hash", "job", "estimate"]
    assert fields["StudySummary"] == ["name", "description", "hash", "state", "seq", "cells", "job", "message"]
    assert fields["Curves"] == ["study", "seq", "charts"]
    assert fields["Draft"] == ["file", "yaml", "problems", "parameters", "estimate"]
    assert fields["Choices"] == ["scales", "attention_norms", "methods", "studies", "significant_digits"]
    assert fields["Compared"] == ["studies", "figures", "comparisons"]
    scripts = {"api", "choices", "compare", "curves", "fields", "form", "list", "page", "study", "vega", "view"}
    assert {"/", "/page.css", "/view", "/healthz", *(f"/{name}.js" for name in scripts)} == PUBLIC_PATHS


def test_methods() -> None:
    assert list(METHODS) == ["baseline", "z-loss", "mu-loss", "mu-centering", "soft-cap", "max-z"]


def test_attention_norms() -> None:
    assert list(ATTENTION_NORMS) == [
        "none", "qk-norm", "qk-norm-cap", "qk-fc-norm", "qkv-norm", "attn-cap", "hybrid-norm", "hybrid-norm-star",
        "hybrid-norm-post", "sigma-reparam", "layer-scale", "soft-temp", "soft-clip", "qk-clip", "reordered-norm",
        "reordered-qk-norm",
    ]  # fmt: skip


def test_methods_lists_both_registries() -> None:
    shown = CliRunner(env={"COLUMNS": "200"}).invoke(cli.main, ["methods"]).output
    for name in (*METHODS, *ATTENTION_NORMS):
        assert f" {name} " in shown, f"`oec methods` does not list {name}"


def test_states() -> None:
    assert STATES == ("planned", "running", "finished", "diverged", "crashed", "pruned")


def test_columns() -> None:
    """The columns of a table of runs are frozen in tests/dashboards/test_runs.py."""
    assert TABLE_COLUMNS == (
        "study", "scale", "attention_norm", "method", "gamma", "factors", "lr_factor", "LRS", "LRS_low", "LRS_high",
        "LRS_n", "best_loss", "best_lr", "highest_lr", "edge_low", "edge_high", "diverged", "cells", "overhead_percent",
        "overhead_low", "overhead_high", "optimum_lr", "optimum_low", "optimum_high",
        "within_0.01_low", "within_0.01_high", "within_0.01_open",
        "within_0.01_width", "within_0.01_width_low", "within_0.01_width_high",
        "within_0.05_low", "within_0.05_high", "within_0.05_open",
        "within_0.05_width", "within_0.05_width_low", "within_0.05_width_high",
        "headroom", "note",
    )  # fmt: skip


def test_mlflow_keys() -> None:
    assert (store.EXPERIMENT, store.NOTE_HASH) == ("oec", "oec.card")
    assert view_key(Study.load("smoke")) == f"oec-smoke-{Study.load('smoke').hash}"
    cell = Plan(Study.load("smoke"), "data").cells[1]
    assert [param.key for param in store.params(cell)] == [
        "scale", "attention_norm", "method", "gamma", "lr", "seed", "data", "V",
        *(f"model.{name}" for name in ("tied", "init", "dropout", "initial_mean_logit")),
        *(f"training.{name}" for name in type(cell.training).model_fields),
        "parameters",
    ]  # fmt: skip

    def metrics(state: EndState, val_loss: float | None) -> dict[str, float]:
        assert state != "stopped"
        result = CellResult(state=state, val_loss=val_loss, train_loss=3.0, l_init=4.0, steps=5, torch="2.13.0+cpu")
        return store.result_metrics(Entry(cell.id, cell.model_copy(update={"lr": 0.1}), "grid", state, result))

    assert list(metrics("crashed", 2.0)) == ["final_val_loss", "final_train_loss", "l_init", "steps"]
    outcomes: tuple[tuple[EndState, float | None, float], ...] = (
        ("finished", 2.0, 2.0),
        ("diverged", 9.0, 4.0),
        ("diverged", None, 4.0),
    )
    for state, loss, drawn in outcomes:
        found = metrics(state, loss)
        assert (found["curve_loss"], found["log10_lr"]) == (drawn, -1.0)


@pytest.mark.parametrize("layers", [1, 3])
def test_metrics_of_an_evaluation(layers: int) -> None:
    per_layer = [
        f"{part}_{what}/{i}"
        for part in ("qkv", "proj", "fc1", "fc2")
        for what in ("rms", "norm")
        for i in range(layers)
    ]
    embeddings = [
        f"{e}_{what}"
        for e in ("output", "input")
        for what in (
            "mu_norm",
            "ratio_norm",
            "row_norm_mean",
            "row_norm_min",
            "row_norm_max",
            "isotropy",
            "singular_min",
            "singular_max",
            "mu_h_cosine",
            "mu_h_dot",
        )
    ]
    assert sorted(keys(layers)) == sorted(
        [
            "train_loss",
            "val_loss",
            "lr",
            "grad_norm",
            "step_seconds",
            "tokens_per_second",
            "loss_spikes",
            "spike_score",
            "system/process_cpu_percent",
            "system/process_memory_megabytes",
            "system/gpu_memory_megabytes",
            "output_b_ratio",
            "logits_mean",
            "logits_std",
            "logits_absmean",
            "logits_absmax",
            "logits_mean_token_std",
            "logits_std_token_std",
            "logits_absmax_token_max",
            "log_z",
            "log_z_squared",
            "attention_logit_max",
            *embeddings,
            *per_layer,
        ]
    )
