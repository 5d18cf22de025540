"""Metrics of a gateway, served on a separate port."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

if TYPE_CHECKING:
    from plurum.serving.gateway.admission import Admission

__all__ = ["GatewayMetrics"]

_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class GatewayMetrics:
    """Metrics of one gateway. `requests` counts every request; `refused` also counts those without a prediction."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "plurum_gateway_requests",
            "Requests by route, HTTP status and name of the key (empty: none needed).",
            ("route", "status", "key"),
            registry=self.registry,
        )
        self.latency = Histogram(
            "plurum_gateway_request_seconds",
            "Time from a request's head to its response, by route.",
            ("route",),
            buckets=_BUCKETS_S,
            registry=self.registry,
        )
        self.refused = Counter(
            "plurum_gateway_refused", "Refused requests and files.", ("reason",), registry=self.registry
        )
        self.late_responses = Counter(
            "plurum_gateway_thrown_away", "Triton's responses after the deadline.", registry=self.registry
        )
        self.retries = Counter(
            "plurum_gateway_asked_again",
            "Requests that waited for Triton or were sent to it again, because it did not respond.",
            registry=self.registry,
        )
        self.returns = Counter(
            "plurum_gateway_triton_returns",
            "Times that Triton responded again after it had failed.",
            registry=self.registry,
        )
        self.ready = Gauge("plurum_gateway_ready", "1 while Triton responds.", registry=self.registry)
        self.connections_refused = Counter(
            "plurum_gateway_connections_refused",
            "Connections closed before a complete request: too many, too slow, too large or not HTTP.",
            ("reason",),
            registry=self.registry,
        )

    def watch(self, admission: Admission, buffered_bytes: Callable[[], int]) -> None:
        """Add gauges for requests in progress, waiting requests and buffered bytes."""
        for name, text, value in (
            ("in_flight", "Requests in progress on Triton.", lambda: admission.taken),
            ("waiting", "Requests that wait for a place.", lambda: admission.waiting),
            ("buffered_bytes", "Bytes of request bodies in memory.", buffered_bytes),
        ):
            Gauge(f"plurum_gateway_{name}", text, registry=self.registry).set_function(value)
