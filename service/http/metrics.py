"""``/metrics``: what Prometheus reads of one service, and of the studies of its home."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.types import Scope

from service.http.models import StudySummary

LATENCY_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """Counts of this process, beside gauges that are read from the home at every scrape."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        labels, own = ("method", "route"), self._registry
        self._requests = Counter("oec_http_requests", "Answers, by status.", (*labels, "status"), registry=own)
        self._latency = Histogram(
            "oec_http_seconds", "Seconds until an answer begins.", labels, buckets=LATENCY_S, registry=own
        )
        self.watchers = Gauge("oec_watchers", "Event streams that are open.", registry=own)
        self._audit = Gauge("oec_audit_lines", "Lines of the audit that this process has written.", registry=own)
        self._studies = Gauge("oec_studies", "Studies of the home, by state.", ("state",), registry=own)
        self._cells = Gauge("oec_cells", "Cells of the home's studies, by state.", ("state",), registry=own)

    def answered(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")  # the template: a name in it would be a series of its own
        self._requests.labels(scope["method"], route, str(status)).inc()
        self._latency.labels(scope["method"], route).observe(seconds)

    def text(self, studies: Iterable[StudySummary], audit_lines: int) -> bytes:
        """The exposition, with the state and the cells by state of each study."""
        self._studies.clear()
        self._cells.clear()
        for study in studies:
            self._studies.labels(study.state).inc()
            for state, number in study.cells.items():
                self._cells.labels(state).inc(number)
        self._audit.set(audit_lines)
        return generate_latest(self._registry)
