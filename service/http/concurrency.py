"""A limit on requests that wait for one another.

Handlers that block share 40 threads. At most eight of them may wait for the same work, so the other threads stay free
for the rest of the service.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

from service.http.errors import ApiError

MAX_REQUESTS = 8
RETRY_S = 5


class ConcurrencyLimit:
    """Admits ``MAX_REQUESTS`` requests at a time, and answers 429 to the rest."""

    def __init__(self, kind: str) -> None:
        self._kind, self._slots = kind, threading.BoundedSemaphore(MAX_REQUESTS)

    @contextmanager
    def slot(self) -> Iterator[None]:
        """
        Raises:
            ApiError: 429, all slots are taken.
        """
        if not self._slots.acquire(blocking=False):
            problem = f"already have {MAX_REQUESTS} requests waiting"
            raise ApiError(HTTPStatus.TOO_MANY_REQUESTS, self._kind, None, problem, "try again later", RETRY_S)
        try:
            yield
        finally:
            self._slots.release()
