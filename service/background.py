"""A thread that watches something while other work continues, and a wait with a deadline."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Self


class BackgroundThread(ABC):
    """Runs ``_run`` in a thread while its context is open, and joins it on exit."""

    def __init__(self, name: str) -> None:
        self._over = threading.Event()
        """Set when the context is left."""
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @abstractmethod
    def _run(self) -> None:
        """Returns soon after ``_over`` is set."""


def wait_until(condition: Callable[[], bool], timeout_s: float, poll_s: float) -> bool:
    """Wait until ``condition`` holds; whether it did within ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(poll_s)
    return True
