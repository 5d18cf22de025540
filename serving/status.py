"""A server's health as others may see it: a readiness that tells the truth, and what was healed, over HTTP.

Triton's own readiness says 200 while a Python model's process is dead. A load balancer asks here:

    GET /v2/health/live    200 as long as somebody watches the server
    GET /v2/health/ready   200 while its ensemble answers, else 503 and why
    GET /metrics           Prometheus' text format
"""

from __future__ import annotations

import http.server
import threading
import time
from http import HTTPStatus
from types import TracebackType

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from plurum.errors import ServerError
from plurum.serving.small_server import SmallHttpServer

__all__ = ["Status", "StatusServer"]

# Without an answer for so long nobody vouches for the server, not even by saying that it is away.
_STALE_S = 15.0
# A file system that has gone away can hold up whoever reads it for ever.
_UNREADABLE_S = 60.0
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Status:
    """What the one who watches a server knows about it; others read it at any time.

    Attributes:
        registry: Its metrics.
        faults: Counts by `kind`: `died`, `model_died`, `late`, `error`, `away`, `start`.
        reloads: Counts of models loaded anew, by `model`.
        restarts: Counts of servers started anew.
        questions: Histogram of how long an answered question took, seconds.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.faults = Counter("plurum_faults", "Faults noticed.", ["kind"], registry=self.registry)
        # There from the start, so that Prometheus sees the first one as an increase.
        for kind in ("died", "model_died", "late", "error", "away", "start"):
            self.faults.labels(kind)
        self.reloads = Counter("plurum_model_reloads", "Models loaded anew.", ["model"], registry=self.registry)
        self.restarts = Counter("plurum_restarts", "Tritons started anew.", registry=self.registry)
        self._failed_starts = Gauge(
            "plurum_failed_starts", "Starts of Triton that failed since it last answered.", registry=self.registry
        )
        self._copied = Gauge("plurum_repository_bytes", "Size of the copy that is served.", registry=self.registry)
        self._copying = Gauge(
            "plurum_repository_copy_seconds", "How long copying and hashing it took.", registry=self.registry
        )
        changed = Gauge(
            "plurum_repository_changed", "1 while the repository is gone or not what is served.", registry=self.registry
        )
        changed.set_function(lambda: float(self.repository() is not None))
        self._difference: str | None = None
        self._looked_at: float | None = None
        self.questions = Histogram(
            "plurum_probe_seconds",
            "How long the server's own question took.",
            buckets=_BUCKETS,
            registry=self.registry,
        )
        ready = Gauge("plurum_ready", "1 while the ensemble answers.", registry=self.registry)
        ready.set_function(lambda: float(self.reason() is None))
        self._answered = Gauge(
            "plurum_last_answer_timestamp_seconds", "When the ensemble last answered.", registry=self.registry
        )
        self._reason: str | None = "it is starting"
        self._answered_at = time.monotonic()

    def answers(self) -> None:
        """Say that the server has just answered."""
        self._answered.set_to_current_time()
        self._answered_at = time.monotonic()
        self._reason = None

    def is_away(self, reason: str) -> None:
        """Say why it does not answer."""
        self._reason = reason

    def has_failed_to_start(self, times: int) -> None:
        """Say how many starts have failed since the server last answered."""
        self._failed_starts.set(times)

    def has_copied(self, size_bytes: int, took_s: float) -> None:
        """Say how large the copy of the repository is, and how long it took."""
        self._copied.set(size_bytes)
        self._copying.set(took_s)

    def repository_is(self, difference: str | None) -> None:
        """Say how the repository differs from the copy that is served, or that it does not."""
        self._difference = difference
        self._looked_at = time.monotonic()

    def repository(self) -> str | None:
        """Return how the repository differs from the copy that is served, or None where it does not."""
        silent = 0.0 if self._looked_at is None else time.monotonic() - self._looked_at
        if self._difference is None and silent > _UNREADABLE_S:
            return f"it could not be looked at for {silent:.0f} s"
        return self._difference

    def reason(self) -> str | None:
        """Return why no question should be sent to the server, or None while it answers."""
        silent = time.monotonic() - self._answered_at
        if self._reason is None and silent > _STALE_S:
            return f"it was last seen to answer {silent:.0f} s ago"
        return self._reason


class StatusServer:
    """Says over HTTP what a `Status` holds, in a thread of its own; to be used in a `with` block.

    Args:
        status: What is said.
        host: Address to listen on.
        port: 0 takes a free one.

    Raises:
        OSError: the port can't be listened on.
    """

    def __init__(self, status: Status, host: str, port: int) -> None:
        handler = type("Handler", (_Handler,), {"status": status})
        try:
            self._server = SmallHttpServer(host, port, handler)
        except OSError as error:
            reason = f"port {port} on {host} can't be listened on: {error.strerror}"
            raise ServerError(f"{reason}; end what uses it or change --status-port") from error
        self.url = f"http://{host}:{self._server.server_address[1]}"

    def __enter__(self) -> StatusServer:
        threading.Thread(target=self._server.serve_forever, name="status", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    """One question about the status."""

    status: Status
    # Who connects and says nothing is not waited for.
    timeout = 5.0

    def do_GET(self) -> None:
        if self.path == "/metrics":
            self._say(HTTPStatus.OK, generate_latest(self.status.registry), CONTENT_TYPE_LATEST)
        elif self.path == "/v2/health/live":
            self._say(HTTPStatus.OK, b"")
        elif self.path == "/v2/health/ready":
            reason = self.status.reason()
            code = HTTPStatus.OK if reason is None else HTTPStatus.SERVICE_UNAVAILABLE
            self._say(code, b"" if reason is None else f"{reason}\n".encode())
        else:
            self._say(HTTPStatus.NOT_FOUND, b"ask for /v2/health/live, /v2/health/ready or /metrics\n")

    def log_message(self, *_: object) -> None:
        """Say nothing: a load balancer asks every second."""

    def _say(self, code: HTTPStatus, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
