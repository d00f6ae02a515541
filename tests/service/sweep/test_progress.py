"""What the user sees while a sweep runs, with a fake clock."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from search_spaces.plan import Plan
from search_spaces.record import CellResult, EndState, Row
from search_spaces.refine import RefineSpec
from search_spaces.study import Study
from service.home.ledger import Entry, Ledger
from service.pace import clock_time, duration
from service.sweep.progress import Progress

PLAN = Plan(Study.load("smoke"), "data")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger(tmp_path / "ledger.jsonl", "smoke", write=True)
    ledger.plan(PLAN.cells)
    return ledger


def entry(ledger: Ledger, number: int) -> Entry:
    return ledger.entries[PLAN.cells[number].id]


def end(ledger: Ledger, progress: Progress, number: int, state: EndState, loss: float | None) -> None:
    cell = PLAN.cells[number]
    ledger.end(cell.id, CellResult(state=state, val_loss=loss, steps=20, tokens=cell.tokens))
    progress.on_end(ledger.entries[cell.id])


def start_and_end(ledger: Ledger, progress: Progress, number: int, state: EndState, loss: float | None) -> None:
    progress.on_start(entry(ledger, number))
    end(ledger, progress, number, state, loss)


def test_plain_lines_without_a_terminal(ledger: Ledger) -> None:
    """Lines are written when a cell starts, because then the number of running cells is typical, and at the end of the
    sweep when a cell ends."""
    out, clock = io.StringIO(), Clock()
    with Progress(PLAN, ledger, Console(file=out, width=500), clock) as progress:
        progress.on_start(entry(ledger, 0))
        clock.now = 10.0
        progress.on_row(entry(ledger, 0), Row(0, 0.0, {}))
        clock.now = 20.0
        start_and_end(ledger, progress, 0, "finished", 4.5)
        clock.now = 21.0
        start_and_end(ledger, progress, 1, "diverged", None)  # before the next plain line is due
        clock.now = 40.0
        progress.on_start(entry(ledger, 3))
        start_and_end(ledger, progress, 2, "crashed", None)
        progress.on_start(entry(ledger, 4))
        progress.on_start(entry(ledger, 5))
        for number, now in ((3, 50.0), (4, 51.0), (5, 52.0)):
            clock.now = now
            end(ledger, progress, number, "finished", 5.0)
    lines = out.getvalue().splitlines()
    best = "best tiny baseline 4.500 at 0.001"
    assert lines == [
        "0/6 cells | 1 running | 0:00 elapsed | starting workers | best none yet",
        "0/6 cells | 1 running | 0:20 elapsed | best none yet",
        f"2/6 cells | 1 running | 1 diverged | 341 tokens/s | 0:40 elapsed | 1:00 left | {best}",
        f"4/6 cells | 2 running | 1 diverged | 1 crashed | 512 tokens/s | 0:50 elapsed | 0:20 left | {best}",
        f"6/6 cells | 0 running | 1 diverged | 1 crashed | 731 tokens/s | 0:52 elapsed | 0:00 left "
        f"| {best}  tiny z-loss 5.000 at 0.1  tiny mu-centering 5.000 at 0.1",
    ]


def test_cells_that_refinement_may_still_take_are_counted(ledger: Ledger) -> None:
    """One trial per method, and one edge per curve, between learning rates a factor of 100 apart: up to 3 steps and 1
    bisection each, or none once the smallest learning rate has diverged."""
    study = PLAN.study.model_copy(update={"refine": RefineSpec(trials=1, edge=11)})
    clock = Clock()
    progress = Progress(Plan(study, "data"), ledger, Console(file=io.StringIO()), clock)
    assert "0/21 cells" in progress.line()
    progress.on_start(entry(ledger, 0))
    progress.on_row(entry(ledger, 0), Row(0, 0.0, {}))
    clock.now = 10.0
    start_and_end(ledger, progress, 0, "diverged", None)
    assert "1/17 cells" in progress.line()
    assert progress.seconds_left() == pytest.approx(16 * 10.0)


def test_a_terminal_shows_running_cells_and_the_best_of_each_method(ledger: Ledger) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80)
    with Progress(PLAN, ledger, console) as progress:
        start_and_end(ledger, progress, 0, "finished", 4.5)
        progress.on_start(entry(ledger, 4))
        progress.on_row(entry(ledger, 4), Row(10, 0.0, {}))
        progress._live.refresh()
    shown = out.getvalue()
    assert "z-loss (gamma=0.0001) lr=0.1 seed=1   50%" in shown
    assert "4.5000" in shown
    assert "\n1/6 cells | 1 running |" in shown, "the counts must be on their own line, below the bar"


def test_without_a_measurement_there_is_no_estimate(ledger: Ledger) -> None:
    progress = Progress(PLAN, ledger, Console(file=io.StringIO()))
    assert progress.seconds_left() is None
    assert progress.tokens_per_second() is None
    assert "starting workers" in progress.line()


@pytest.mark.parametrize(
    ("seconds", "shown"), [(4.4, "4 s"), (264, "4.4 min"), (5220, "87 min"), (9000, "2.5 h"), (9e9, "104,167 days")]
)
def test_an_estimate_in_words(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


@pytest.mark.parametrize(("seconds", "shown"), [(0, "0:00"), (75.4, "1:15"), (3675, "1:01:15"), (None, "?")])
def test_clock_time(seconds: float | None, shown: str) -> None:
    assert clock_time(seconds) == shown
