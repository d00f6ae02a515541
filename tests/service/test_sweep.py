"""When a sweep is not worth going on with: its first cells all crashed with the same error."""

from __future__ import annotations

from search_spaces.plan import Plan
from search_spaces.study import Study
from service.sweep import ALIKE, CrashedAlike

CELLS = Plan(Study.load("demo"), "data").cells


def crash(line: str) -> dict[str, str]:
    return {"state": "crashed", "reason": f"Traceback (most recent call last):\n  File\n{line}\n"}


def test_the_first_cells_that_crash_alike_end_the_sweep_with_their_error() -> None:
    alike = CrashedAlike()
    for cell in CELLS[:ALIKE]:
        assert not alike.stop_all()
        alike.ended(cell, crash(f"OSError: [Errno 28] No space left on device: '/home/cells/{cell.id}/metrics.jsonl'"))
    assert alike.stop_all()
    assert alike.error == f"OSError: [Errno 28] No space left on device: '/home/cells/{cell.id}/metrics.jsonl'"


def test_different_errors_do_not() -> None:
    alike = CrashedAlike()
    for number, cell in enumerate(CELLS[: 2 * ALIKE]):
        alike.ended(cell, crash("RuntimeError: one" if number else "RuntimeError: another"))
    assert not alike.stop_all()


def test_crashes_behind_a_cell_that_worked_do_not() -> None:
    for state in ("finished", "diverged"):
        alike = CrashedAlike()
        alike.ended(CELLS[0], crash("RuntimeError: one"))
        alike.ended(CELLS[1], {"state": state})
        for cell in CELLS[2:9]:
            alike.ended(cell, crash("RuntimeError: one"))
        assert not alike.stop_all()
