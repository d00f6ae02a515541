"""Requests that wait for one another hold a thread each; the rest of the service needs some."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

from service.http.errors import Refused

MOST = 8
"""Of one kind, of the 40 threads that a service has."""
AGAIN_S = 5


class Queue:
    """Lets ``MOST`` in, of whom one may work and the others wait; whoever comes then is asked to come again."""

    def __init__(self, what: str) -> None:
        self._what, self._places = what, threading.BoundedSemaphore(MOST)

    @contextmanager
    def place(self) -> Iterator[None]:
        """
        Raises:
            Refused: 429, there is none.
        """
        if not self._places.acquire(blocking=False):
            problem = f"are being waited for by {MOST} requests"
            raise Refused(HTTPStatus.TOO_MANY_REQUESTS, self._what, None, problem, "try again", AGAIN_S)
        try:
            yield
        finally:
            self._places.release()
