"""Health of a supervised server over HTTP: a readiness check based on real inferences, and metrics of faults.

Triton's own readiness endpoint returns 200 even after a Python model's process has exited. Use these in load balancers:

    GET /v2/health/live    200 as long as the supervisor runs
    GET /v2/health/ready   200 while the ensemble responds, else 503 and the reason
    GET /metrics           Prometheus text format
"""

from __future__ import annotations

import http.server
import threading
import time
from http import HTTPStatus

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from plurum.serving.small_server import SmallHttpServer

__all__ = ["Status", "StatusServer"]

# Not ready if no inference was confirmed for this long, in case the supervisor itself hangs.
_STALE_S = 15.0
# A file system that is unreachable can block the thread that reads it.
_UNREADABLE_S = 60.0
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Status:
    """Status of a server. The supervisor updates it; other threads read it at any time.

    Attributes:
        registry: Registry of the status metrics.
        faults: Counter of faults by `kind`: `died`, `model_died`, `late`, `error`, `away`, `start`.
        reloads: Counter of reloaded models, by `model`.
        restarts: Counter of restarts of Triton.
        failed_starts: Gauge of the consecutive failed starts of Triton.
        probes: Histogram of the duration of successful probes, seconds.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.faults = Counter("plurum_faults", "Detected faults.", ["kind"], registry=self.registry)
        # Create the series now, so that Prometheus sees the first fault as an increase.
        for kind in ("died", "model_died", "late", "error", "away", "start"):
            self.faults.labels(kind)
        self.reloads = Counter("plurum_model_reloads", "Reloaded models.", ["model"], registry=self.registry)
        self.restarts = Counter("plurum_restarts", "Restarts of Triton.", registry=self.registry)
        self.failed_starts = Gauge(
            "plurum_failed_starts", "Consecutive failed starts of Triton.", registry=self.registry
        )
        self._copied = Gauge("plurum_repository_bytes", "Size of the copy that is served.", registry=self.registry)
        self._copying = Gauge(
            "plurum_repository_copy_seconds", "Time to copy and hash the repository.", registry=self.registry
        )
        changed = Gauge(
            "plurum_repository_changed",
            "1 while the repository is missing or differs from the copy that is served.",
            registry=self.registry,
        )
        changed.set_function(lambda: float(self.repository_difference() is not None))
        self._difference: str | None = None
        self._checked_at: float | None = None
        self.probes = Histogram(
            "plurum_probe_seconds",
            "Duration of the supervisor's own inference request.",
            buckets=_BUCKETS,
            registry=self.registry,
        )
        ready = Gauge("plurum_ready", "1 while the ensemble responds.", registry=self.registry)
        ready.set_function(lambda: float(self.unready_reason() is None))
        self._last_response = Gauge(
            "plurum_last_answer_timestamp_seconds", "Time of the ensemble's last response.", registry=self.registry
        )
        self._reason: str | None = "the server is starting"
        self._confirmed_at = time.monotonic()

    def mark_ready(self) -> None:
        """Record that the server has just responded."""
        self._last_response.set_to_current_time()
        self._confirmed_at = time.monotonic()
        self._reason = None

    def mark_unready(self, reason: str) -> None:
        """Record why the server does not respond."""
        self._reason = reason

    def set_copy(self, size_bytes: int, took_s: float) -> None:
        """Record the size of the repository's copy, and the time that copying took."""
        self._copied.set(size_bytes)
        self._copying.set(took_s)

    def set_repository_difference(self, difference: str | None) -> None:
        """Record how the repository differs from the copy that is served; None if it does not."""
        self._difference = difference
        self._checked_at = time.monotonic()

    def repository_difference(self) -> str | None:
        """Return how the repository differs from the copy that is served, or None if it does not."""
        age_s = 0.0 if self._checked_at is None else time.monotonic() - self._checked_at
        if self._difference is None and age_s > _UNREADABLE_S:
            return f"the repository could not be checked for {age_s:.0f} s"
        return self._difference

    def unready_reason(self) -> str | None:
        """Return why the server should get no requests, or None while it responds."""
        age_s = time.monotonic() - self._confirmed_at
        if self._reason is None and age_s > _STALE_S:
            return f"the last confirmed response was {age_s:.0f} s ago"
        return self._reason


class StatusServer:
    """HTTP server of a `Status`, in a separate thread; for use in a `with` block.

    Args:
        status: Status to serve.
        host: Address to listen on.
        port: Port to listen on; 0 picks a free port.

    Raises:
        ServerError: the port can't be listened on.
    """

    def __init__(self, status: Status, host: str, port: int) -> None:
        handler = type("Handler", (_Handler,), {"status": status})
        self._server = SmallHttpServer(host, port, handler, "--status-port")
        self.url = f"http://{host}:{self._server.server_address[1]}"

    def __enter__(self) -> StatusServer:
        threading.Thread(target=self._server.serve_forever, name="status", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    """Handler of one status request."""

    status: Status
    # Time limit for clients that connect but send nothing, seconds.
    timeout = 5.0

    def do_GET(self) -> None:
        if self.path == "/metrics":
            self._respond(HTTPStatus.OK, generate_latest(self.status.registry), CONTENT_TYPE_LATEST)
        elif self.path == "/v2/health/live":
            self._respond(HTTPStatus.OK, b"")
        elif self.path == "/v2/health/ready":
            reason = self.status.unready_reason()
            code = HTTPStatus.OK if reason is None else HTTPStatus.SERVICE_UNAVAILABLE
            self._respond(code, b"" if reason is None else f"{reason}\n".encode())
        else:
            self._respond(
                HTTPStatus.NOT_FOUND, b"unknown path; available: /v2/health/live, /v2/health/ready, /metrics\n"
            )

    def log_message(self, *_: object) -> None:
        """Log nothing: load balancers send a request every second."""

    def _respond(self, code: HTTPStatus, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
