"""What holds of a home after any fault, once the study has been run to its end."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from search_spaces.record import TERMINAL
from service.home.layout import Home
from service.home.ledger import Ledger
from service.home.studies import with_ledger
from service.mlflow.store import EXPERIMENT, MAX_REASON_CHARACTERS
from trainers.rows import read

GONE_S = 60.0
"""How long processes of an ended command may take to go."""


def ledger_of(home: Path, study: str) -> Ledger:
    return Ledger(home / "studies" / study / "ledger.jsonl", study)


def runs_of(home: Path, study: str, uri: str | None = None) -> tuple[list[Run], dict[str, Run]]:
    """``(parents, children by cell)`` of a study in MLflow: in the home's own store, or at ``uri``."""
    client = MlflowClient(uri or f"sqlite:///{home / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], f"tags.`oec.study` = '{study}'", max_results=1000)
    children = [run for run in runs if "oec.cell" in run.data.tags]
    by_cell = {run.data.tags["oec.cell"]: run for run in children}
    assert len(by_cell) == len(children), "a cell has two runs in MLflow"
    return [run for run in runs if run not in children], by_cell


def agree(home: Path, study: str, undisturbed: dict[str, float | None] | None = None, uri: str | None = None) -> None:
    """Ledger, Optuna and MLflow say the same of every cell, and nothing is left of what was killed.

    Args:
        undisturbed: final validation losses by cell, of the same study without a fault (``losses``).
        uri: of MLflow, unless it is the home's own store.
    """
    one_end_a_cell(home, study)
    nothing_runs_in_optuna(home, study)
    mlflow_agrees(home, study, uri)
    nothing_left_over(home)
    if undisturbed is not None:
        assert losses(home, study) == undisturbed, "a disturbed run has another loss than an undisturbed one"


def starts(home: Path, study: str) -> list[int]:
    """How often each cell was begun, in the order of their planning."""
    ledger = ledger_of(home, study)
    lines = [json.loads(line) for line in ledger.path.read_text().splitlines()]
    begun = Counter(line["cell"] for line in lines if line["event"] == "running")
    return [begun[cell] for cell in ledger.entries]


def losses(home: Path, study: str) -> dict[str, float | None]:
    return {cell: entry.result.val_loss for cell, entry in ledger_of(home, study).entries.items()}


def one_end_a_cell(home: Path, study: str) -> None:
    """Every line of the ledger is whole, and every cell has one end (beside crashes that were tried again)."""
    ledger = ledger_of(home, study)
    content = ledger.path.read_text()
    assert content.endswith("\n"), "the ledger's last line is torn"
    lines = [json.loads(line) for line in content.splitlines()]
    assert [line["seq"] for line in lines] == list(range(1, len(lines) + 1))
    ends = Counter(line["cell"] for line in lines if line["event"] in TERMINAL - {"crashed"})
    assert set(ends.values()) <= {1}, "a cell ended twice"
    assert {entry.state for entry in ledger.entries.values()} <= TERMINAL, "a cell has no end"


def nothing_runs_in_optuna(home: Path, study: str) -> None:
    journal = home / "studies" / study / "optuna.journal"
    if journal.exists():  # not if every cell was taken over from another study
        storage = JournalStorage(JournalFileBackend(str(journal)))
        for found in storage.get_all_studies():
            unfinished = [t.number for t in storage.get_all_trials(found._study_id) if not t.state.is_finished()]
            assert not unfinished, f"Optuna waits for trials {unfinished} of {found.study_name}"


def mlflow_agrees(home: Path, study: str, uri: str | None = None) -> None:
    """A parent, and a run a cell: state, reason, factors, result, and its curve as the workers wrote it."""
    client = MlflowClient(uri or f"sqlite:///{home / 'mlflow.db'}")
    parents, children = runs_of(home, study, uri)
    assert len(parents) == 1
    entries = ledger_of(home, study).entries
    assert set(children) == set(entries)
    for cell_id, entry in entries.items():
        run = children[cell_id]
        assert run.data.tags["mlflow.parentRunId"] == parents[0].info.run_id
        assert run.data.tags["oec.state"] == entry.state
        assert run.data.tags["oec.reason"] == entry.result.reason[:MAX_REASON_CHARACTERS]
        assert float(run.data.params["lr"]) == entry.cell.lr
        assert run.data.params["method"] == entry.cell.method
        assert run.info.status == ("FAILED" if entry.state == "crashed" else "FINISHED")
        if entry.state in ("finished", "diverged"):
            assert run.data.metrics["final_val_loss"] == pytest.approx(entry.result.val_loss, rel=1e-6)
            assert run.data.metrics["l_init"] == pytest.approx(entry.result.l_init, rel=1e-6)
        if entry.reused_from is None:
            rows = read(Home(home).metrics(cell_id, study))
            curve = {(row.step, row.val_loss) for row in rows if row.val_loss is not None}
            delivered = {(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "val_loss")}
            if entry.state == "pruned":  # its workers hear of it a moment later, and may write one row more
                last = max((step for step, _ in delivered), default=-1)
                curve = {(step, loss) for step, loss in curve if step <= last}
            assert delivered == curve, f"the curve of {cell_id} in MLflow is another than its file's"


def nothing_left_over(home: Path) -> None:
    """No file that was being written, no checkpoint but of crashed cells, no process of a command on this home."""
    temporary = [path for path in home.rglob("*") if re.fullmatch(r".*-tmp|\..*-[0-9a-f]{32}", path.name)]
    assert not temporary, f"left over: {temporary}"
    for name in with_ledger(Home(home)):
        ended = [entry.cell.id for entry in ledger_of(home, name).ended() if entry.state != "crashed"]
        kept = [cell for cell in ended if (Home(home).cell(cell, name) / "checkpoints").exists()]
        assert not kept, f"checkpoints of ended cells: {kept}"
    deadline = time.monotonic() + GONE_S
    while left := processes(home):
        assert time.monotonic() < deadline, f"still there: {left}"
        psutil.wait_procs(left, timeout=1)


def processes(home: Path) -> list[psutil.Process]:
    """Those that a command on this home started, Ray's included: they inherit its ``OEC_HOME``.

    Ray keeps one coordinator of autoscaling for all drivers of a cluster, which inherits that of the first.
    """
    found = []
    for process in psutil.process_iter():
        try:
            ours = process.environ().get("OEC_HOME") == str(home) and process.status() != psutil.STATUS_ZOMBIE
            if ours and "_AutoscalingCoordinatorActor" not in process.name():
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found
