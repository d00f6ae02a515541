"""The report's page of a study, made in a process of its own: drawing takes seconds of one core."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from service.home.layout import Home
from service.http.feed import Snapshot
from service.http.queueing import Queue

ANEW_S = 10.0
"""Age of a page until which a study that goes on is not drawn again."""


class Pages:
    """Kept in ``<home>/service/pages``; one is drawn at a time."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._queue, self._lock = Queue("reports"), threading.Lock()
        self._drawn: dict[str, tuple[int, int, float]] = {}
        self._process: ProcessPoolExecutor | None = None

    def page(self, name: str, snapshot: Snapshot) -> bytes:
        """The page of a study as its ledger is now, or was ``ANEW_S`` ago.

        Raises:
            InvalidInput: the study's files are damaged.
            Refused: 429, too many wait for one.
        """
        with self._queue.place(), self._lock:
            path = self._home.service / "pages" / name / "report.html"
            generation, seq, at = self._drawn.get(name, (-1, -1, 0.0))
            same = (generation, seq) == (snapshot.generation, snapshot.seq)
            if not path.is_file() or not (same or (generation >= 0 and time.monotonic() - at < ANEW_S)):
                self._process = self._process or ProcessPoolExecutor(1, mp_context=get_context("spawn"))
                self._process.submit(draw, name, self._home, path.parent).result()
                self._drawn[name] = snapshot.generation, snapshot.seq, time.monotonic()
            return path.read_bytes()

    def close(self) -> None:
        if self._process:
            self._process.shutdown(wait=False, cancel_futures=True)


def draw(name: str, home: Home, folder: Path) -> None:
    """Write the page of a study into ``folder``."""
    from service.report.report import write_live_page  # seconds

    write_live_page(name, home, None, folder)
