"""Delivering a sweep to MLflow while it runs, and afterwards what is still missing.

One thread of the driver is the only writer. A store that is down delays nothing: the thread retries with back-off, and
``sync`` delivers whatever a study still lacks.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from search_spaces.errors import InvalidInput
from search_spaces.record import Row
from search_spaces.study import Study
from service.home.layout import Home
from service.home.ledger import Entry, Ledger
from service.mlflow.address import redact, sqlite_file
from service.mlflow.store import Store
from trainers.storage.files import write_atomically

logger = logging.getLogger(__name__)

LIVE_INTERVAL_S = 20.0
"""The metrics of a running cell are delivered at most this often."""
BACKOFF_S = (1.0, 2.0, 5.0, 10.0, 30.0)


class MlflowSink:
    """An observer of a sweep that delivers in the background."""

    def __init__(self, uri: str, home: Home, study: Study) -> None:
        self._store = Store(uri, home, study)
        self._queue: queue.Queue[Entry | None] = queue.Queue()
        self._delivered_at: dict[str, float] = {}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._deliver_all, name="mlflow", daemon=True)
        self._thread.start()

    def on_start(self, entry: Entry) -> None:
        self._delivered_at[entry.id] = time.monotonic()

    def on_row(self, entry: Entry, row: Row) -> None:
        if time.monotonic() - self._delivered_at[entry.id] > LIVE_INTERVAL_S:
            self._delivered_at[entry.id] = time.monotonic()
            self._queue.put(replace(entry))

    def on_end(self, entry: Entry) -> None:
        self._delivered_at.pop(entry.id, None)
        self._queue.put(replace(entry))

    @property
    def backlog(self) -> int:
        """How many deliveries are waiting."""
        return self._queue.qsize()

    def close(self, timeout_s: float) -> None:
        """Deliver for at most ``timeout_s`` more; ``sync`` delivers what is left then."""
        self._queue.put(None)
        self._thread.join(timeout_s)
        self._closing.set()
        self._store.save_run_ids()

    def _deliver_all(self) -> None:
        self._retry("connect", self._store.connect)  # while the workers start, not while the first cells train
        while (entry := self._queue.get()) is not None:
            self._retry(f"accept cell {entry.id}", partial(self._store.deliver, entry))

    def _retry(self, what: str, action: Callable[[], object]) -> None:
        for pause_s in (*BACKOFF_S, 0.0):
            try:
                action()
                return
            except Exception as error:  # any error of the store's client: training continues
                logger.warning("MLflow did not %s: %s", what, redact(str(error)))
            if self._closing.wait(pause_s):
                return


def sync(uri: str, home: Home, study: Study, ledger: Ledger, report: Path, *, ask_store: bool = False) -> int:
    """Deliver what the store lacks of a study's ended cells, and its report; returns how many cells it then holds.

    The description of the parent run and the saved view are brought up to date as well. A file beside the ledger
    remembers what was delivered where, so that the store is not queried if nothing is new.

    Args:
        ask_store: query the store anyway, because it may have been emptied, or restored from a backup.

    Raises:
        InvalidInput: the store does not accept it.
    """
    marker = home.study(study.name) / "delivered"
    state = f"{hashlib.sha256(uri.encode()).hexdigest()} {ledger.seq}"
    ended = ledger.ended()
    gone = (file := sqlite_file(uri)) is not None and not file.is_file()
    if not (ask_store or gone) and marker.is_file() and marker.read_text(encoding="utf-8") == state:
        return len(ended)
    from service.mlflow.description import description  # imports pandas, which a driver does not need until its end

    try:
        store = Store(uri, home, study)
        for entry in ended:
            store.deliver(entry)
        store.save_run_ids()
        store.save_view()
        store.describe(description(study, ledger, store.links))
        if report.is_dir():
            store.log_artifacts(report)
    except Exception as error:  # any error of the store's client
        reason = redact(str(error)).splitlines()[0]
        problem = f"does not accept study {study.name} ({type(error).__name__}: {reason})"
        remedy = f"run `oec sync {study.name}` once it works again"
        raise InvalidInput("MLFLOW_TRACKING_URI", redact(uri), problem, remedy) from error
    write_atomically(marker, state)
    return len(ended)
