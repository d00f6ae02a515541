"""The study that faults are put into, and what comes of it without one."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from search_spaces.study import Study
from tests.faults.invariants import losses
from tests.faults.running import NAME
from tests.service.oec import oec


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cells of two DDP workers, one after the other, some seconds each."""
    training = {**Study.load("smoke").training.model_dump(mode="json"), "steps": 900}
    changes = {"name": NAME, "methods": ["baseline"], "lrs": [1e-3, 2e-3], "training": training}
    changes |= {"intervals": {"evaluate": 100, "checkpoint": 50}, "resources": {"workers": 2}}
    path = tmp_path_factory.mktemp("study") / "study.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(Study.load("smoke").to_yaml()), "refine": 0, **changes}))
    return path


@pytest.fixture(scope="session")
def undisturbed(study: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float | None]:
    home = tmp_path_factory.mktemp("undisturbed")
    done = oec("run", study, home=home)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Trial" not in done.stdout, "Ray Tune prints into the user's log"
    return losses(home, NAME)
