"""``/metrics`` for Prometheus: counters of this process, and gauges of the studies in its home."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import generate_latest
from starlette.types import Scope

from service.http.models import StudySummary

LATENCY_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """Counters of this process, and gauges that are computed from the home at every scrape."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # they would add a second series for each metric
        self._registry = CollectorRegistry()
        labels, registry = ("method", "route"), self._registry
        self._requests = Counter("oec_http_requests", "Responses, by status.", (*labels, "status"), registry=registry)
        start = "Seconds until a response starts."
        self._latency = Histogram("oec_http_seconds", start, labels, buckets=LATENCY_S, registry=registry)
        self.watchers = Gauge("oec_watchers", "Open event streams.", registry=registry)
        self._audit = Gauge("oec_audit_lines", "Lines that this process added to the audit log.", registry=registry)
        self._studies = Gauge("oec_studies", "Studies in the home, by state.", ("state",), registry=registry)
        self._cells = Gauge("oec_cells", "Cells of all studies in the home, by state.", ("state",), registry=registry)

    def record_response(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")  # the template, because each name would add a series
        self._requests.labels(scope["method"], route, str(status)).inc()
        self._latency.labels(scope["method"], route).observe(seconds)

    def render(self, studies: Iterable[StudySummary], audit_lines: int) -> bytes:
        """All metrics in Prometheus' text format."""
        self._studies.clear()
        self._cells.clear()
        for study in studies:
            self._studies.labels(study.state).inc()
            for state, count in study.cells.items():
                self._cells.labels(state).inc(count)
        self._audit.set(audit_lines)
        return generate_latest(self._registry)
