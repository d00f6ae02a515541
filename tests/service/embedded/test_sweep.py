"""When a sweep is not worth going on with, its first cells having all crashed with the same error; and what one leaves
in the cluster that it ran on: nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import ray

from search_spaces.plan import Plan
from search_spaces.study import Study
from service.home.ledger import Ledger
from service.home.location import open_home
from service.sweep.run import tokens_of
from service.sweep.sweep import ALIKE, CrashedAlike, sweep, warm
from tests.service.embedded.conftest import ELSEWHERE

CELLS = Plan(Study.load("short"), "data").cells


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


@pytest.mark.usefixtures("embedded")
def test_rays_processes_know_their_own_cluster_and_ours_keeps_its_environment() -> None:
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
def test_a_group_frees_its_cores_before_its_trial_is_gone(tmp_path: Path) -> None:
    """The core of a sweep of one cell is free when the sweep returns.

    A cell that waits for a core must not wait for the group of a trial that has ended.
    """
    home = open_home(tmp_path)
    few = {"methods": ["baseline"], "lrs": [1e-3], "refine": {}, "resources": {"workers": 1}}
    study = Study.model_validate(Study.load("smoke").model_dump(exclude_none=True) | few)
    tokens = tokens_of(study, home, print)
    plan = Plan(study, tokens.digest)
    with Ledger(home.ledger(study.name), study.name, write=True) as ledger:
        ledger.plan(plan.cells)
        sweep(plan, warm(study, tokens, home), home, ledger, [], at_once=1)
        assert ledger.counts()["finished"] == 1
    groups = ray.util.placement_group_table()
    assert groups, "no group was placed, so that none could be left"
    assert {group["state"] for group in groups.values()} == {"REMOVED"}
