"""The real command, for tests: in a process of its own, or in the one that asks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

from service.cli.commands import main

OEC = Path(sys.executable).with_name("oec")


def environment(home: Path, **more: str) -> dict[str, str]:
    """What a user's shell would hold, without this test session's settings."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "PYTHONPATH") if name in os.environ}
    return {**kept, "OEC_HOME": str(home), "COLUMNS": "200", "OMP_NUM_THREADS": "1", **more}


def oec(
    *arguments: object, home: Path, timeout: float = 600, cwd: Path | None = None, **more: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(OEC), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=cwd,
        env=environment(home, **more),
        check=False,
    )


def invoked(*arguments: object, home: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """The same within this process, in a tenth of the time, for a command that starts no other.

    Raises:
        Exception: what would have been a traceback.
    """
    runner = CliRunner(env={"OEC_HOME": str(home), "COLUMNS": "200", **more})
    done = runner.invoke(main, list(map(str, arguments)), prog_name="oec")
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)


def start(*arguments: object, home: Path, log: Path, **more: str) -> subprocess.Popen[bytes]:
    """The command in the background and in a session of its own, writing to ``log``."""
    with log.open("wb") as file:
        return subprocess.Popen(
            [str(OEC), *map(str, arguments)],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment(home, **more),
            start_new_session=True,
        )
