"""The readers of external files, each with valid files to start from.

A target is given bytes and either reads them or raises ``InvalidInput``; anything else is a bug.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import dashboards
from benchmarks import loss_overview
from dashboards.runs import read_csv
from dashboards.sensitivity import curves
from search_spaces.errors import InvalidInput
from search_spaces.plan import Plan
from search_spaces.record import CellResult, EndState
from search_spaces.study import Study
from search_spaces.study_file import SHIPPED
from search_spaces.training_spec import TrainingSpec
from service.cli.watch import status_tables
from service.home.layout import Home
from service.home.ledger import Ledger
from service.home.location import open_home
from service.home.studies import register_study
from service.report.forecast import load_features
from service.report.sources import load
from service.sweep.refinement import Refinement
from trainers import checkpoint as checkpoints
from trainers.data import prepare
from trainers.data.shards import Shards, write_shard

TEXT = "to be or not to be, that is the question\n" * 400


class Target(NamedTuple):
    valid: tuple[bytes, ...]
    read: Callable[[bytes], object]


@contextlib.contextmanager
def targets() -> Iterator[Mapping[str, Target]]:
    """Yields every target by name; they share a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="oec-fuzz-") as folder:
        home = open_home(Path(folder) / "home")
        yield {
            "study file": study_file(Path(folder)),
            "ledger": ledger(home),
            "metrics of a cell": metrics(home),
            "token shard": token_shard(Path(folder)),
            "manifest of tokens": manifest(Path(folder)),
            "checkpoint": checkpoint(Path(folder)),
            "CSV of runs": csv_of_runs(Path(folder)),
        }


def study_file(folder: Path) -> Target:
    path = folder / "study.yaml"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        study = Study.load(str(path))
        assert Study.parse(study.to_yaml()) == study
        if (cells := len(study.curve_keys) * len(study.grid) * len(study.seeds)) <= 2000:
            assert len(Plan(study, "data").cells) == cells

    return Target(tuple(file.read_bytes() for file in sorted(SHIPPED.glob("*.yaml"))), read)


def ledger(home: Home) -> Target:
    """Opens the ledger for reading and for writing, shows it, reports it, and refines from it."""
    study = Study.load("smoke")
    plan = Plan(study, "data")
    register_study(home, study)
    path = home.ledger(study.name)
    with Ledger(path, study.name, write=True) as written:
        written.plan(plan.cells)
        for i, cell in enumerate(plan.cells):
            written.start(cell.id)
            state: EndState = ("finished", "diverged", "crashed")[i % 3]
            result = CellResult(state=state, val_loss=2.5 + i, l_init=5.0, train_seconds=1.0, reason="x")
            written.end(cell.id, result)
    valid = path.read_bytes()

    def read(content: bytes) -> None:
        path.write_bytes(content)
        curves(load(study.name, home).runs)
        list(status_tables(home, study.name, cells=True))
        with Ledger(path, study.name, write=True) as found:
            _ = Refinement(plan, found).cells_left
            found.missing()

    return Target((valid,), read)


def metrics(home: Home) -> Target:
    name, cell = "measured", Plan(Study.load("smoke"), "data").cells[0]
    study = Study.load("smoke").model_copy(update={"name": name})
    register_study(home, study)
    with Ledger(home.ledger(name), name, write=True) as written:
        written.plan([cell])
        written.end(cell.id, CellResult(state="finished", val_loss=2.0, l_init=5.0))
    path = home.metrics(cell.id, name)
    path.parent.mkdir(parents=True)
    rows = [{"step": i, "time": 1e9 + i, "val_loss": 5.0 - i / 10, "train_loss": 5.0, "lr": 1e-3} for i in range(6)]
    valid = "".join(json.dumps(row) + "\n" for row in rows).encode()

    def read(content: bytes) -> None:
        path.write_bytes(content)
        load_features(home, (name,))
        load(name, home)

    return Target((valid,), read)


def token_shard(folder: Path) -> Target:
    path = folder / "train-00000.bin"
    write_shard(path, np.arange(600) % 256)

    def read(content: bytes) -> None:
        path.write_bytes(content)
        shards = Shards((path,))
        shards.check_vocabulary(256)
        if shards.windows(16):
            shards.read([0, shards.windows(16) - 1], 16)

    return Target((path.read_bytes(),), read)


def manifest(folder: Path) -> Target:
    """Reads the manifest of a text that was tokenized into a home."""
    text = folder / "text.txt"
    text.write_text(TEXT)
    spec = Study.load("smoke").data.model_copy(update={"source": "text", "path": str(text), "tokenizer": "bytes"})
    home = folder / "tokens"
    tokens = prepare(spec, home)
    path = tokens.train.paths[0].parent / "manifest.json"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        found = prepare(spec, home)
        found.verify(folder / "verified.json")
        found.check_length(TrainingSpec(sequence_length=16, eval_sequences=2))
        outside = [
            file for file in (*found.train.paths, *found.validation.paths) if file.resolve().parent != path.parent
        ]
        assert not outside, f"the manifest led to {outside}"

    return Target((path.read_bytes(),), read)


def checkpoint(folder: Path) -> Target:
    """Reads the JSON file of a checkpoint; the tensors are protected by their SHA-256."""
    place = folder / "checkpoints"
    progress = {"step": 4, "loss": 2.5, "spikes": [1, 2]}
    checkpoints.save(place, "cell", 4, {"w": torch.zeros(3)}, progress)
    path = place / "step-00000004.json"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            found = checkpoints.load_latest(place, "cell")
        assert found is None or found.progress == progress, "a damaged checkpoint was taken for a whole one"
        if found is None:
            raise InvalidInput("checkpoint", path.name, "passed over", "the one before it is used")

    return Target((path.read_bytes(),), read)


def csv_of_runs(folder: Path) -> Target:
    path = folder / "runs.csv"
    published = Path(dashboards.__file__).with_name("published.csv").read_bytes().splitlines(keepends=True)

    def read(content: bytes) -> None:
        path.write_bytes(content)
        found = curves(read_csv(path))
        list(map(str, found))

    overview = loss_overview.write(folder / "loss_overview.csv", loss_overview.published_rows()[:9]).read_bytes()
    return Target((b"".join(published[:12]), b"".join([published[0], *published[60:80]]), overview), read)
