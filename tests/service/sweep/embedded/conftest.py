"""One embedded cluster for these modules, like the one that a study on a laptop starts in its own process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import ray

from service.cluster import connection

ELSEWHERE = "http://127.0.0.1:9"


@pytest.fixture(scope="package")
def embedded() -> Iterator[None]:
    """Starts the cluster although a variable points Ray's State API to another one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_API_SERVER_ADDRESS", ELSEWHERE)
        connection.connect(None)
        yield
        ray.shutdown()
