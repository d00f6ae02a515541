"""A cluster that starts its own nodes: Ray's autoscaler, with the provider that runs real nodes on this machine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from benchmarks.invariants import agree
from benchmarks.nodes import Nodes
from benchmarks.study_run import Run
from search_spaces.study import Study
from tests.service.oec import oec

pytestmark = [pytest.mark.slow, pytest.mark.long]

GONE_S = 120.0
"""Ray Train's resource requests expire after three minutes if they are not withdrawn; idle nodes must go before
that."""
IDLE_MINUTES = 0.1
NAME = "grows"


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """Starts a head without CPUs, whose cluster can grow by up to two nodes with one CPU each."""
    with Nodes() as made:
        kinds = {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "small": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
        }
        configuration = {
            "cluster_name": "grows",
            "max_workers": 2,
            "upscaling_speed": 9999,
            "idle_timeout_minutes": IDLE_MINUTES,
            "provider": {
                "type": "fake_multinode",
                "gcs_address": made.address,
                "use_node_id_as_ip": True,  # all nodes share this machine's IP address
                "disable_node_updaters": True,
                "disable_launch_config_check": True,
            },
            "available_node_types": kinds,
            "head_node_type": "ray.head.default",
            **{name: {} for name in ("auth", "docker", "file_mounts")},
            **{name: [] for name in ("initialization_commands", "setup_commands", "cluster_synced_files")},
            **{f"{node}_{when}_commands": [] for node in ("head", "worker") for when in ("setup", "start_ray")},
        }
        made.head("--num-cpus", "0", autoscaling=configuration, RAY_FAKE_CLUSTER="1", AUTOSCALER_UPDATE_INTERVAL_S="1")
        yield made


def study(folder: Path, **resources: object) -> Path:
    smoke = Study.load("smoke").model_dump(mode="json", exclude_none=True)
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(smoke | {"name": NAME, "resources": {"workers": 1, **resources}}))
    return path


@pytest.mark.fault("no node is up")
def test_a_study_gets_the_nodes_that_it_asks_for_and_releases_them(nodes: Nodes, tmp_path: Path) -> None:
    home = tmp_path / "home"
    cluster = {"OEC_RAY_ADDRESS": nodes.address, **nodes.environment}
    refused = oec("run", study(tmp_path), home=home, **cluster)
    assert refused.returncode == 2
    assert "1 workers x 1 CPU = 1 CPU, of 0" in refused.stderr
    assert "resources.autoscale" in refused.stderr
    grows = study(tmp_path, concurrency=2, autoscale=True)
    planned = oec("plan", grows, "--cluster", nodes.address, home=home, **nodes.environment).stdout
    assert "on a cluster that grows to 2 CPU: 2 cells in parallel, 2 workers" in planned
    run = Run(grows, home, NAME, **cluster)
    try:
        run.until(lambda: nodes.alive() == 3, "a node for each of two cells at once")
        run.ends()
    finally:
        run.close()
    agree(home, NAME)
    deadline = time.monotonic() + GONE_S
    while nodes.alive() > 1:
        assert time.monotonic() < deadline, "idle nodes are still running"
