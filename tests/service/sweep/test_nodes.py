"""A cell of several nodes: what its home and its cluster have to be."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from search_spaces.errors import InvalidInput
from search_spaces.study import Study
from service.home.layout import Home
from service.home.location import open_home
from service.sweep.run import check_room, run_study
from service.sweep.trials import group_config
from trainers.command.supervisor import STUCK_S
from trainers.storage.bucket import Bucket

COMMAND = {"command": "train {lr}", "metrics": {"stdout": "(?P<val_loss>.)"}, "identity": [], "nodes": 2, "grace_s": 50}


def study(folder: Path) -> Study:
    content = {"name": "mine", "lrs": [1.0], "trainer": COMMAND, "resources": {"workers": 4, "cpus_per_worker": 2}}
    return Study.validate_fields(content, folder)


def test_a_home_in_a_bucket_is_refused(tmp_path: Path) -> None:
    home = Home(tmp_path, Bucket("s3://bucket/home"))
    with pytest.raises(InvalidInput, match=r"trainer\.nodes: 2 .*; use a home on shared storage"):
        run_study(study(tmp_path), home, address=None, retry_crashed=False, console=Console())


def test_each_node_of_a_cell_needs_a_node_of_the_cluster(tmp_path: Path) -> None:
    """Ray would wait for it without an end."""
    assert check_room(study(tmp_path), [{"CPU": 4}, {"CPU": 4}, {"CPU": 3}]) == 1
    for cluster in ([{"CPU": 64}, {"CPU": 3}], [{"CPU": 4}]):
        with pytest.raises(InvalidInput, match="needs 2 nodes with 4 CPU and 0 GPU each, and there is 1; lower it"):
            check_room(study(tmp_path), cluster)


def test_nodes_wait_until_the_command_of_another_has_ended(tmp_path: Path) -> None:
    config = group_config(study(tmp_path), None, open_home(tmp_path / "home"))
    assert config.end_s == 50 + STUCK_S
