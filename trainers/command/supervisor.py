"""The parent of a command, which ends everything that the command started. A script of the standard library alone::

    python -I -S supervisor.py OUTPUT_FD GRACE_S -- COMMAND ...

It is a *subreaper*: a process that leaves its process group, its session or its parent becomes a child of this one, so
that none is lost. It writes one line of JSON to its standard output when all of them are gone. It ends them when its
standard input closes, which the kernel does if the worker that holds the other end dies.

Linux only: it needs ``prctl`` and ``/proc``.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
POLL_S = 0.02
"""How often a process that was told to end is looked for."""
ORPHANS_S = 1.0
"""How often children that the command left to this process are reaped."""
CANNOT_START = 127
"""Exit code of a command that could not start, as in a shell."""
STUCK_S = 30.0
"""Seconds after SIGKILL after which a process in an uninterruptible wait is left behind."""


def processes() -> Iterator[tuple[int, int]]:
    """``(process id, parent's process id)`` of every process."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                stat = (folder / "stat").read_text(errors="replace")
            except OSError:  # it has ended
                continue
            yield int(folder.name), int(stat.rpartition(")")[2].split()[1])


def descendants() -> list[int]:
    """Process ids of the children of this process, of theirs, and so on."""
    children: dict[int, list[int]] = {}
    for pid, parent in processes():
        children.setdefault(parent, []).append(pid)
    found, queue = [], [os.getpid()]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def signal_all(number: int) -> None:
    for pid in descendants():
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):  # it has ended, or runs as another user
            continue


class Supervisor:
    def __init__(self, command: list[str], output: int, grace_s: float) -> None:
        self.grace_s = grace_s
        self.code: int | None = None
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        if prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "cannot become a subreaper")
        self.child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0),  # this process has one thread
        )
        os.close(output)

    def run(self) -> None:
        """Waits until the command has ended or is no longer wanted, then ends what is left."""
        ended = os.pidfd_open(self.child.pid)
        while self.code is None:
            ready, _, _ = select.select([ended, sys.stdin], [], [], ORPHANS_S)
            self.reap()
            if sys.stdin in ready:
                break
        self.end_all()

    def end_all(self) -> None:
        """SIGTERM to every descendant, SIGKILL after the grace period, until none is left."""
        kill_at = time.monotonic() + self.grace_s
        if not self.reap():
            return
        signal_all(signal.SIGTERM)
        signal_all(signal.SIGCONT)  # a stopped process handles SIGTERM only when it continues
        while self.reap():
            if time.monotonic() > kill_at:
                signal_all(signal.SIGKILL)
            if time.monotonic() > kill_at + STUCK_S:
                return
            time.sleep(POLL_S)

    def reap(self) -> bool:
        """Collects the children that have ended. Returns whether any are left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == self.child.pid:
                self.code = os.waitstatus_to_exitcode(status)
            if pid == 0:
                return True


def main() -> None:
    output, grace_s, _, *command = sys.argv[1:]
    if os.fork():  # a Ray worker that exits kills its own children, which this must outlive
        os._exit(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the worker's to handle
    try:
        supervisor = Supervisor(command, int(output), float(grace_s))
    except OSError as error:
        print(json.dumps({"code": CANNOT_START, "error": f"{error.strerror}: {command[0]!r}"}), flush=True)
        return
    supervisor.run()
    print(json.dumps({"code": supervisor.code}), flush=True)


if __name__ == "__main__":
    main()
