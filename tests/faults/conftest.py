"""The study that faults are put into, and what comes of it without one."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from filelock import FileLock

from search_spaces.study import Study
from tests.faults.invariants import losses
from tests.faults.running import NAME, STEPS
from tests.service.oec import oec

Losses = dict[str, float | None]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder of this session, the same in all processes that run its tests."""
    own = tmp_path_factory.getbasetemp()
    return own if worker_id == "master" else own.parent


def two_cells(folder: Path, steps: int) -> Path:
    """Two cells of two DDP workers, one after the other; 500 steps are some ten seconds."""
    training = {**Study.load("smoke").training.model_dump(mode="json"), "steps": steps}
    changes = {"name": NAME, "methods": ["baseline"], "lrs": [1e-3, 2e-3], "training": training}
    changes |= {"intervals": {"evaluate": 100, "checkpoint": 50}, "resources": {"workers": 2}}
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(Study.load("smoke").to_yaml()), "refine": 0, **changes}))
    return path


def trained(study: Path, home: Path) -> Losses:
    """Its losses without a fault. It is trained by the first process that asks."""
    with FileLock(f"{home}.lock"):
        if not home.exists():
            done = oec("run", study, home=home)
            assert done.returncode == 0, done.stdout + done.stderr
            assert "Trial" not in done.stdout, "Ray Tune prints into the user's log"
    return losses(home, NAME)


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_cells(tmp_path_factory.mktemp("study"), STEPS)


@pytest.fixture(scope="session")
def undisturbed(study: Path, shared: Path) -> Losses:
    return trained(study, shared / "undisturbed")


@pytest.fixture(scope="session")
def long_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For faults during which a node or a server starts."""
    return two_cells(tmp_path_factory.mktemp("long-study"), 900)


@pytest.fixture(scope="session")
def long_undisturbed(long_study: Path, shared: Path) -> Losses:
    return trained(long_study, shared / "long-undisturbed")
