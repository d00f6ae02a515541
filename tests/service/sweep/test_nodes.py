"""Cells that span several nodes: requirements on the home and the cluster."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from benchmarks.nodes import Nodes
from search_spaces.errors import InvalidInput
from search_spaces.study import Study
from service.cluster.placement import fit_study
from service.home.layout import Home
from service.home.location import open_home
from service.sweep.run import run_study
from service.sweep.trials import group_config
from tests.service.oec import oec
from trainers.command.supervisor import STUCK_S
from trainers.storage.bucket import Bucket

COMMAND = {"command": "train {lr}", "metrics": {"stdout": "(?P<val_loss>.)"}, "identity": [], "nodes": 2, "grace_s": 50}

NODE = """
import json, os, sys
rank, folder = int(sys.argv[1]), sys.argv[2]
with open(f"{folder}/rank-{rank}.json", "w") as file:
    names = "WHERE", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"
    json.dump([*(os.environ[name] for name in names), sys.argv[3:]], file)
if rank == 0:
    print('{"val_loss": 1.0}')
"""


def study(folder: Path) -> Study:
    content = {"name": "mine", "lrs": [1.0], "trainer": COMMAND, "resources": {"workers": 4, "cpus_per_worker": 2}}
    return Study.validate_fields(content, folder)


def test_a_home_in_a_bucket_is_refused(tmp_path: Path) -> None:
    home = Home(tmp_path, Bucket("s3://bucket/home"))
    with pytest.raises(InvalidInput, match=r"trainer\.nodes: 2 .*; use a home on shared storage"):
        run_study(study(tmp_path), home, address=None, retry_crashed=False, console=Console())


def test_each_node_of_a_cell_needs_a_node_of_the_cluster(tmp_path: Path) -> None:
    """Otherwise Ray would wait for the missing node forever."""
    assert fit_study(study(tmp_path), [{"CPU": 4}, {"CPU": 4}, {"CPU": 3}]).cells == 1
    for cluster in ([{"CPU": 64}, {"CPU": 3}], [{"CPU": 4}]):
        with pytest.raises(InvalidInput, match="needs 2 nodes with 4 CPU and 0 GPU each, and there is 1; lower it"):
            fit_study(study(tmp_path), cluster)


def test_nodes_wait_until_the_commands_of_other_nodes_have_ended(tmp_path: Path) -> None:
    config = group_config(study(tmp_path), None, open_home(tmp_path / "home"))
    assert config.end_s == 50 + STUCK_S


@pytest.mark.slow
def test_each_rank_of_a_command_runs_on_its_own_node(tmp_path: Path) -> None:
    """The ranks are placed on different nodes although the first node has room for both."""
    (tmp_path / "node.py").write_text(NODE)
    command = f"{sys.executable} -S node.py {{node_rank}} {{folder}} {{nodes}} {{workers}} {{master_port}} {{lr}}"
    trainer = {"command": command, "metrics": {"stdout": '"val_loss": (?P<val_loss>[0-9.]+)'}, "nodes": 2}
    path = tmp_path / "mine.yaml"
    resources = {"workers": 4, "concurrency": 1}
    path.write_text(yaml.safe_dump({"name": "mine", "trainer": trainer, "lrs": [0.1], "resources": resources}))
    with Nodes() as cluster:
        cluster.head("--num-cpus", "4", WHERE="head")
        cluster.worker("--num-cpus", "2", within=["env", "WHERE=worker"])
        done = oec("run", path, home=tmp_path / "home", OEC_RAY_ADDRESS=cluster.address, **cluster.environment)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (tmp_path / "home/studies/mine/cells").iterdir()
    where, *of_rank = zip(*(json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)), strict=True)
    assert sorted(where) == ["head", "worker"]
    assert all(first == second for first, second in of_rank), of_rank
    threads, devices, arguments = (values[0] for values in of_rank)
    assert (threads, devices) == ("1", "")
    assert arguments[:2] == ["2", "4"]
