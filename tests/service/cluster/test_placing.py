"""``service.cluster.placement`` agrees with Ray, on two nodes with five CPUs and a declared accelerator each.

There is no real accelerator: the tests show what Ray assigns, not what could train on it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

from benchmarks.nodes import Nodes

pytestmark = [pytest.mark.slow, pytest.mark.long]

CASES: dict[str, dict[str, float]] = {
    "two workers": {"workers": 2},
    "three workers": {"workers": 3},
    "three cores": {"cpus_per_worker": 3},
    "three cores each": {"workers": 2, "cpus_per_worker": 3},
    "an accelerator": {"gpus_per_worker": 1},
    "two accelerators": {"workers": 2, "gpus_per_worker": 1},
    "a quarter": {"gpus_per_worker": 0.25},
    "three tenths": {"gpus_per_worker": 0.3},
    "a worker on each node": {"workers": 2, "cpus_per_worker": 2, "distinct_nodes": True},
}


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, Any]]:
    node = ["--num-cpus", "5", "--num-gpus", "1"]
    with Nodes() as nodes:
        nodes.head(*node)
        nodes.worker(*node)
        command = [
            sys.executable,
            "-m",
            "tests.service.cluster.placing",
            nodes.address,
            *map(json.dumps, CASES.values()),
        ]
        environment = {**os.environ, **nodes.environment}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return dict(zip(CASES, lines, strict=True))


@pytest.mark.parametrize(
    ("case", "fits", "bound"),
    [
        ("two workers", 5, "CPU"),
        ("three workers", 3, "CPU"),
        ("three cores", 2, "CPU"),
        ("three cores each", 1, "CPU"),
        ("an accelerator", 2, "GPU"),
        ("two accelerators", 1, "GPU"),
        ("a quarter", 8, "GPU"),
        ("three tenths", 6, "GPU"),
        ("a worker on each node", 2, "CPU"),
    ],
)
def test_the_predicted_number_of_cells_is_placed_and_not_one_more(
    found: dict[str, dict[str, Any]], case: str, fits: int, bound: str
) -> None:
    one = found[case]
    assert (one["fits"], one["bound"]) == (fits, bound)
    assert one["ready"] == fits
    assert not one["more"]


def test_a_cell_that_fits_on_one_node_is_not_split(found: dict[str, dict[str, Any]]) -> None:
    """Each node has room for two cells of two workers. The fifth takes what is left of both nodes, as does the third
    cell of three workers."""
    for case in ("two workers", "three workers"):
        split = [len(nodes) for nodes in found[case]["nodes"]]
        assert split[:2] == [1, 1], f"{case} per cell: {split} nodes"
    assert len(found["three cores each"]["nodes"][0]) == 2, "a cell that fits on no single node must be split"


def test_the_ranks_of_a_command_on_two_nodes_are_apart(found: dict[str, dict[str, Any]]) -> None:
    """One node would have room for both ranks."""
    assert [len(nodes) for nodes in found["a worker on each node"]["nodes"]] == [2, 2]


def test_cells_with_a_share_of_an_accelerator_are_packed_as_predicted(found: dict[str, dict[str, Any]]) -> None:
    for case, a_device in (("a quarter", 4), ("three tenths", 3)):
        one = found[case]
        where = [(nodes[0], *devices) for nodes, devices in zip(one["nodes"], one["devices"], strict=True)]
        assert sorted(Counter(where).values()) == [a_device, a_device], where
