"""Places the worker groups of cells on a running cluster and prints the result. It is a separate program because Ray
reads its token once per process.

    python -m tests.service.cluster.placing ADDRESS RESOURCES...

Each RESOURCES is JSON, and so is each line of the output.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from search_spaces.resources import ResourceSpec
from service.cluster import connection, placement
from service.sweep.worker_group import scaling

READY_S, FULL_S = 60.0, 3.0


def groups(resources: ResourceSpec, number: int, distinct_nodes: bool) -> list[PlacementGroup]:
    """Creates the placement groups of ``number`` cells, using Ray Train's own interpretation of our scaling config."""
    config = scaling(resources, on_device=not distinct_nodes)
    bundles = [config._resources_per_worker_not_none] * resources.workers
    return [placement_group(bundles, strategy=str(config.placement_strategy)) for _ in range(number)]


@ray.remote
def devices() -> list[str]:
    return [str(number) for number in ray.get_runtime_context().get_accelerator_ids()["GPU"]]


def devices_of(group: PlacementGroup, share: float) -> list[str]:
    here = PlacementGroupSchedulingStrategy(group)
    found: list[str] = ray.get(devices.options(num_cpus=0, num_gpus=share, scheduling_strategy=here).remote())
    return found


def placed(resources: ResourceSpec, distinct_nodes: bool) -> dict[str, Any]:
    """Places as many cells as should fit, and then one more."""
    found = placement.fit(resources, placement.joined_nodes(), distinct_nodes=distinct_nodes)
    cells = groups(resources, found.cells, distinct_nodes)
    ready = sum(group.wait(READY_S) for group in cells)
    [more] = groups(resources, 1, distinct_nodes)
    over = more.wait(FULL_S)
    nodes = [sorted(set(placement_group_table(group)["bundles_to_node_id"].values())) for group in cells]
    share = resources.gpus_per_worker
    used = [devices_of(group, share) for group in cells] if share else []
    for group in (*cells, more):
        remove_placement_group(group)
    return {"fits": found.cells, "bound": found.bound_by, "ready": ready, "more": over, "nodes": nodes, "devices": used}


def main() -> None:
    connection.connect(sys.argv[1])
    for text in sys.argv[2:]:
        content = json.loads(text)
        distinct_nodes = content.pop("distinct_nodes", False)
        print(json.dumps(placed(ResourceSpec(**content), distinct_nodes)))


if __name__ == "__main__":
    main()
