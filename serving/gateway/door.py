"""What happens to every request: a name, a key, a line in the log, a count; and errors become answers."""

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
from plurum.serving.gateway.keys import Keys
from plurum.serving.gateway.metrics import GatewayMetrics
from plurum.serving.gateway.refusals import RefusalError

__all__ = ["Behind", "Door", "Refusal", "Visit"]

_log = logging.getLogger(__name__)

_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
# Load balancers have no key, and learn nothing.
_OPEN = frozenset({"/v2/health/live", "/v2/health/ready"})


@dataclass
class Visit:
    """What is known of a request so far.

    Attributes:
        id: Its own, or one of ours.
        key: Name of who asks; empty where no key is needed.
        status: Of its answer; 0 while there is none.
        reason: Why it got no answer.
    """

    id: str
    key: str = ""
    status: int = 0
    reason: str = ""


class Refusal(NamedTuple):
    """Status, a line for who asked, and headers."""

    status: int
    text: str
    headers: dict[str, str]


class Behind(Protocol):
    """What is asked whether there is a place for a request, before anything is done for it."""

    @property
    def full(self) -> bool:
        """Whether `look` could refuse any."""

    def look(self, scope: Scope, headers: Headers) -> None:
        """Raise RefusalError if the application would refuse it by its head alone, with its endpoint in the scope."""


class Door:
    """Stands before an ASGI application.

    Args:
        app: Behind it. It finds the `Visit` in the scope.
        keys: Of those who may ask; None for everybody.
        metrics: Counts here.
        behind: Where requests that there is no place for are told so at once; None if the application tells them.
        access_log: Whether each request is a line of JSON on standard output.
    """

    def __init__(
        self, app: ASGIApp, keys: Keys | None, metrics: GatewayMetrics, behind: Behind | None, *, access_log: bool
    ) -> None:
        self._app = app
        self._keys = keys
        self._metrics = metrics
        self._behind = behind
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request through, or not."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        headers = Headers(scope=scope)
        visit = scope["visit"] = Visit(_request_id(headers))
        # Starlette raises what it finds wrong only inside of an application.
        scope["app"] = self

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                visit.status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", visit.id.encode())]
            await send(message)

        try:
            self._admit(scope, headers, visit)
            await self._app(scope, receive, named)
        except RefusalError as refusal:
            visit.reason = refusal.reason
            _forget_frames(refusal)
            await _answer(refusal.status, refusal.text, refusal.headers)(scope, receive, named)
        except HTTPException as error:
            visit.reason = "unknown"
            await _answer(error.status_code, error.detail, dict(error.headers or {}))(scope, receive, named)
        except ClientDisconnect as error:
            _forget_frames(error)
            visit.status, visit.reason = 499, "gone"
        except Exception as error:
            _log.exception("request %s", visit.id)
            _forget_frames(error)
            visit.reason = "failed"
            if not visit.status:
                await _answer(500, "the gateway has failed; its log says why", {})(scope, receive, named)
        finally:
            self._count(scope, visit, time.perf_counter() - began)

    def shut(self, scope: Scope) -> Refusal | None:
        """Return what a request is told that is refused by its head alone; None of any other.

        Refusals are most of what an overloaded gateway does, on cores that answers need: this takes a fraction of what
        it takes to call the application. The request is counted here; it must not be let through as well.
        """
        if self._behind is None or scope["method"] != "POST" or not self._behind.full:
            return None
        began = time.perf_counter()
        headers = Headers(scope=scope)
        visit = Visit(_request_id(headers))
        try:
            self._admit(scope, headers, visit)
            self._behind.look(scope, headers)
        except RefusalError as refusal:
            visit.status, visit.reason = refusal.status, refusal.reason
            self._count(scope, visit, time.perf_counter() - began)
            # Not the error: it holds the frames that it went through, and they would hold it.
            return Refusal(refusal.status, refusal.text, {**refusal.headers, "x-request-id": visit.id})
        return None

    def _admit(self, scope: Scope, headers: Headers, visit: Visit) -> None:
        if self._keys is None or scope["path"] in _OPEN:
            return
        owner = self._keys.owner(headers)
        if owner is None:
            raise RefusalError(401, "no_key", "a key is needed: Authorization: Bearer KEY, or X-API-Key: KEY")
        visit.key = owner

    def _count(self, scope: Scope, visit: Visit, seconds: float) -> None:
        route = getattr(scope.get("endpoint"), "__name__", "other")
        self._metrics.requests.labels(route, str(visit.status), visit.key).inc()
        self._metrics.latency.labels(route).observe(seconds)
        if visit.reason:
            self._metrics.refused.labels(visit.reason).inc()
        if self._access_log:
            line: dict[str, Any] = {
                "time": round(time.time(), 3),
                "id": visit.id,
                "client": (scope.get("client") or ("",))[0],
                "key": visit.key,
                "method": scope["method"],
                # Without the query: some put secrets there.
                "path": scope["path"][:200],
                "status": visit.status,
                "reason": visit.reason,
                "ms": round(seconds * 1000, 3),
            }
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()


def _forget_frames(error: BaseException) -> None:
    """Drop what the functions that an error went through still hold.

    A body would stay in memory with them: the result of a task and the function that waited for it hold each other
    where it is an error, and the garbage collector seldom looks.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error.__traceback__ = None
        error = error.__cause__ or error.__context__  # type: ignore[assignment]


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    # What bears the name of our own question would not be counted as a prediction.
    if _ID.fullmatch(given) and given != PROBE_ID:
        return given
    # A name, not a secret; asking the kernel for each would cost more.
    return f"{random.getrandbits(64):016x}"


def _answer(status: int, text: str, headers: dict[str, str]) -> JSONResponse:
    return JSONResponse({"error": text}, status, headers)
