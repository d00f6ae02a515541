"""A study on Ray whose cells share the device, four at a time. Run by ``make test-gpu-ray``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.cuda.cells import DRY

pytestmark = pytest.mark.ray
CLI = "from service.cli import main; main()"
"""``oec``, even if the package is not installed."""


def test_a_study_on_quarters_of_the_device_writes_page_and_tables(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    from search_spaces.study import Study
    from service.home.ledger import Ledger

    content = yaml.safe_load(Study.load("smoke").to_yaml()) | {"name": "quarters", "lrs": [1e-3, 3e-3, 1e-2, 1e-1]}
    resources = {"workers": 1} if DRY else {"workers": 1, "gpus_per_worker": 0.25}
    study = tmp_path / "quarters.yaml"
    study.write_text(yaml.safe_dump(content | {"resources": resources}))
    environment = os.environ | {"OEC_HOME": str(tmp_path / "home"), "COLUMNS": "200"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    command = [sys.executable, "-c", CLI, "run", str(study)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=420, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    folder = tmp_path / "home" / "studies" / "quarters"
    with Ledger(folder / "ledger.jsonl", "quarters") as ledger:
        counts = ledger.counts()
    assert counts["finished"] + counts["diverged"] == sum(counts.values()) == 3 * 4
    assert {"report.html", "tables"} <= {path.name for path in (folder / "report").iterdir()}
