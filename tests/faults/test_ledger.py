"""A ledger after a clock was set back, after its writer was killed, or with many cells, and two studies that share a
home."""

from __future__ import annotations

import cProfile
import json
import multiprocessing
import pstats
import signal
from datetime import UTC, datetime, timedelta
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import pytest

from benchmarks.invariants import agree
from search_spaces.plan import Plan
from search_spaces.record import CellResult
from search_spaces.study import Study
from service.home.layout import Home
from service.home.ledger import Ledger
from service.home.location import open_home
from service.home.studies import read_ledger, register_study
from service.home.writer import LedgerLocked
from service.mlflow.address import tracking_uri
from service.mlflow.sink import MlflowSink, sync

CELLS = Plan(Study.load("short"), "data").cells
RESULT = CellResult(state="finished", val_loss=2.0, l_init=5.0)
PROCESSES = multiprocessing.get_context("spawn")


@pytest.mark.fault("clock set back")
def test_events_are_in_line_order_even_if_the_clock_was_set_back(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with Ledger(path, "short", write=True) as ledger:
        ledger.plan(CELLS[:3])
        ledger.end(CELLS[0].id, CellResult(state="crashed", reason="x"))
        ledger.start(CELLS[0].id)
        ledger.end(CELLS[0].id, RESULT)
        before = ledger.records()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    now = datetime(2026, 1, 1, tzinfo=UTC)
    back = [{**line, "at": (now - timedelta(days=i)).isoformat()} for i, line in enumerate(lines)]
    path.write_text("".join(json.dumps(line) + "\n" for line in back))
    with Ledger(path, "short", write=True) as ledger:
        assert ledger.records() == before
        assert ledger.missing() == list(CELLS[1:3])
        ledger.end(CELLS[1].id, RESULT)
    assert json.loads(path.read_text().splitlines()[-1])["seq"] == len(lines) + 1


def work(path: Path, cells: int) -> int:
    """Returns the number of function calls to open the ledger of ``cells`` finished cells and find that none is
    missing."""
    many = [CELLS[0].model_copy(update={"seed": seed}) for seed in range(cells)]
    with Ledger(path, "short", write=True) as ledger:
        ledger.plan(many)
        for event in ({"event": "running"}, {"event": "finished", "result": RESULT}):
            ledger._append([{**event, "cell": cell_id} for cell_id in ledger.entries])
    with cProfile.Profile() as profile, Ledger(path, "short", write=True) as ledger:
        ledger.plan(many)
        assert ledger.missing() == []
    return int(pstats.Stats(profile).total_calls)


def test_opening_a_ledger_takes_work_in_proportion_to_its_cells(tmp_path: Path) -> None:
    """The target is 2 s for 10,000 cells, see ``benchmarks.ledger``, which allows about this many calls per cell."""
    few, many = work(tmp_path / "few.jsonl", 100), work(tmp_path / "many.jsonl", 1000)
    assert many < 10.5 * few, "the work grows faster than the number of cells"
    assert many < 1000 * 250, "opening a ledger takes more calls per cell than it did"


def write_for_ever(path: Path) -> None:
    """Writes one cell after another, as fast as the storage allows."""
    with Ledger(path, "short", write=True) as ledger:
        for seed in range(10**9):
            cell = CELLS[0].model_copy(update={"seed": seed})
            ledger.plan([cell])
            ledger.end(cell.id, RESULT)


@pytest.mark.fault("SIGKILL of a ledger's writer")
@pytest.mark.parametrize("lines", [2, 20, 50])
def test_a_killed_writer_leaves_complete_lines_and_no_lock(tmp_path: Path, lines: int) -> None:
    path = tmp_path / "ledger.jsonl"
    writer = PROCESSES.Process(target=write_for_ever, args=(path,))
    writer.start()
    try:
        while not path.exists() or path.read_bytes().count(b"\n") < lines:
            assert writer.is_alive()
            writer.join(0.01)
        with pytest.raises(LedgerLocked, match=rf"pid {writer.pid} on \S+ since \d"):
            Ledger(path, "short", write=True)
    finally:
        writer.kill()
        writer.join()
    assert writer.exitcode == -signal.SIGKILL
    with Ledger(path, "short", write=True) as ledger:
        assert len(ledger.entries) >= lines // 2
        for cell in ledger.missing():
            ledger.end(cell.id, RESULT)
    assert {entry.state for entry in Ledger(path, "short").entries.values()} == {"finished"}


def deliver(home: Home, name: str, start: Any) -> None:
    """Does what the driver of study ``name`` does, without training: ledger, sink and sync."""
    study = Study.load("smoke").model_copy(update={"name": name})
    cells = Plan(study, "data").cells
    register_study(home, study)
    with Ledger(home.ledger(name), name, write=True) as ledger:
        ledger.plan(cells)
        start.wait()
        sink = MlflowSink(tracking_uri(home), home, study)
        for cell in cells:
            sink.on_start(ledger.entries[cell.id])
            ledger.end(cell.id, RESULT)
            sink.on_end(ledger.entries[cell.id])
        sink.close(300)
        sync(tracking_uri(home), home, study, ledger, home.study(name) / "report")


@pytest.mark.fault("two studies on one home and database at once")
def test_two_concurrent_studies_on_a_new_home_do_not_interfere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both create the same MLflow database and experiment, and their own runs, even for equal cells."""
    resource_tracker.ensure_running()  # it outlives the drivers and must not be mistaken for one of their processes
    monkeypatch.setenv("OEC_HOME", str(tmp_path / "home"))
    home = open_home(tmp_path / "home")
    start = PROCESSES.Barrier(2)
    drivers = [PROCESSES.Process(target=deliver, args=(home, name, start)) for name in ("one", "two")]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join(400)
        assert driver.exitcode == 0
    monkeypatch.delenv("OEC_HOME")
    for name in ("one", "two"):
        agree(home.path, name, dict.fromkeys(read_ledger(home, name).entries, 2.0))
