"""The real ``oec`` command for tests: in its own process, or in the test's process."""

from __future__ import annotations

import subprocess
from pathlib import Path

from click.testing import CliRunner

from benchmarks.command import OEC, environment, start
from service.cli.commands import main

__all__ = ["OEC", "environment", "invoked", "oec", "start"]


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
    """Runs the command in this process, which takes a tenth of the time, for commands that start no other process.

    Raises:
        Exception: what would have been a traceback.
    """
    runner = CliRunner(env={"OEC_HOME": str(home), "COLUMNS": "200", **more})
    done = runner.invoke(main, list(map(str, arguments)), prog_name="oec")
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)
