"""One start of a command, under a supervisor that ends everything it starts."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from trainers.command import supervisor
from trainers.command.output import Output

MARKER = "OEC_CELL_FOLDER"
"""Variable of the environment by which the processes of a cell are found if their supervisor was killed."""
CHUNK = 1 << 16
DRAIN_S = 5.0
"""How long to wait for the end of the output once all processes are gone."""


class CommandProcess:
    """A running command. Its output goes to ``output``, and to ``on_output`` as it comes."""

    def __init__(
        self,
        words: Sequence[str],
        *,
        directory: Path,
        environment: Mapping[str, str],
        folder: Path,
        output: Output,
        on_output: Callable[[bytes], None],
        grace_s: float,
    ) -> None:
        self._output, self._on_output, self._marker = output, on_output, marker(folder)
        self.last_output = time.monotonic()
        self.code: int | None = None
        """Exit code, or minus the signal that killed it. Set when every process that it started is gone."""
        self.error = ""
        """Why it could not start."""
        read, write = os.pipe()
        self._supervisor = subprocess.Popen(
            [sys.executable, "-I", "-S", supervisor.__file__, str(write), str(grace_s), "--", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[write],
            cwd=directory,
            env={**environment, MARKER: str(folder)},
            start_new_session=True,
        )
        os.close(write)
        self._reader = threading.Thread(target=self._read, args=[read], daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self.end()

    def wait(self, timeout_s: float) -> bool:
        """Whether the command and all that it started have ended; waits at most ``timeout_s`` for that."""
        if self.code is None:
            assert self._supervisor.stdout is not None
            if select.select([self._supervisor.stdout], [], [], timeout_s)[0]:
                self._finish(self._supervisor.stdout.read())
        return self.code is not None

    def end(self) -> None:
        """End the command and all that it started, if it runs: SIGTERM, and SIGKILL after the grace period."""
        assert self._supervisor.stdin is not None
        self._supervisor.stdin.close()
        while not self.wait(1.0):
            pass

    def _finish(self, status: bytes) -> None:
        self._supervisor.wait()
        if status:
            content = json.loads(status)
            self.code, self.error = content["code"], content.get("error", "")
        if self.code is None:  # the supervisor was killed, or a process would not end
            kill_marked(self._marker)
            self.code = -signal.SIGKILL
        self._reader.join(DRAIN_S)

    def _read(self, descriptor: int) -> None:
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            while data := file.read(CHUNK):
                self.last_output = time.monotonic()
                self._output.write(data)
                self._on_output(data)


def marker(folder: Path) -> bytes:
    """How the environment of a cell's processes is recognized."""
    return f"{MARKER}={folder}".encode()


def kill_marked(mark: bytes) -> list[int]:
    """SIGKILL every process on this machine whose environment contains ``mark``, until none is left except those in an
    uninterruptible wait. Returns the ids of all that it killed."""
    killed: set[int] = set()
    deadline = time.monotonic() + supervisor.STUCK_S
    while found := {pid for pid, _ in supervisor.processes() if mark in _environment(pid)}:
        for pid in found:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            break
        if killed >= found:
            time.sleep(supervisor.POLL_S)
        killed |= found
    return sorted(killed)


def _environment(pid: int) -> list[bytes]:
    """The environment with which a process was started; empty if it has ended, or belongs to another user."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []
