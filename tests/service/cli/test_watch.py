"""``oec watch`` for a study in every state, while its ledger is held and afterwards."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from search_spaces.plan import Plan
from search_spaces.record import CellResult
from search_spaces.study import Study
from service.cli.watch import watch
from service.home.layout import Home
from service.home.ledger import Ledger
from service.home.location import open_home
from service.home.studies import register_study
from tests.service.oec import oec

STUDY = Study.load("smoke")
CELLS = sorted(Plan(STUDY, "data").cells, key=lambda cell: (cell.method, cell.lr))
CELLS = [*CELLS[:2], *CELLS[4:], *CELLS[2:4]]
"""In the order baseline, z-loss, mu-centering, each with the smaller learning rate first."""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return open_home(tmp_path / "home")


def finished(val_loss: float) -> CellResult:
    return CellResult(state="finished", val_loss=val_loss, l_init=5.5, train_seconds=2.0, steps=20)


def held(home: Home) -> Ledger:
    """Returns a ledger as a driver would hold it: the baseline's two cells have ended, one cell has crashed, one is
    running."""
    register_study(home, STUDY)
    ledger = Ledger(home.ledger("smoke"), "smoke", write=True)
    ledger.plan(CELLS)
    for cell, result in (
        (CELLS[0], finished(2.5)),
        (CELLS[1], CellResult(state="diverged", l_init=5.5, reason="nan")),
        (CELLS[2], CellResult(state="crashed", reason="x")),
    ):
        ledger.start(cell.id)
        ledger.end(cell.id, result)
    ledger.start(CELLS[3].id)
    path = home.metrics(CELLS[3].id, "smoke")
    path.parent.mkdir(parents=True)
    rows = [{"step": 0, "time": 1.0, "val_loss": 5.5}, {"step": 10, "time": 2.0, "val_loss": 3.25}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 20, "ti')
    return ledger


def test_a_running_study(home: Home) -> None:
    with held(home):
        shown = oec("watch", "smoke", "--once", home=home.path).stdout
    curves = [line.split() for line in shown.splitlines() if " lr=" not in line]
    (baseline,) = (words for words in curves if words[:2] == ["tiny", "baseline"])
    assert baseline[2:] == ["2.500", "×"]
    (z_loss,) = (words for words in curves if words[:2] == ["tiny", "z-loss"])
    assert z_loss[-2:] == ["!", "3.250"]
    assert "step 10 of 20" in shown
    assert "loss 3.250" in shown
    assert "3/6 cells | 1 running | 1 crashed | 1 diverged | 1 finished" in shown
    tokens = CELLS[0].tokens / 2.0
    assert f"{tokens:,.0f} tokens/s | 0:05 left" in shown, "two and a half cells of 2 s each are left"


def test_a_starting_study(home: Home) -> None:
    register_study(home, STUDY)
    with Ledger(home.ledger("smoke"), "smoke", write=True) as ledger:
        ledger.plan(CELLS)
        assert "0/6 cells | starting workers\n" in oec("watch", "smoke", "--once", home=home.path).stdout


def test_a_study_whose_driver_is_gone(home: Home) -> None:
    held(home).close()
    assert "not running" in oec("watch", "smoke", "--once", home=home.path).stdout
    missing = oec("watch", "nothing", home=home.path)
    assert missing.returncode == 2
    assert "STUDY: 'nothing' is not a study of" in missing.stderr


def test_it_follows_the_study_until_it_ends(home: Home, tmp_path: Path) -> None:
    """The output goes to a terminal. The loss of a cell that ends meanwhile is drawn, and the last drawing shows the
    final state."""
    ledger = held(home)
    with (tmp_path / "screen").open("w") as screen:
        console = Console(file=screen, force_terminal=True, width=120)
        watching = threading.Thread(
            target=watch, args=(home, "smoke", console), kwargs={"once": False, "every_s": 0.05}
        )
        watching.start()
        deadline = time.monotonic() + 60
        while "3.250" not in (tmp_path / "screen").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        for cell in CELLS[3:]:
            ledger.end(cell.id, finished(2.125))
        assert watching.is_alive(), "watch ended before the study"
        ledger.close()
        watching.join(60)
        assert not watching.is_alive(), "watch continues although the study has ended"
    shown = (tmp_path / "screen").read_text()
    last = shown[shown.rindex("6/6 cells | 1 crashed | 1 diverged | 4 finished | ended") :]
    assert "final loss by learning rate" in last
    assert "2.125" in last


def test_the_page_while_it_runs_and_after(home: Home) -> None:
    page = home.study("smoke") / "report" / "report.html"
    with held(home) as ledger:
        shown = oec("watch", "smoke", "--once", "--page", home=home.path)
        assert str(page) in shown.stdout
        assert 'http-equiv="refresh" content="30"' in page.read_text(encoding="utf-8")
        for cell in CELLS[3:]:
            ledger.end(cell.id, finished(2.5))
    oec("watch", "smoke", "--page", home=home.path)
    written = page.read_text(encoding="utf-8")
    assert 'http-equiv="refresh"' not in written
    assert "4 finished, 1 diverged and 1 crashed" in written


def test_the_page_is_written_until_the_study_ends(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.cli.watch.PAGE_EVERY_S", 0)
    monkeypatch.setattr("service.cli.watch.PAGE_SHARE", 0)
    path = home.study("smoke") / "report" / "report.html"
    ledger = held(home)
    ends = threading.Timer(4.0, ledger.close)
    ends.start()
    with (home.path / "out").open("w") as out:
        watch(home, "smoke", Console(file=out), once=False, page=True, every_s=0.2)
    assert ends.finished.is_set()
    assert path.is_file()
    assert (home.path / "out").read_text().count("page:") == 1
