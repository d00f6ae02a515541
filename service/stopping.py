"""``oec stop``: a request in the study's folder, so that it works from any machine that sees the home.

::

    studies/<name>/stop/study         end the study: its state is saved, the same command goes on
    studies/<name>/stop/<cell id>     end this cell now, as pruned; the content says why

The sweep's pruner asks in the same way. The driver looks for the first, the trial of a cell for the second. A driver
removes what it finds when it starts, so that a request never reaches a later run.
"""

from __future__ import annotations

import fcntl
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from search_spaces.errors import InvalidInput
from service.home import Home
from service.ledger import TERMINAL, Ledger
from trainers.files import write_atomically

STUDY = "study"
POLL_S = 0.5
ANSWER_S = 60.0
"""How long ``stop`` waits for its request to be carried out."""


def stop(home: Home, study: str, cell: str | None = None, *, wait_s: float = ANSWER_S) -> bool:
    """Ask the driver of ``study`` to end it, or its running cell ``cell``; whether that was done within ``wait_s``.

    Raises:
        InvalidInput: the study is not in the home or not being run, or the cell is not one that runs.
    """
    home.require(study)
    if not being_run(home, study):
        raise InvalidInput("STUDY", study, "is not being run", f"`oec status {study}` says where it stands")
    if cell is not None:
        entries = Ledger(home.ledger(study), study).entries
        if cell not in entries:
            raise InvalidInput("--cell", cell, f"is no cell of {study}", f"`oec status {study} --cells` lists them")
        if (state := entries[cell].state) != "running":
            raise InvalidInput("--cell", cell, f"is {state}", "name a cell that is running")
    ask(home.stop(study), cell or STUDY, "oec stop")

    def done() -> bool:
        if cell is None or not being_run(home, study):
            return not being_run(home, study)
        return Ledger(home.ledger(study), study).entries[cell].state in TERMINAL

    deadline = time.monotonic() + wait_s
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def being_run(home: Home, study: str) -> bool:
    """Whether a driver holds the study's ledger; not where it has none yet."""
    try:
        file = home.ledger(study).open("rb")
    except FileNotFoundError:
        return False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def ask(folder: Path, what: str, reason: str) -> None:
    """Leave a request in ``folder``, for the study or for the cell of that id."""
    folder.mkdir(exist_ok=True)
    write_atomically(folder / what, reason)


def asked(folder: Path, what: str = STUDY) -> str | None:
    """Why the study, or the cell of that id, is to end; None if it is not. ``folder`` is that of the requests."""
    try:
        return (folder / what).read_text()
    except FileNotFoundError:
        return None


class Watch:
    """Ends this process as SIGTERM does, once the study is asked to end.

    Not by SIGINT, which what a script starts in the background ignores.
    """

    def __init__(self, folder: Path, interrupt: Callable[[], None] = lambda: os.kill(os.getpid(), signal.SIGTERM)):
        self._folder, self._interrupt = folder, interrupt
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="stop-requests", daemon=True)

    def __enter__(self) -> Watch:
        for left in self._folder.glob("*"):
            left.unlink(missing_ok=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(POLL_S):
            if asked(self._folder) is not None:
                self._interrupt()
                return
