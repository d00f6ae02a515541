"""What a driver prepares for its workers."""

from __future__ import annotations

import subprocess
import sys


def test_a_driver_does_not_import_torch() -> None:
    """Importing it takes seconds and hundreds of megabytes, and only workers need it."""
    code = "import sys, service.sweep.sweep, service.sweep.trials; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
