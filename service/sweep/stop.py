"""``oec stop``: a request in the study's folder, so that it works from any machine that sees the home.

::

    studies/<name>/stop/study         end the study: its state is saved, the same command goes on
    studies/<name>/stop/<cell id>     end this cell now, as pruned; the content says why

The sweep's pruner asks in the same way. The driver looks for the first, the trial of a cell for the second. A driver
removes what it finds when it starts, so that a request never reaches a later run.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import time
from collections.abc import Callable
from typing import Self

from search_spaces.errors import InvalidInput
from service.background import Beside
from service.home.layout import Home
from service.home.ledger import TERMINAL, Ledger
from service.home.signals import Texts

STUDY = "study"
POLL_S = 0.5
"""How often ``stop`` looks whether that was done."""
ANSWER_S = 60.0
"""How long ``stop`` waits for its request to be carried out."""

logger = logging.getLogger(__name__)


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
    home.stops(study).write(cell or STUDY, "oec stop")

    def done() -> bool:
        home.pull(study)
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
    if journal := home.journal(study):
        writer = journal.writer()
        return writer is not None and writer.seems_there
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


class Watch(Beside):
    """Ends this process as SIGTERM does, once the study is asked to end.

    Not by SIGINT, which what a script starts in the background ignores.
    """

    def __init__(self, stops: Texts, interrupt: Callable[[], None] = lambda: os.kill(os.getpid(), signal.SIGTERM)):
        super().__init__("stop-requests")
        self._stops, self._interrupt = stops, interrupt

    def __enter__(self) -> Self:
        self._stops.clear()
        return super().__enter__()

    def _look(self) -> None:
        while not self._over.wait(self._stops.every_s):
            try:
                asked = self._stops.read(STUDY) is not None
            except OSError as error:  # the ledger meets it too
                logger.warning("requests to stop can not be read: %s", error)
                continue
            if asked:
                self._interrupt()
                return
