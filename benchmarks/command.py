"""The installed ``oec`` command in its own process, for benchmarks and tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

OEC = Path(sys.executable).with_name("oec")


def environment(home: Path, **more: str) -> dict[str, str]:
    """Returns the environment of a user's shell, without the settings of this process."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "PYTHONPATH") if name in os.environ}
    return {**kept, "OEC_HOME": str(home), "COLUMNS": "200", "OMP_NUM_THREADS": "1", **more}


def start(*arguments: object, home: Path, log: Path, **more: str) -> subprocess.Popen[bytes]:
    """Starts the command in the background, in its own session, and writes its output to ``log``."""
    with log.open("wb") as file:
        return subprocess.Popen(
            [str(OEC), *map(str, arguments)],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment(home, **more),
            start_new_session=True,
        )
