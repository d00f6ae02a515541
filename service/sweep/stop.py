"""Stopping a study early, all of it in this file.

A study is stopped by Ctrl-C, by SIGTERM (``ray job stop``, a batch system), by ``oec stop``, or because its cluster is
gone. The first three raise one KeyboardInterrupt in the driver's main thread, from ``Interrupts``; every result is in
the ledger by then, and the same command resumes the study. For a lost cluster nothing can be shut down: ``abandon``.

``oec stop`` leaves a request in the study's folder, so it works on any machine that can write to the home::

    studies/<name>/stop/study         stop the study
    studies/<name>/stop/<cell id>     stop this cell, as pruned; the content is the reason

The driver polls for the first, and the trial of a cell for the second. The sweep's pruner uses the second as well. A
driver removes old requests when it starts, so that they do not affect a later run.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

from rich.console import Console

from search_spaces.errors import InvalidInput
from search_spaces.record import TERMINAL
from service.background import BackgroundThread, wait_until
from service.exit_codes import INTERRUPTED
from service.home import copies
from service.home.layout import Home
from service.home.signals import SignalStore, signals
from service.home.studies import is_running, read_ledger, require_study

STUDY = "study"
POLL_S = 0.5
"""How often ``stop`` checks whether its request was carried out."""
STOP_TIMEOUT_S = 60.0
"""How long ``stop`` waits for that."""

logger = logging.getLogger(__name__)


class Interrupts:
    """While its context is open, SIGTERM raises KeyboardInterrupt, as SIGINT does."""

    def __init__(self) -> None:
        self._requested = threading.Event()

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGTERM, self._interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._before)

    @property
    def requested(self) -> bool:
        """Whether a signal was received."""
        return self._requested.is_set()

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Defer signals while Ray starts; a signal received meanwhile raises KeyboardInterrupt when the block ends.

        A SIGINT would leave Ray half started, and Ray installs its own SIGTERM handlers. Processes that start in the
        block must not inherit the blocked signal. A thread that started earlier may still receive the signal.
        """
        held = {signal.SIGTERM}
        os.register_at_fork(after_in_child=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, held))
        signal.pthread_sigmask(signal.SIG_BLOCK, held)
        on_sigint = signal.getsignal(signal.SIGINT)
        if on_sigint is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._defer)
        try:
            yield
        except SystemExit:  # raised by Ray's own handler
            raise KeyboardInterrupt from None
        finally:
            signal.signal(signal.SIGINT, on_sigint)
            signal.signal(signal.SIGTERM, self._interrupt)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, held)
        if self.requested:  # also if a library swallowed the KeyboardInterrupt during its import
            raise KeyboardInterrupt

    def _defer(self, signum: int, frame: FrameType | None) -> None:
        if not self.requested:  # once, so that nobody presses Ctrl-C again
            print("interrupted; it ends when Ray has started", file=sys.stderr, flush=True)
        self._requested.set()

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        self._requested.set()
        raise KeyboardInterrupt


class StopWatch(BackgroundThread):
    """Interrupts this process when ``oec stop`` asks to stop the study."""

    def __init__(self, store: SignalStore) -> None:
        super().__init__("stop-requests")
        self._store = store

    def __enter__(self) -> Self:
        self._store.clear()
        return super().__enter__()

    def _run(self) -> None:
        while not self._over.wait(self._store.max_age_s):
            try:
                requested = self._store.read(STUDY) is not None
            except OSError as error:  # writing the ledger fails as well
                logger.warning("cannot read requests to stop: %s", error)
                continue
            if requested:
                os.kill(os.getpid(), signal.SIGTERM)  # a process in the background of a script ignores SIGINT
                return


def abandon(console: Console) -> None:
    """End this process at once because the cluster is gone: there is nothing left to shut down.

    The results are in the ledger, and what MLflow lacks is in files of the home.
    """
    console.print("the Ray cluster no longer answers; run the same command to resume")
    sys.stdout.flush()
    os._exit(INTERRUPTED)


def stop_requests(home: Home, study: str) -> SignalStore:
    """The requests of ``oec stop`` for a study."""
    return signals(home, f"studies/{study}/stop")


def stop(home: Home, study: str, cell: str | None = None) -> bool:
    """Ask the driver of ``study`` to stop it, or to stop its running cell ``cell``; returns whether that happened.

    Raises:
        InvalidInput: the study is not in the home or not running, or the cell is not running.
    """
    require_study(home, study)
    if not is_running(home, study):
        raise InvalidInput("STUDY", study, "is not running", f"`oec status {study}` shows its cells by state")
    ledger = read_ledger(home, study)
    if cell is not None:
        if cell not in ledger.entries:
            raise InvalidInput("--cell", cell, f"is not a cell of {study}", f"`oec status {study} --cells` lists them")
        if (state := ledger.entries[cell].state) != "running":
            raise InvalidInput("--cell", cell, f"is {state}", "give a running cell")
    stop_requests(home, study).write(cell or STUDY, "oec stop")

    def is_done() -> bool:
        copies.pull(home, study)
        if cell is None or not is_running(home, study):
            return not is_running(home, study)
        ledger.refresh()
        return ledger.entries[cell].state in TERMINAL

    return wait_until(is_done, STOP_TIMEOUT_S, POLL_S)
