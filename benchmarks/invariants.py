"""What must hold for a home after any fault, once the study has run to its end."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from math import isclose
from pathlib import Path

import psutil
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from search_spaces.cell import Cell
from search_spaces.factors import format_factor
from search_spaces.record import TERMINAL
from service.home.layout import Home
from service.home.ledger import Ledger
from service.home.studies import with_ledger
from service.mlflow.store import EXPERIMENT, MAX_TAG_CHARACTERS
from trainers.rows import read

GONE_S = 60.0
"""Seconds within which the processes of an ended command must exit."""


def ledger_of(home: Path, study: str) -> Ledger:
    return Ledger(home / "studies" / study / "ledger.jsonl", study)


def runs_of(home: Path, study: str, uri: str | None = None) -> tuple[list[Run], dict[str, Run]]:
    """Returns ``(parents, children by cell)`` of a study in MLflow: in the home's own store, or at ``uri``."""
    client = MlflowClient(uri or f"sqlite:///{home / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], f"tags.`oec.study` = '{study}'", max_results=1000)
    children = [run for run in runs if "oec.cell" in run.data.tags]
    by_cell = {run.data.tags["oec.cell"]: run for run in children}
    assert len(by_cell) == len(children), "a cell has two runs in MLflow"
    return [run for run in runs if run not in children], by_cell


def agree(home: Path, study: str, undisturbed: dict[str, float | None] | None = None, uri: str | None = None) -> None:
    """Checks that ledger, Optuna and MLflow agree on every cell, and that killed processes left nothing behind.

    Args:
        undisturbed: final validation losses by cell (``losses``) of the same study without faults.
        uri: MLflow's URI. Default: the home's own store.
    """
    one_end_a_cell(home, study)
    nothing_runs_in_optuna(home, study)
    mlflow_agrees(home, study, uri)
    nothing_left_over(home)
    if undisturbed is not None:
        assert losses(home, study) == undisturbed, "a fault changed a loss"


def starts(home: Path, study: str) -> list[int]:
    """Returns how often each cell was started, in the order in which the cells were planned."""
    ledger = ledger_of(home, study)
    lines = [json.loads(line) for line in ledger.path.read_text().splitlines()]
    begun = Counter(line["cell"] for line in lines if line["event"] == "running")
    return [begun[cell] for cell in ledger.entries]


def losses(home: Path, study: str) -> dict[str, float | None]:
    return {cell: entry.result.val_loss for cell, entry in ledger_of(home, study).entries.items()}


def one_end_a_cell(home: Path, study: str) -> None:
    """Checks that every line of the ledger is complete, and that every cell has one end, not counting retried
    crashes."""
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
    if journal.exists():  # there is none if every cell was reused from another study
        storage = JournalStorage(JournalFileBackend(str(journal)))
        for found in storage.get_all_studies():
            unfinished = [t.number for t in storage.get_all_trials(found._study_id) if not t.state.is_finished()]
            assert not unfinished, f"Optuna waits for trials {unfinished} of {found.study_name}"


def mlflow_agrees(home: Path, study: str, uri: str | None = None) -> None:
    """Checks one parent run, and one run per cell: state, reason, factors, result, and the curve that the workers
    wrote."""
    client = MlflowClient(uri or f"sqlite:///{home / 'mlflow.db'}")
    parents, children = runs_of(home, study, uri)
    assert len(parents) == 1
    entries = ledger_of(home, study).entries
    assert set(children) == set(entries)
    for cell_id, entry in entries.items():
        run = children[cell_id]
        assert run.data.tags["mlflow.parentRunId"] == parents[0].info.run_id
        assert run.data.tags["oec.state"] == entry.state
        assert run.data.tags["oec.reason"] == entry.result.reason[:MAX_TAG_CHARACTERS]
        assert float(run.data.params["lr"]) == entry.cell.lr
        if isinstance(entry.cell, Cell):
            assert run.data.params["method"] == entry.cell.method
        for name, value in entry.cell.factors.items():
            assert run.data.tags[f"oec.factor.{name}"] == format_factor(value)
        assert run.info.status == ("FAILED" if entry.state == "crashed" else "FINISHED")
        if entry.state in ("finished", "diverged"):
            assert entry.result.val_loss is not None
            assert entry.result.l_init is not None
            assert isclose(run.data.metrics["final_val_loss"], entry.result.val_loss, rel_tol=1e-6)
            assert isclose(run.data.metrics["l_init"], entry.result.l_init, rel_tol=1e-6)
        if entry.reused_from is None:
            rows = read(Home(home).metrics(cell_id, study))
            curve = {(row.step, row.val_loss) for row in rows if row.val_loss is not None}
            delivered = {(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "val_loss")}
            if entry.state == "pruned":  # its workers stop a moment later and may write one more row
                last = max((step for step, _ in delivered), default=-1)
                curve = {(step, loss) for step, loss in curve if step <= last}
            assert delivered == curve, f"the curve of {cell_id} in MLflow differs from that in its file"


def nothing_left_over(home: Path) -> None:
    """Checks for temporary files, checkpoints of cells that did not crash, and processes of a command on this home."""
    temporary = [path for path in home.rglob("*") if re.fullmatch(r".*-tmp|\..*-[0-9a-f]{32}", path.name)]
    assert not temporary, f"left over: {temporary}"
    for name in with_ledger(Home(home)):
        ended = [entry.cell.id for entry in ledger_of(home, name).ended() if entry.state != "crashed"]
        kept = [cell for cell in ended if (Home(home).cell(cell, name) / "checkpoints").exists()]
        assert not kept, f"checkpoints of ended cells: {kept}"
    deadline = time.monotonic() + GONE_S
    while left := processes(home):
        assert time.monotonic() < deadline, f"still running: {left}"
        psutil.wait_procs(left, timeout=1)


def processes(home: Path) -> list[psutil.Process]:
    """Returns the processes that a command on this home started, including Ray's: they inherit its ``OEC_HOME``.

    Ray keeps one autoscaling coordinator for all drivers of a cluster, which inherits the first driver's; it is
    excluded.
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
