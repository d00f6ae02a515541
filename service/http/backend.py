"""The Ray cluster behind the service: its jobs, and the nodes on which they train."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Generic, TypeVar

from search_spaces.errors import InvalidInput
from service.cluster.connection import local_nodes
from service.cluster.jobs import JobInfo, Jobs
from service.cluster.local_head import find_or_start
from service.cluster.placement import Node
from service.home.layout import Home
from service.http.errors import ApiError

T = TypeVar("T")
logger = logging.getLogger(__name__)
CHECK_S = 10.0
"""How often the connection is checked."""
RETRY_S = 10
JOBS_MAX_AGE_S, NODES_MAX_AGE_S = 1.0, 15.0
"""How old a cached answer of the cluster may be. Requests that change something refresh it first."""


class CachedValue(Generic[T]):
    """A value that is loaded again when it is older than ``max_age_s``; one thread loads it while the others wait."""

    def __init__(self, load: Callable[[], T], max_age_s: float) -> None:
        self._load, self._max_age_s = load, max_age_s
        self._lock = threading.Lock()
        self._loaded: tuple[float, T] | None = None

    def get(self, *, refresh: bool = False) -> T:
        with self._lock:
            if refresh or self._loaded is None or time.monotonic() - self._loaded[0] > self._max_age_s:
                self._loaded = time.monotonic(), self._load()
            return self._loaded[1]


class Backend:
    """The cluster at ``address``, or the local head of the home, which is started when it is first needed.

    ``client``, ``jobs`` and ``nodes`` raise ApiError, 503, if the cluster does not answer.
    """

    def __init__(self, home: Home, address: str | None, log: Callable[[str], None]) -> None:
        self._home, self._address, self._log = home, address, log
        self._lock = threading.Lock()
        self._client: Jobs | None = None
        self.nodes = CachedValue(self._load_nodes, NODES_MAX_AGE_S).get
        """The resources of each node of the cluster."""
        self.jobs = CachedValue(self._load_jobs, JOBS_MAX_AGE_S).get
        """The jobs of this home, newest first."""

    def client(self) -> Jobs:
        with self._lock:
            if self._client is None:
                try:
                    self._client = Jobs(self._address or find_or_start(self._home, self._log).dashboard)
                except InvalidInput as error:
                    raise cluster_unavailable(error) from error
            return self._client

    def stay_connected(self, shutdown: threading.Event) -> None:
        """Connect or start the local head, and reconnect after every loss, until ``shutdown`` is set. A request then
        rarely has to wait for the connection."""
        while not shutdown.is_set():
            try:
                self.client()
            except ApiError as error:
                logger.warning("no cluster: %s", error)
            shutdown.wait(CHECK_S)

    def jobs_if_connected(self) -> list[JobInfo] | None:
        """The same as ``jobs``, but None while the cluster does not answer."""
        try:
            return self.jobs() if self._client else None
        except ApiError:
            return None

    def _load_jobs(self) -> list[JobInfo]:
        try:
            return [job for job in self.client().all() if job.home == str(self._home.path)]
        except InvalidInput as error:
            with self._lock:
                self._client = None  # the next call that needs it connects again, and restarts a local head that died
            raise cluster_unavailable(error) from error

    def _load_nodes(self) -> list[Node]:
        if self._address is None:
            return local_nodes()
        from ray.util.state import list_nodes

        address = self.client().address
        try:
            found = list_nodes(address=address, limit=10_000)
        except Exception as error:  # Ray raises errors of its own and of its HTTP client
            problem, remedy = f"does not answer ({error})", "check the logs of its head"
            raise cluster_unavailable(InvalidInput("--cluster", address, problem, remedy)) from error
        return [node.resources_total or {} for node in found if node.state == "ALIVE"]


def cluster_unavailable(error: InvalidInput) -> ApiError:
    """503: the request is valid, but the cluster does not answer."""
    return ApiError(HTTPStatus.SERVICE_UNAVAILABLE, error.field, error.value, error.problem, error.remedy, RETRY_S)
