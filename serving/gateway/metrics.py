"""What a gateway counts, on a page of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

if TYPE_CHECKING:
    from plurum.serving.gateway.admission import Admission

__all__ = ["GatewayMetrics"]

_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class GatewayMetrics:
    """One gateway's; every request counts once in `requests`, and once more in `refused` if it got no answer."""

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
            "From a request's head to its answer, by route.",
            ("route",),
            buckets=_BUCKETS_S,
            registry=self.registry,
        )
        self.refused = Counter(
            "plurum_gateway_refused", "Requests and files without an answer.", ("reason",), registry=self.registry
        )
        self.thrown_away = Counter(
            "plurum_gateway_thrown_away", "Triton's answers that came after the deadline.", registry=self.registry
        )
        self.asked_again = Counter(
            "plurum_gateway_asked_again",
            "Requests that waited for Triton, or were sent to it again, as it was away.",
            registry=self.registry,
        )
        self.returns = Counter(
            "plurum_gateway_triton_returns",
            "Times that Triton answered again after it had not.",
            registry=self.registry,
        )
        self.ready = Gauge("plurum_gateway_ready", "1 while Triton answers questions.", registry=self.registry)
        self.connections_refused = Counter(
            "plurum_gateway_connections_refused",
            "Connections closed by us before there was a whole request: too many, too slow, too large or no HTTP.",
            ("reason",),
            registry=self.registry,
        )

    def watch(self, admission: Admission, buffered_bytes: Callable[[], int]) -> None:
        """Show who is being answered and who waits, whenever the page is read."""
        for name, text, value in (
            ("in_flight", "Requests that Triton has.", lambda: admission.taken),
            ("waiting", "Requests that wait for a place.", lambda: admission.waiting),
            ("buffered_bytes", "Bodies that are held.", buffered_bytes),
        ):
            Gauge(f"plurum_gateway_{name}", text, registry=self.registry).set_function(value)
