"""A sweep gives up if its first cells all crash with the same error, and leaves nothing running in its cluster."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import ray

from search_spaces.plan import Plan
from search_spaces.record import CellResult
from search_spaces.study import Study
from service.home.data import prepare_tokens
from service.home.ledger import Entry, Ledger
from service.home.location import open_home
from service.sweep.sweep import SAME_CRASHES, SameCrashes, by_worker_group, sweep
from service.sweep.trials import group_config
from tests.service.sweep.embedded.conftest import ELSEWHERE

CELLS = Plan(Study.load("short"), "data").cells


def ended(number: int, result: CellResult) -> Entry:
    assert result.state is not None
    assert result.state != "stopped"
    return Entry(CELLS[number].id, CELLS[number], "grid", result.state, result)


def crash(number: int, line: str) -> Entry:
    reason = f"Traceback (most recent call last):\n  File\n{line}\n"
    return ended(number, CellResult(state="crashed", reason=reason))


def test_a_sweep_ends_if_its_first_cells_crash_with_the_same_error() -> None:
    same = SameCrashes()
    for number in range(SAME_CRASHES):
        assert not same.stop_all()
        line = f"OSError: [Errno 28] No space left on device: '/home/cells/{CELLS[number].id}/metrics.jsonl'"
        same.on_end(crash(number, line))
    assert same.stop_all()
    assert same.error == line


def test_a_sweep_continues_after_different_errors() -> None:
    same = SameCrashes()
    for number in range(2 * SAME_CRASHES):
        same.on_end(crash(number, "RuntimeError: one" if number else "RuntimeError: another"))
    assert not same.stop_all()


def test_a_sweep_continues_if_a_cell_has_worked() -> None:
    for works in (CellResult(state="finished"), CellResult(state="diverged")):
        same = SameCrashes()
        same.on_end(crash(0, "RuntimeError: one"))
        same.on_end(ended(1, works))
        for number in range(2, 9):
            same.on_end(crash(number, "RuntimeError: one"))
        assert not same.stop_all()


@pytest.mark.usefixtures("embedded")
def test_ray_workers_find_their_own_cluster_and_our_environment_is_unchanged() -> None:
    @ray.remote
    def told() -> str:
        from ray.util.state import list_nodes

        [node] = list_nodes()
        return str(node.node_id)

    assert ray.get(told.remote()) == ray.get_runtime_context().get_node_id()
    assert os.environ["RAY_API_SERVER_ADDRESS"] == ELSEWHERE
    assert "RAY_ADDRESS" not in os.environ


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.usefixtures("embedded")
def test_a_group_frees_its_cores_before_the_sweep_returns(tmp_path: Path) -> None:
    """When a sweep of one cell returns, the cell's core is free.

    Otherwise a cell that waits for a core could wait for the group of a trial that has already ended.
    """
    home = open_home(tmp_path)
    few = {"methods": ["baseline"], "lrs": [1e-3], "refine": {}, "resources": {"workers": 1}}
    study = Study.model_validate(Study.load("smoke").model_dump(exclude_none=True) | few)
    tokens = prepare_tokens(study, home, print)
    plan = Plan(study, tokens.digest)
    with Ledger(home.ledger(study.name), study.name, write=True) as ledger:
        ledger.plan(plan.cells)
        sweep(plan, by_worker_group(group_config(study, tokens, home)), home, ledger, [], max_concurrent=1)
        assert ledger.counts()["finished"] == 1
    groups = ray.util.placement_group_table()
    assert groups, "no group was ever placed, so the test proves nothing"
    assert {group["state"] for group in groups.values()} == {"REMOVED"}
