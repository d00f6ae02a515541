"""A real ``mlflow server`` on loopback that can be killed and restarted with the same store and port."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil

from service.cluster.connection import free_port

UP_S = 240.0


class Server:
    """A server whose store and artifacts are in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: psutil.Popen | None = None

    def start(self) -> None:
        """Starts it and waits until it is healthy."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}", "--workers", "1"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "PYTHONPATH") if name in os.environ}
        with (self.folder / "server.log").open("ab") as log:
            self._process = psutil.Popen(
                command,
                env={**kept, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
            )
        deadline = time.monotonic() + UP_S
        while not self._healthy():
            assert time.monotonic() < deadline, (self.folder / "server.log").read_text()
            time.sleep(0.2)

    def kill(self) -> None:
        """Kills it and all of its child processes."""
        if self._process is None:
            return
        family = [*self._process.children(recursive=True), self._process]
        for process in family:
            process.kill()
        psutil.wait_procs(family, timeout=10)
        self._process = None

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            return False
