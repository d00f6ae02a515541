"""Selects the device of these tests, and the tests that are skipped on it.

``OEC_TEST_DEVICE=cpu`` is a dry run: the same tests on a CPU, without the compiler, and with recordings that a CPU can
replay in place of CUDA graphs. Tests marked ``device`` are skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.cuda.cells import DEVICE, DRY, Recordings
from tests.trainers import tiny
from trainers.data import Tokens

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    asked_for_ray = "ray" in (config.option.markexpr or "").replace("not ray", "")
    for item in items:
        if HERE not in item.path.parents:
            continue
        if not DRY and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="there is no CUDA device"))
        elif DRY and item.get_closest_marker("device"):
            item.add_marker(pytest.mark.skip(reason="a dry run has no device"))
        elif item.get_closest_marker("ray") and not asked_for_ray:
            item.add_marker(pytest.mark.skip(reason="run by `make test-gpu-ray`"))


@pytest.fixture(scope="session")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Tokens:
    return tiny.tokens(tmp_path_factory.mktemp("tokens"))


@pytest.fixture(autouse=True)
def recordings(monkeypatch: pytest.MonkeyPatch) -> Recordings:
    return Recordings(monkeypatch)


@pytest.fixture(autouse=True)
def a_tidy_device() -> Iterator[None]:
    yield
    torch.set_float32_matmul_precision("highest")
    torch.use_deterministic_algorithms(False)
    if DEVICE.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.empty_cache()
