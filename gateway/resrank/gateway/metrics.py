"""What a gateway counts, as Prometheus reads it at ``/metrics``."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class GatewayMetrics:
    """One gateway's.

    Attributes:
        requests: Answered requests, by route, schema and status.
        seconds: From a request's first byte to its answer's last, by route.
        under_way: Requests that are being answered.
        documents: Documents, ids or texts of answered requests, by route.
        truncated: Documents that were read only in part, by route.
        unusable: Documents that could not be ranked, by route.
        not_reranked: Answers that came without the reranker, by route and reason.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "resrank_gateway_requests", "Answered requests.", ("route", "schema", "status"), registry=self._registry
        )
        self.seconds = Histogram(
            "resrank_gateway_request_seconds",
            "From a request's first byte to its answer's last.",
            ("route",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.under_way = Gauge(
            "resrank_gateway_requests_under_way", "Requests that are being answered.", registry=self._registry
        )
        self.documents = self._counter("documents", "Documents, ids or texts of answered requests.")
        self.truncated = self._counter("truncated_documents", "Documents that were read only in part.")
        self.unusable = self._counter("unusable_documents", "Documents that could not be ranked.")
        self.not_reranked = Counter(
            "resrank_gateway_not_reranked",
            "Answers that came without the reranker.",
            ("route", "reason"),
            registry=self._registry,
        )

    def page(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self._registry)

    def _counter(self, name: str, about: str) -> Counter:
        return Counter(f"resrank_gateway_{name}", about, ("route",), registry=self._registry)
