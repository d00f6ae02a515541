"""A small version of ``benchmarks.scale``: every simulated cell is once in ledger, Optuna and MLflow, and every slot is
used."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from mlflow import MlflowClient
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from benchmarks.invariants import ledger_of, one_end_a_cell
from service.home.layout import Home

pytestmark = [pytest.mark.slow, pytest.mark.long]

CELLS, AT_ONCE, TRIALS = 280, 8, 1


def test_every_cell_once_everywhere(tmp_path: Path) -> None:
    home = Home(tmp_path)
    options = {"--cells": CELLS, "--at-once": AT_ONCE, "--seconds": 0.2, "--trials": TRIALS, "--home": home.path}
    command = [sys.executable, "-m", "benchmarks.scale", *(str(part) for pair in options.items() for part in pair)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 cells missing" in done.stdout, "the same study must be complete when it is started again"
    one_end_a_cell(home.path, "scale")
    entries = ledger_of(home.path, "scale").entries
    assert len(entries) == CELLS + 20 * TRIALS, "expected refinement cells for five scales and four methods"
    slots = {entry.result.metrics["slot"] for entry in entries.values()}
    assert len(slots) == AT_ONCE, "every slot must be used although a cell is shorter than the start of an actor"

    storage = JournalStorage(JournalFileBackend(str(home.study("scale") / "optuna.journal")))
    trials = [t for one in storage.get_all_studies() for t in storage.get_all_trials(one._study_id)]
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert Counter(trial.user_attrs["cell"] for trial in trials) == Counter(list(entries))

    client = MlflowClient(f"sqlite:///{home.path / 'mlflow.db'}")
    runs = client.search_runs(["1"], "tags.`oec.study` = 'scale'", max_results=1000)
    cells = Counter(run.data.tags.get("oec.cell", "") for run in runs)
    assert cells == Counter(list(entries)) + Counter([""]), "expected one run per cell and the parent run"
    assert {run.data.tags["oec.state"] for run in runs if "oec.cell" in run.data.tags} <= {"finished", "diverged"}
