"""The report page of a study. A separate process renders it, because that keeps a core busy for seconds."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from service.home.layout import Home
from service.http.errors import ConcurrencyLimit
from service.http.feed import Snapshot

MAX_AGE_S = 10.0
"""How old the page of a running study may be before it is rendered again."""


class ReportPages:
    """The pages in ``<home>/service/pages``; one is rendered at a time."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._limit, self._lock = ConcurrencyLimit("reports"), threading.Lock()
        self._rendered: dict[str, tuple[tuple[int, int], float]] = {}
        """For each study, the version of its ledger when its page was last rendered, and the time."""
        self._process: ProcessPoolExecutor | None = None

    def page(self, name: str, snapshot: Snapshot) -> bytes:
        """The page of a study for this snapshot, or one that is at most ``MAX_AGE_S`` old.

        Raises:
            InvalidInput: a file of the study is damaged.
            ApiError: 429, too many requests wait for a page.
        """
        with self._limit.slot(), self._lock:
            path = self._home.service / "pages" / name / "report.html"
            version, rendered_at = self._rendered.get(name, (None, 0.0))
            is_recent = version is not None and time.monotonic() - rendered_at < MAX_AGE_S
            if not path.is_file() or not (version == snapshot.version or is_recent):
                self._process = self._process or ProcessPoolExecutor(1, mp_context=get_context("spawn"))
                self._process.submit(render, name, self._home, path.parent).result()
                self._rendered[name] = snapshot.version, time.monotonic()
            return path.read_bytes()

    def close(self) -> None:
        if self._process:
            self._process.shutdown(wait=False, cancel_futures=True)


def render(name: str, home: Home, folder: Path) -> None:
    """Write the page of a study into ``folder``."""
    from service.report.report import write_live_page  # this import takes seconds

    write_live_page(name, home, None, folder)
