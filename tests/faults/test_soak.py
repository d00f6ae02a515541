"""A short soak: one study with a few cells under random faults. The full version is ``python -m benchmarks.soak``."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.long]

DEADLINE_S = 600
"""Long enough for a busy machine; an idle one takes two minutes."""


def test_nothing_is_lost_under_random_faults() -> None:
    command = [sys.executable, "-m", "benchmarks.soak", "--minutes", "0", "--cells", "25", "--seed", "2"]
    done = subprocess.run(
        command, env={**os.environ, "COLUMNS": "200"}, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "study 1: held, " in done.stdout
    assert "study 1: held, 0 faults" not in done.stdout
    assert "1 studies, 25 cells, invariants held after each" in done.stdout
