"""Who writes a ledger: one process at a time, on disk by a lock on the file, in a bucket by a record of its own."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path

from search_spaces.errors import InvalidInput
from search_spaces.frozen import Frozen

LOCK_TRIES, LOCK_PAUSE_S = 10, 0.02
BEAT_S = 5.0
"""How often a writer in a bucket renews its record."""
LOST_S = 4 * BEAT_S
"""How long a record may go without renewal before another writer takes over. Clocks of two machines are not compared
for that."""


class LedgerLocked(InvalidInput):
    """Another process is writing this ledger."""

    @classmethod
    def by(cls, writer: object, study: str) -> LedgerLocked:
        """``writer`` prints as who it is."""
        return cls("study", study, f"is being run by another process ({writer})", "wait for it, or stop it")


class Writer(Frozen):
    """The record of a ledger's writer in a bucket."""

    pid: int
    host: str
    machine: str
    """Identifies the boot and the process namespace; within them, ``pid`` shows whether the process is alive."""
    since: str
    beat: int = 0
    at: float
    """Time of the last beat, by the writer's clock."""
    ended: bool = False

    @classmethod
    def this(cls) -> Writer:
        return cls(
            pid=os.getpid(),
            host=socket.gethostname(),
            machine=this_machine(),
            since=datetime.now(UTC).isoformat(timespec="seconds"),
            at=time.time(),
        )

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host} since {self.since}"

    @property
    def is_alive(self) -> bool | None:
        """Whether its process is alive; None if this machine cannot know."""
        return Path(f"/proc/{self.pid}").exists() if self.machine == this_machine() else None

    @property
    def seems_alive(self) -> bool:
        """For display: falls back on the clocks of two machines where the process cannot be seen from here."""
        return not self.ended and (time.time() - self.at < LOST_S if self.is_alive is None else self.is_alive)


def this_machine() -> str:
    """Distinguishes machines, their boots, and containers, which have process ids of their own."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{socket.gethostname()} {boot} {Path('/proc/self/ns/pid').readlink()}"


def lock(file: FileIO, tries: int = LOCK_TRIES) -> None:
    """Lock a ledger's file for this process. Tries several times: ``is_locked`` holds the lock for an instant.

    The lock is on the ledger itself, so any process that can read it can check whether another one writes it.

    Raises:
        OSError: another process holds it.
    """
    for tries_left in reversed(range(tries)):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError:
            if not tries_left:
                raise
            time.sleep(LOCK_PAUSE_S)


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock of a ledger's file; False if the file does not exist."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
