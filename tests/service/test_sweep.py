"""What a sweep leaves in the cluster that it ran on: nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.util.state import list_placement_groups

from search_spaces.plan import Plan
from search_spaces.study import Study
from service import cluster
from service.home import Home
from service.ledger import Ledger
from service.run import tokens_of
from service.sweep import sweep, warm


@pytest.fixture(autouse=True)
def embedded() -> Iterator[None]:
    cluster.connect(None)
    yield
    ray.shutdown()


def test_a_group_frees_its_cores_before_its_trial_is_gone(tmp_path: Path) -> None:
    """The core of a sweep of one cell is free when the sweep returns.

    A cell that waits for a core must not wait for the group of a trial that has ended.
    """
    home = Home.open(tmp_path)
    few = {"methods": ["baseline"], "lrs": [1e-3], "refine": {}, "resources": {"workers": 1}}
    study = Study.model_validate(Study.load("smoke").model_dump(exclude_none=True) | few)
    tokens = tokens_of(study, home, print)
    plan = Plan(study, tokens.digest)
    with Ledger(home.ledger(study.name), study.name, write=True) as ledger:
        ledger.plan(plan.cells)
        sweep(plan, warm(study, tokens, home), home, ledger, [], at_once=1)
        assert ledger.counts()["finished"] == 1
    address = ray.get_runtime_context().gcs_address
    groups = list_placement_groups(address=address)
    assert groups, "no group was placed, so that none could be left"
    assert {group.state for group in groups} == {"REMOVED"}
