"""A thread that looks at something while other work goes on."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class Beside(ABC):
    """Runs ``_look`` in a thread while its context is open, and waits for its end when the context is left."""

    def __init__(self, name: str) -> None:
        self._over = threading.Event()
        """Set when the context is left."""
        self._thread = threading.Thread(target=self._look, name=name, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    @abstractmethod
    def _look(self) -> None:
        """Returns soon after ``_over`` is set."""
