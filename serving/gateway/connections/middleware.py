"""ASGI middleware for every request: id, key check, access log, metrics, and error responses."""

from __future__ import annotations

import json
import logging
import random
import re
import sys
import time
import traceback
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from plurum.conventions import PROBE_ID
from plurum.serving.gateway.connections.keys import Keys
from plurum.serving.gateway.metrics import GatewayMetrics
from plurum.serving.gateway.refusals import RefusalError

__all__ = ["EarlyRefusal", "GatewayMiddleware", "HeadCheck", "RequestRecord"]

_log = logging.getLogger(__name__)

_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
# Load balancers send no key, and these responses reveal nothing.
_OPEN = frozenset({"/v2/health/live", "/v2/health/ready"})


@dataclass
class RequestRecord:
    """Record of a request for the access log and the metrics.

    Attributes:
        id: Id from the client, or a generated one.
        key: Name of the client's key; empty if no key is needed.
        status: HTTP status of the response; 0 while there is none.
        reason: Reason for which the request was refused; empty if it was not.
    """

    id: str
    key: str = ""
    status: int = 0
    reason: str = ""


class EarlyRefusal(NamedTuple):
    """HTTP status, message for the client, and headers of a refused request."""

    status: int
    text: str
    headers: dict[str, str]


class HeadCheck(Protocol):
    """Check of a request's head, before any work is spent on the request."""

    @property
    def full(self) -> bool:
        """True if `check_head` could refuse a request."""

    def check_head(self, scope: Scope, headers: Headers) -> None:
        """Set the endpoint in the scope, and raise RefusalError if the application would refuse the head."""


class GatewayMiddleware:
    """Middleware in front of the gateway's ASGI application.

    Args:
        app: The wrapped application. It finds the `RequestRecord` in the scope under "record".
        keys: Keys of permitted clients; None permits all clients.
        metrics: Metrics to update.
        head_check: Check that refuses requests early; None if only the application refuses them.
        access_log: If True, write one line of JSON per request to standard output.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Keys | None,
        metrics: GatewayMetrics,
        head_check: HeadCheck | None,
        *,
        access_log: bool,
    ) -> None:
        self._app = app
        self._keys = keys
        self._metrics = metrics
        self._head_check = head_check
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        headers = Headers(scope=scope)
        record = scope["record"] = RequestRecord(_request_id(headers))
        # Starlette raises HTTPException instead of responding only if the scope has an application.
        scope["app"] = self

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", record.id.encode())]
            await send(message)

        try:
            self._admit(scope, headers, record)
            await self._app(scope, receive, send_with_id)
        except RefusalError as refusal:
            record.reason = refusal.reason
            _forget_frames(refusal)
            await _error(refusal.status, refusal.text, refusal.headers)(scope, receive, send_with_id)
        except HTTPException as error:
            record.reason = "unknown"
            await _error(error.status_code, error.detail, dict(error.headers or {}))(scope, receive, send_with_id)
        except ClientDisconnect as error:
            _forget_frames(error)
            record.status, record.reason = 499, "gone"
        except Exception as error:
            _log.exception("request %s", record.id)
            _forget_frames(error)
            record.reason = "failed"
            if not record.status:
                await _error(500, "the gateway failed; see its log", {})(scope, receive, send_with_id)
        finally:
            self._count(scope, record, time.perf_counter() - start)

    def refuse_early(self, scope: Scope) -> EarlyRefusal | None:
        """Return the refusal of a request whose head alone gets it refused; None for any other request.

        An overloaded gateway mostly refuses requests, on cores that predictions need. This costs a fraction of a call
        to the application. A refused request is counted here, so it must not be passed to the application too.
        """
        if self._head_check is None or scope["method"] != "POST" or not self._head_check.full:
            return None
        start = time.perf_counter()
        headers = Headers(scope=scope)
        record = RequestRecord(_request_id(headers))
        try:
            self._admit(scope, headers, record)
            self._head_check.check_head(scope, headers)
        except RefusalError as refusal:
            record.status, record.reason = refusal.status, refusal.reason
            self._count(scope, record, time.perf_counter() - start)
            # Don't return the error itself: it holds its frames, and they would hold it.
            return EarlyRefusal(refusal.status, refusal.text, {**refusal.headers, "x-request-id": record.id})
        return None

    def _admit(self, scope: Scope, headers: Headers, record: RequestRecord) -> None:
        if self._keys is None or scope["path"] in _OPEN:
            return
        owner = self._keys.owner(headers)
        if owner is None:
            raise RefusalError(
                401,
                "no_key",
                "key: expected a known one, got none or another. Send Authorization: Bearer KEY, or X-API-Key: KEY.",
            )
        record.key = owner

    def _count(self, scope: Scope, record: RequestRecord, seconds: float) -> None:
        route = getattr(scope.get("endpoint"), "__name__", "other")
        self._metrics.requests.labels(route, str(record.status), record.key).inc()
        self._metrics.latency.labels(route).observe(seconds)
        if record.reason:
            self._metrics.refused.labels(record.reason).inc()
        if self._access_log:
            line: dict[str, Any] = {
                "time": round(time.time(), 3),
                "id": record.id,
                "client": (scope.get("client") or ("",))[0],
                "key": record.key,
                "method": scope["method"],
                # Without the query, which may hold secrets.
                "path": scope["path"][:200],
                "status": record.status,
                "reason": record.reason,
                "ms": round(seconds * 1000, 3),
            }
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()


def _forget_frames(error: BaseException) -> None:
    """Clear the stack frames that an error holds.

    They would keep a request's body in memory: an error in a task and the function that awaited it reference each
    other, and the garbage collector seldom runs.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error.__traceback__ = None
        error = error.__cause__ or error.__context__  # type: ignore[assignment]


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    # A client must not use the probe's id: the voter does not count such requests.
    if _ID.fullmatch(given) and given != PROBE_ID:
        return given
    # An id is not a secret; random bytes from the kernel would cost more.
    return f"{random.getrandbits(64):016x}"


def _error(status: int, text: str, headers: dict[str, str]) -> JSONResponse:
    return JSONResponse({"error": text}, status, headers)
