"""Ray as the service sees it: one cluster, its jobs, and what it has to train on."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Generic, TypeVar

from search_spaces.errors import InvalidInput
from service import cluster, head
from service.home import Home
from service.http.errors import Refused
from service.jobs import JobInfo, Jobs

T = TypeVar("T")
logger = logging.getLogger(__name__)
JOBS_S, RESOURCES_S = 1.0, 15.0
"""How old an answer of the cluster may be; what changes something asks anew."""


class Kept(Generic[T]):
    """A value that is asked for again when it is older than ``seconds``; one thread asks, the others wait for it."""

    def __init__(self, ask: Callable[[], T], seconds: float) -> None:
        self._ask, self._seconds = ask, seconds
        self._lock = threading.Lock()
        self._value: tuple[float, T] | None = None

    def get(self, *, anew: bool = False) -> T:
        with self._lock:
            if anew or self._value is None or time.monotonic() - self._value[0] > self._seconds:
                self._value = time.monotonic(), self._ask()
            return self._value[1]


class Backend:
    """The cluster at ``address``, or the head of the home, which is started when it is first needed."""

    def __init__(self, home: Home, address: str | None) -> None:
        self._home, self._address = home, address
        self._lock = threading.Lock()
        self._client: Jobs | None = None
        self._resources = Kept(self._ask_resources, RESOURCES_S)
        self._jobs = Kept(self._ask_jobs, JOBS_S)

    def client(self) -> Jobs:
        """
        Raises:
            Refused: 503, no cluster answers.
        """
        with self._lock:
            if self._client is None:
                try:
                    self._client = Jobs(self._address or head.find_or_start(self._home).dashboard)
                except InvalidInput as error:
                    raise unreachable(error) from error
            return self._client

    def warm(self) -> None:
        """Connect, or start the head, so that the first request need not wait; why it fails, that request is told."""
        try:
            self.client()
        except Refused as error:
            logger.warning("no cluster yet: %s", error)

    def jobs(self, *, anew: bool = False) -> list[JobInfo]:
        """Those of this home, the newest first.

        Raises:
            Refused: 503, no cluster answers.
        """
        return self._jobs.get(anew=anew)

    def known_jobs(self) -> list[JobInfo] | None:
        """As ``jobs``; None while no cluster answers, for what can do without."""
        try:
            return self.jobs() if self._client else None
        except Refused:
            return None

    def resources(self) -> dict[str, float]:
        """``CPU`` and ``GPU`` of the cluster.

        Raises:
            Refused: 503, no cluster answers.
        """
        return self._resources.get()

    def _ask_jobs(self) -> list[JobInfo]:
        try:
            return [job for job in self.client().all() if job.home == str(self._home.path)]
        except InvalidInput as error:
            with self._lock:
                self._client = None  # a head of ours that died is started again by the next that needs it
            raise unreachable(error) from error

    def _ask_resources(self) -> dict[str, float]:
        if self._address is None:
            return {"CPU": cluster.local_cores(), "GPU": cluster.local_gpus()}
        from ray.util.state import list_nodes

        address = self.client().address
        try:
            nodes = [node for node in list_nodes(address=address, limit=10_000) if node.state == "ALIVE"]
        except Exception as error:  # Ray raises its own and those of its HTTP client
            gone = InvalidInput("--cluster", address, f"does not answer ({error})", "see the logs of its head")
            raise unreachable(gone) from error
        return {kind: sum((node.resources_total or {}).get(kind, 0.0) for node in nodes) for kind in cluster.KINDS}


def unreachable(error: InvalidInput) -> Refused:
    """503: the request is right, and the cluster is away."""
    value = str(error.value) if error.value else None
    return Refused(HTTPStatus.SERVICE_UNAVAILABLE, error.field, value, error.problem, error.remedy, 10)
