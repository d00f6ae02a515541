"""Ray as the service sees it: one cluster, its jobs, and what it has to train on."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Generic, TypeVar

from search_spaces.errors import InvalidInput
from service.cluster import connection as cluster
from service.cluster import local_head as head
from service.cluster.jobs import JobInfo, Jobs
from service.cluster.placement import Node
from service.home.layout import Home
from service.http.errors import Refused

T = TypeVar("T")
logger = logging.getLogger(__name__)
AGAIN_S = 10.0
JOBS_S, NODES_S = 1.0, 15.0
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

    def __init__(self, home: Home, address: str | None, report: Callable[[str], None] = logger.info) -> None:
        """
        Args:
            report: gets a line when the head starts.
        """
        self._home, self._address, self._report = home, address, report
        self._lock = threading.Lock()
        self._client: Jobs | None = None
        self._nodes = Kept(self._ask_nodes, NODES_S)
        self._jobs = Kept(self._ask_jobs, JOBS_S)

    def client(self) -> Jobs:
        """
        Raises:
            Refused: 503, no cluster answers.
        """
        with self._lock:
            if self._client is None:
                try:
                    self._client = Jobs(self._address or head.find_or_start(self._home, self._report).dashboard)
                except InvalidInput as error:
                    raise unreachable(error) from error
            return self._client

    def keep(self, over: threading.Event) -> None:
        """Until it is ``over``: connect, or start the head, so that no request need wait for it; and again whenever the
        cluster went away."""
        while not over.is_set():
            try:
                self.client()
            except Refused as error:
                logger.warning("no cluster: %s", error)
            over.wait(AGAIN_S)

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

    def nodes(self) -> list[Node]:
        """What each node of the cluster has.

        Raises:
            Refused: 503, no cluster answers.
        """
        return self._nodes.get()

    def _ask_jobs(self) -> list[JobInfo]:
        try:
            return [job for job in self.client().all() if job.home == str(self._home.path)]
        except InvalidInput as error:
            with self._lock:
                self._client = None  # a head of ours that died is started again by the next that needs it
            raise unreachable(error) from error

    def _ask_nodes(self) -> list[Node]:
        if self._address is None:
            return cluster.this_machine()
        from ray.util.state import list_nodes

        address = self.client().address
        try:
            nodes = [node for node in list_nodes(address=address, limit=10_000) if node.state == "ALIVE"]
        except Exception as error:  # Ray raises its own and those of its HTTP client
            gone = InvalidInput("--cluster", address, f"does not answer ({error})", "see the logs of its head")
            raise unreachable(gone) from error
        return [node.resources_total or {} for node in nodes]


def unreachable(error: InvalidInput) -> Refused:
    """503: the request is right, and the cluster is away."""
    value = str(error.value) if error.value else None
    return Refused(HTTPStatus.SERVICE_UNAVAILABLE, error.field, value, error.problem, error.remedy, 10)
