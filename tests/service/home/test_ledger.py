"""The ledger: replay returns what was written, a torn last line is dropped, one writer, one end per cell."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from search_spaces.errors import InvalidInput
from search_spaces.plan import Plan
from search_spaces.record import CellResult, EndState
from search_spaces.study import Study
from service.home.ledger import Ledger
from service.home.writer import LedgerLocked

CELLS = Plan(Study.load("short"), "data").cells


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "studies" / "short" / "ledger.jsonl"


def test_replay_equals_what_was_written(path: Path) -> None:
    with Ledger(path, "short", write=True) as ledger:
        ledger.plan(CELLS)
        ledger.start(CELLS[0].id)
        ledger.end(CELLS[0].id, CellResult(state="finished", val_loss=1.5))
        ledger.end(CELLS[1].id, CellResult(state="diverged", reason="loss is nan at step 3"))
        written = ledger.records()
    read = Ledger(path, "short")
    assert read.records() == written
    assert read.counts() == {"finished": 1, "diverged": 1, "planned": 47}
    assert read.missing() == list(CELLS[2:])
    assert written[0]["gamma"] is None
    assert written[0]["lr"] == CELLS[0].lr


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(min_value=1, max_value=10**6))
def test_torn_tail_is_dropped_and_rewritten(cut: int, path: Path) -> None:
    path.unlink(missing_ok=True)
    with Ledger(path, "short", write=True) as ledger:
        ledger.plan(CELLS[:3])
        ledger.end(CELLS[0].id, CellResult(state="finished", val_loss=1.0))
    whole = path.read_bytes()
    last = whole[:-1].rfind(b"\n") + 1
    path.write_bytes(whole[: last + cut % (len(whole) - last)])
    with Ledger(path, "short", write=True) as ledger:
        assert ledger.entries[CELLS[0].id].state == "planned"
        ledger.end(CELLS[0].id, CellResult(state="finished", val_loss=1.0))
    assert Ledger(path, "short").entries[CELLS[0].id].result == CellResult(state="finished", val_loss=1.0)


def test_second_writer_is_refused_with_the_identity_of_the_first(path: Path) -> None:
    with (
        Ledger(path, "short", write=True),
        pytest.raises(LedgerLocked, match=rf"pid {os.getpid()} on \S+ since \d{{4}}-\d\d-\d\dT"),
    ):
        Ledger(path, "short", write=True)
    Ledger(path, "short", write=True).close()


@pytest.mark.parametrize("first", ["finished", "diverged", "pruned"])
def test_a_cell_ends_once(path: Path, first: EndState) -> None:
    with Ledger(path, "short", write=True) as ledger:
        ledger.plan(CELLS[:1])
        ledger.end(CELLS[0].id, CellResult(state=first))
        with pytest.raises(ValueError, match="cannot become"):
            ledger.end(CELLS[0].id, CellResult(state="finished"))


def test_a_crashed_cell_may_be_retried(path: Path) -> None:
    with Ledger(path, "short", write=True) as ledger:
        ledger.plan(CELLS[:2])
        ledger.end(CELLS[0].id, CellResult(state="crashed", reason="out of memory"))
        assert ledger.missing() == [CELLS[1]]
        assert ledger.missing(retry_crashed=True) == list(CELLS[:2])
        ledger.start(CELLS[0].id)
        ledger.end(CELLS[0].id, CellResult(state="finished", val_loss=2.0))
    assert Ledger(path, "short").entries[CELLS[0].id].state == "finished"


def test_content_that_does_not_match_its_id_is_refused(path: Path) -> None:
    with Ledger(path, "short", write=True) as ledger:
        ledger.plan(CELLS[:1])
    path.write_text(path.read_text().replace('"lr":0.001', '"lr":0.002'))
    with pytest.raises(InvalidInput, match=r"ledger\.jsonl:2.*has the content of"):
        Ledger(path, "short")


@pytest.mark.parametrize("result", ["[]", '"x"', "1", '{"val_loss":"low"}', '{"l_init":[]}', '{"reason":1}'])
def test_a_damaged_result_is_refused_with_the_line_number(path: Path, result: str) -> None:
    with Ledger(path, "short", write=True) as ledger:
        ledger.plan(CELLS[:1])
        ledger.end(CELLS[0].id, CellResult(state="finished", val_loss=1.0))
    path.write_text(path.read_text().replace('{"val_loss":1.0}', result))
    with pytest.raises(InvalidInput, match=r"ledger\.jsonl:3' is damaged"):
        Ledger(path, "short")


def test_format_of_a_line(path: Path) -> None:
    """This format is frozen because other programs read the file. A change needs a line in the changelog."""
    with Ledger(path, "short", write=True) as ledger:
        ledger.plan(CELLS[:1])
        ledger.start(CELLS[0].id)
        ledger.end(CELLS[0].id, CellResult(state="finished", val_loss=1.0), reused_from="other")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [list(line) for line in lines] == [
        ["seq", "at", "event", "format", "study"],
        ["seq", "at", "event", "cell", "origin", "spec"],
        ["seq", "at", "event", "cell"],
        ["seq", "at", "event", "cell", "result", "reused_from"],
    ]
    assert list(lines[1]["spec"]) == [
        "scale", "attention_norm", "method", "gamma", "lr", "seed", "data", "V", "model", "training",
    ]  # fmt: skip


def test_a_record_names_the_attention_norm(path: Path) -> None:
    capped = CELLS[0].model_copy(update={"attention_norm": "attn-cap"})
    with Ledger(path, "short", write=True) as ledger:
        ledger.plan([CELLS[0], capped])
        assert [record["attention_norm"] for record in ledger.records()] == ["qk-norm", "attn-cap"]
    path.write_text(path.read_text().replace('"attention_norm":"qk-norm",', ""))
    old = Ledger(path, "short").records()[0]
    assert old["attention_norm"] == "qk-norm", "a ledger from before attention norms has the default"


def test_a_result_is_not_lost_if_its_trial_starts_again(path: Path) -> None:
    with Ledger(path, "short", write=True) as ledger:
        ledger.plan(CELLS[:1])
        ledger.end(CELLS[0].id, CellResult(state="finished", val_loss=1.0))
        ledger.start(CELLS[0].id)
        assert ledger.entries[CELLS[0].id].state == "finished"


def test_the_indexes_of_a_ledger_match_its_entries(tmp_path: Path) -> None:
    """The counts by state and scale, and the cells by curve and off the grid, are right both while writing and after
    reopening."""
    plan = Plan(Study.load("short"), "data")
    path = tmp_path / "ledger.jsonl"

    def agrees(ledger: Ledger) -> None:
        entries = list(ledger.entries.values())
        assert ledger.counts() == Counter(entry.state for entry in entries)
        left = [entry for entry in entries if entry.state in ("planned", "running")]
        assert sum(ledger.left().values()) == len(left)
        assert ledger.off_grid == [entry for entry in entries if entry.origin != "grid"]
        for curve in plan.curves:
            assert ledger.curve(curve.key)[1] == [entry for entry in entries if entry.cell.curve == curve.key]

    with Ledger(path, "short", write=True) as ledger:
        ledger.plan(plan.cells[1:])
        ledger.plan(plan.cells[:1], origin="edge")
        for number, cell in enumerate(plan.cells[:8]):
            key, before = cell.curve, ledger.curve(cell.curve)[0]
            ledger.start(cell.id)
            state: EndState = ("finished", "diverged", "crashed", "pruned")[number % 4]
            ledger.end(cell.id, CellResult(state=state, val_loss=3.0))
            assert ledger.curve(key)[0] == before + 2, (
                "the version must change, so that caches of a curve are refreshed"
            )
        ledger.start(plan.cells[2].id)
        agrees(ledger)
    agrees(Ledger(path, "short"))
