"""Whole studies through the real command, on a cluster, with storage faults."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from benchmarks.invariants import agree, ledger_of, starts
from search_spaces.study import Study
from tests.faults.storage import mounted, remount
from tests.service.oec import oec

pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.mark.fault("storage full")
def test_a_full_disk_in_every_cell_ends_the_study_early(tmp_path: Path) -> None:
    """No checkpoint fits. Only rank 0 gets the error, yet each cell reports it as its reason, and the group stays warm.
    The same command resumes once there is room."""
    home, name = tmp_path / "home", "full"
    changes = {"name": name, "methods": ["baseline"], "lrs": [1e-3, 2e-3, 3e-3, 4e-3], "refine": 0}
    study = tmp_path / "study.yaml"
    intervals = {"evaluate": 10, "checkpoint": 5}
    study.write_text(yaml.safe_dump(yaml.safe_load(Study.load("smoke").to_yaml()) | changes | {"intervals": intervals}))
    cells = home / "studies" / name / "cells"
    with mounted(cells, "128k"):
        stopped = oec("run", study, home=home)
        assert stopped.returncode == 1, stopped.stdout + stopped.stderr
        assert "stopped early: the first cells all crashed with the same error: " in stopped.stdout
        assert "No space left on device" in stopped.stdout
        assert f"To try them again, run `oec run {study} --retry-crashed`" in stopped.stdout
        ledger = ledger_of(home, name)
        crashed = [entry for entry in ledger.entries.values() if entry.state == "crashed"]
        assert len(crashed) == 3
        assert all("Traceback" in entry.result.reason for entry in crashed)
        assert {entry.state for entry in ledger.entries.values()} <= {"crashed", "running", "planned"}
        assert starts(home, name)[:3] == [1] * 3
        remount(cells, "size=64m")
        done = oec("run", study, "--retry-crashed", home=home)
        assert done.returncode == 0, done.stdout + done.stderr
        agree(home, name)
        assert starts(home, name)[:3] == [2] * 3, "each crashed cell must be retried exactly once"
        assert set(ledger_of(home, name).counts()) == {"finished"}
