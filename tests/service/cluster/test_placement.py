"""How many cells fit into a cluster, what limits their number, and the message if none fits."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.errors import InvalidInput
from search_spaces.resources import GPU_UNIT, ResourceSpec
from search_spaces.study import Study
from search_spaces.trainer import TrainerSpec
from service.cluster import placement
from tests.service.oec import oec

small = st.integers(min_value=1, max_value=16)
shares = st.integers(1, 9_999).map(lambda units: units * GPU_UNIT)
nodes = st.lists(
    st.builds(lambda cpu, gpu: {"CPU": cpu, "GPU": gpu}, st.integers(0, 32), st.integers(0, 8)), min_size=1, max_size=4
)


@given(small, small, st.integers(0, 1), small, nodes)
def test_as_many_as_fit_and_not_one_more(workers: int, cpus: int, gpus: int, limit: int, cluster: list) -> None:
    """Places workers on the nodes one by one; the remaining resources cannot hold another cell."""
    resources = ResourceSpec(workers=workers, cpus_per_worker=cpus, gpus_per_worker=gpus, concurrency=limit)
    left, placed = [dict(node) for node in cluster], 0
    for node in left:
        while node["CPU"] >= cpus and node["GPU"] >= gpus:
            node["CPU"], node["GPU"], placed = node["CPU"] - cpus, node["GPU"] - gpus, placed + 1
    if placed < workers:
        with pytest.raises(InvalidInput):
            placement.fit(resources, cluster)
    else:
        assert placement.fit(resources, cluster).cells == min(limit, placed // workers)


@given(st.integers(2, 4), st.lists(st.integers(0, 6), min_size=1, max_size=6))
def test_a_command_on_several_nodes_has_each_worker_on_its_own_node(number: int, cores: list[int]) -> None:
    """Places cells one by one on the nodes with the most free cores, which is optimal; the rest cannot hold another
    cell."""
    resources, cluster = ResourceSpec(workers=number), [{"CPU": n} for n in cores]
    left, cells = sorted(cores), 0
    while len(left) >= number and left[-number] > 0:
        left, cells = sorted(left[:-number] + [n - 1 for n in left[-number:]]), cells + 1
    if cells:
        assert placement.fit(resources, cluster, distinct_nodes=True).cells == cells
    else:
        with pytest.raises(InvalidInput):
            placement.fit(resources, cluster, distinct_nodes=True)


@given(shares, st.integers(1, 8))
def test_a_share_of_an_accelerator_is_on_one_device(share: float, devices: int) -> None:
    fits = placement.fit(ResourceSpec(gpus_per_worker=share), [{"CPU": 10**6, "GPU": devices}]).cells
    units = round(share / GPU_UNIT)
    assert fits % devices == 0
    assert (fits // devices) * units <= 10_000 < (fits // devices + 1) * units


@pytest.mark.parametrize(("share", "fits"), [(0.25, 8), (0.3, 6), (0.5, 4), (0.3333, 6), (0.34, 4), (0.6, 2), (1, 2)])
def test_cells_on_two_devices(share: float, fits: int) -> None:
    assert placement.fit(ResourceSpec(gpus_per_worker=share), [{"CPU": 64, "GPU": 2}]).cells == fits


@pytest.mark.parametrize(
    ("resources", "cluster", "message"),
    [
        ({"workers": 8}, "CPU=4", "8 workers x 1 CPU = 8 CPU, of 4; use at most 4 workers"),
        ({"workers": 3, "cpus_per_worker": 2}, "CPU=4", "3 workers x 2 CPU = 6 CPU, of 4; use at most 2 workers"),
        ({"workers": 2, "gpus_per_worker": 1}, "CPU=4", "2 workers x 1 GPU = 2 GPU, of 0; use a cluster with GPUs"),
        ({"gpus_per_worker": 0.25}, "CPU=4", "1 workers x 0.25 GPU = 0.25 GPU, of 0; use a cluster with GPUs"),
        ({"cpus_per_worker": 6}, "2xCPU=4", "takes 6 CPU on one node, and the nodes have room for 0; use larger nodes"),
        ({"workers": 3, "cpus_per_worker": 2}, "2xCPU=3", "the nodes have room for 2; use at most 2 workers"),
    ],
)
def test_the_error_for_cells_that_do_not_fit_shows_the_arithmetic(
    resources: dict[str, float], cluster: str, message: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        placement.fit(ResourceSpec.model_validate(resources), placement.parse_nodes(cluster))
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("resources", "cluster", "expected"),
    [
        ({}, "CPU=8", (8, "CPU")),
        ({"workers": 3}, "CPU=8", (2, "CPU")),
        ({"concurrency": 5}, "CPU=8", (5, "resources.concurrency")),
        ({"workers": 2, "gpus_per_worker": 1, "cpus_per_worker": 4}, "CPU=64, GPU=4", (2, "GPU")),
        ({"workers": 2, "gpus_per_worker": 1, "cpus_per_worker": 4}, "CPU=16,GPU=64", (2, "CPU")),
        ({"cpus_per_worker": 2}, "4xCPU=3", (4, "CPU")),
        ({"workers": 2}, "3xCPU=3", (4, "CPU")),
        ({"gpus_per_worker": 0.25, "cpus_per_worker": 2}, "2xCPU=16,GPU=1", (8, "GPU")),
        ({"gpus_per_worker": 0.25, "cpus_per_worker": 2}, "2xCPU=4,GPU=1", (4, "CPU")),
    ],
)
def test_what_limits_the_cells(resources: dict[str, float], cluster: str, expected: tuple[int, str]) -> None:
    """A cell with two workers may be split across nodes, but a worker may not."""
    found = placement.fit(ResourceSpec.model_validate(resources), placement.parse_nodes(cluster))
    assert found == placement.Fit(*expected)


def test_nodes_with_either_cpus_or_gpus() -> None:
    cluster = [{"CPU": 64.0}, {"CPU": 2.0, "GPU": 8.0}]
    assert placement.fit(ResourceSpec(gpus_per_worker=1), cluster) == placement.Fit(2, "the nodes' mix of CPU and GPU")


def test_trials_take_memory_if_the_cluster_declares_it() -> None:
    gigabyte = 2.0**30
    assert placement.fit(ResourceSpec(), [{"CPU": 64, "memory": 4 * gigabyte}]) == placement.Fit(8, "memory")
    with pytest.raises(InvalidInput, match="256 MiB of memory' cannot hold one trial, which takes 512 MiB"):
        placement.fit(ResourceSpec(), [{"CPU": 64, "memory": gigabyte / 4}])


def test_a_cluster_that_grows_is_asked_for_what_the_study_may_use() -> None:
    grows = ResourceSpec(autoscale=True, concurrency=6)
    assert placement.fit(grows, [{"CPU": 0}], can_grow=True) == placement.Fit(6, "resources.concurrency")
    assert placement.fit(ResourceSpec(concurrency=6), [{"CPU": 2}], can_grow=True) == placement.Fit(2, "CPU")
    with pytest.raises(InvalidInput, match="1 workers x 1 CPU = 1 CPU, of 0"):
        placement.fit(grows, [{"CPU": 0}])
    few = placement.fit(grows, [{"CPU": 0}], cells=4, can_grow=True)
    assert few == placement.Fit(4, "the number of cells")


TEXTS = ["64", "CPU=", "CPU=x", "CPU=-4", "TPU=4", "CPU=4;GPU=1", "CPU=4,", "localhost", "0xCPU=4", "2xx4", "x", "2x"]


@pytest.mark.parametrize("text", TEXTS)
def test_an_invalid_cluster_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        placement.parse_nodes(text)
    assert refused.value.field == "--cluster"
    assert "CPU=64,GPU=8" in str(refused.value)


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"workers": 2, "gpus_per_worker": 0.5}, "NCCL refuses two ranks on one device; set resources.workers to 1"),
        ({"gpus_per_worker": 0.12345}, "is not a multiple of 0.0001, Ray's unit"),
        ({"gpus_per_worker": 2}, "less than or equal to 1"),
        ({"autoscale": True}, "sets autoscale without concurrency; set resources.concurrency"),
    ],
)
def test_invalid_resources_are_refused(resources: dict[str, object], message: str) -> None:
    smoke = Study.load("smoke").model_dump(mode="json", exclude_none=True)
    with pytest.raises(InvalidInput) as refused:
        Study.validate_fields(smoke | {"resources": resources})
    assert refused.value.field.startswith("resources")
    assert message in str(refused.value)


@pytest.mark.parametrize(("devices", "expected"), [((4, 4), 4), ((3, 1), 1), ((8,), 4)])
def test_a_command_takes_several_devices_of_one_node(devices: tuple[int, ...], expected: int) -> None:
    spec = TrainerSpec(command="x", metrics={"stdout": "(?P<val_loss>.)"})
    resources = spec.group_resources(ResourceSpec(workers=2, gpus_per_worker=1))
    assert placement.fit(resources, [{"CPU": 64, "GPU": number} for number in devices]).cells == expected


def test_a_plan_for_a_cluster(tmp_path: Path) -> None:
    def shown(cluster: str, **resources: object) -> str:
        short = Study.load("short")
        study = tmp_path / "short.yaml"
        study.write_text(short.to_yaml().partition("resources:")[0] + yaml.safe_dump({"resources": resources}))
        return oec("plan", study, "--cluster", cluster, home=tmp_path).stdout.splitlines()[-1]

    one = shown("CPU=16")
    assert one.startswith("on 16 CPU: 16 cells in parallel, 16 workers, limited by CPU; about ")
    assert one.endswith("core-hours")
    assert shown("CPU=64").startswith(
        "on 64 CPU: 49 cells in parallel, 49 workers, limited by the number of cells; about "
    )
    four = shown("4xCPU=16,GPU=1", gpus_per_worker=0.25, cpus_per_worker=3)
    assert four.startswith("on 4 nodes with 64 CPU, 4 GPU: 16 cells in parallel, 16 workers, limited by GPU; about ")
    assert four.endswith("GPU-hours")
    refused = oec("plan", "short", "--cluster", "GPU=1", home=tmp_path)
    assert refused.returncode == 2
    assert "1 workers x 1 CPU = 1 CPU, of 0" in refused.stderr
