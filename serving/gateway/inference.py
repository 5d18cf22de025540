"""Run requests on Triton: with a place, until a deadline, and again if Triton stops responding.

A request that Triton did not receive is sent again. A request that was on Triton when Triton failed may be the cause.
It is sent once more, alone (see `quarantine`); if Triton fails again, the request is refused. A crash therefore costs
other requests time but no errors, and no request can stop Triton more than twice. A request is not sent again if it was
on Triton long enough for a hang to be detected, or if its client has disconnected.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

import grpc.aio

from plurum.conventions import HUNG_S
from plurum.serving.gateway.admission import Admission
from plurum.serving.gateway.deadlines import RequestDeadline
from plurum.serving.gateway.health import Health
from plurum.serving.gateway.metrics import GatewayMetrics
from plurum.serving.gateway.quarantine import Quarantine
from plurum.serving.gateway.refusals import RefusalError, late, refusal, refusal_from_rpc
from plurum.serving.gateway.triton import TritonConnection, WireRequest

__all__ = ["InferenceService"]

_log = logging.getLogger(__name__)

# Status codes that can mean that Triton or a model is away; the others concern the request itself.
_AMBIGUOUS = frozenset({"UNAVAILABLE", "NOT_FOUND", "INTERNAL", "UNKNOWN", "CANCELLED"})
# Number of times that a request may be on Triton when Triton fails.
_MOST_FAILURES = 2

IsDisconnected = Callable[[], Awaitable[bool]]
# own: the error concerns the request. not_received: the model was away. received: Triton or the model failed with it.
Outcome = Literal["own", "not_received", "received"]


@dataclass
class _Attempt:
    """State of a request.

    Attributes:
        request: Request to Triton.
        deadline: Deadline of the request.
        is_disconnected: Function that tells if the client has disconnected.
        in_flight: True while Triton processes the request.
        failures: Number of times that Triton failed while it processed the request.
    """

    request: WireRequest
    deadline: RequestDeadline
    is_disconnected: IsDisconnected
    in_flight: bool = False
    failures: int = 0


class InferenceService:
    """Runs requests on Triton.

    A call to Triton is never cancelled: after the client has been told that its deadline has passed, the call keeps its
    place until it ends.
    """

    def __init__(self, triton: TritonConnection, health: Health, admission: Admission, metrics: GatewayMetrics) -> None:
        self._triton = triton
        self._health = health
        self._admission = admission
        self._metrics = metrics
        self._quarantine = Quarantine()
        self._calls: set[asyncio.Task[Any]] = set()

    async def run(
        self,
        request: WireRequest,
        deadline: RequestDeadline,
        is_disconnected: IsDisconnected,
        *,
        accepted: bool = False,
    ) -> Any:
        """Return Triton's response, a ModelInferResponse.

        Args:
            request: Request to Triton.
            deadline: Deadline of the request.
            is_disconnected: Function that tells if the client has disconnected; called if the request had to wait.
            accepted: True if this continues a request that had a place before.

        Raises:
            RefusalError: there is no response.
        """
        if await self._admission.enter(deadline, accepted=accepted) and await is_disconnected():
            self._admission.leave()
            raise refusal("gone")
        attempt = _Attempt(request, deadline, is_disconnected)
        call = asyncio.create_task(self._respond(attempt))
        self._calls.add(call)
        call.add_done_callback(self._ended)
        try:
            await asyncio.wait({call}, timeout=deadline.left_s)
            if call.done():
                return call.result()
            if not attempt.in_flight and not attempt.failures:
                raise refusal("away")
            if not self._health.responds:
                raise refusal("lost")
            self._metrics.late_responses.inc()
            raise late(deadline.seconds)
        finally:
            # Error, frame and call would reference each other, and keep the body in memory.
            del call

    async def finish(self, timeout_s: float) -> None:
        """Wait for the calls in progress."""
        if self._calls:
            await asyncio.wait(self._calls, timeout=timeout_s)

    def _ended(self, call: asyncio.Task[Any]) -> None:
        self._admission.leave()
        self._calls.discard(call)
        if not call.cancelled():
            # Retrieve the error, so that asyncio does not report late ones.
            call.exception()

    async def _respond(self, attempt: _Attempt) -> Any:
        """Return the response; send the request again after errors that do not concern the request itself."""
        while True:
            alone = attempt.failures > 0
            try:
                # On the usual path, this costs two checks and no iteration of the event loop.
                if not (self._health.responds and self._triton.connected):
                    await self._reach(attempt.deadline)
                began, attempt.in_flight = time.monotonic(), True
                response = await self._triton.infer(attempt.request)
            except grpc.aio.AioRpcError as error:
                outcome = await self._outcome(error, attempt.request.model)
                if outcome == "own":
                    raise self._refusal(error, attempt.request) from error
            else:
                self._health.note_response(attempt.request.model)
                return response
            finally:
                attempt.in_flight = False
                if alone:
                    self._quarantine.leave()
            await self._prepare_retry(attempt, outcome, time.monotonic() - began)

    async def _reach(self, deadline: RequestDeadline) -> None:
        """Wait until Triton responds over an established connection, so that it receives the next request.

        Raises:
            RefusalError: Triton does not respond in time.
        """
        starting = self._health.served is None
        if self._health.responds:
            await self._health.check(anew=True)
        if not await self._health.wait(deadline):
            raise refusal("away")
        if not starting:
            # Delayed by a restart, like retried requests.
            self._metrics.retries.inc()

    async def _prepare_retry(self, attempt: _Attempt, outcome: Outcome, in_flight_s: float) -> None:
        """Wait until the request may be sent again.

        Raises:
            RefusalError: it must not be sent again.
        """
        if outcome == "received":
            attempt.failures += 1
        if attempt.failures >= _MOST_FAILURES:
            _log.warning("%s %s: Triton failed twice during this request", attempt.request.model, attempt.request.id)
            raise refusal("suspect")
        if outcome == "received" and in_flight_s >= HUNG_S:
            raise refusal("lost")
        if not await self._health.wait_after_failure(attempt.deadline):
            raise refusal("lost") if attempt.failures else refusal("away")
        if attempt.failures:
            await self._quarantine.enter(in_flight_s, bulk=attempt.deadline.bulk)
        try:
            if not attempt.deadline.left_s:
                raise late(attempt.deadline.seconds)
            if await attempt.is_disconnected():
                raise refusal("gone")
        except RefusalError:
            if attempt.failures:
                self._quarantine.leave()
            raise
        self._metrics.retries.inc()

    async def _outcome(self, error: Any, model: str) -> Outcome:
        """Return whether an AioRpcError concerns the request to `model`, or means that Triton or the model is away."""
        status = error.code().name
        if status not in _AMBIGUOUS:
            return "own"
        if not self._triton.connected:
            return "received"
        if status in {"UNAVAILABLE", "NOT_FOUND"}:
            # Triton is full, or has no such model: a model is away for a moment while the release changes.
            try:
                served = self._health.served
                ready = await self._triton.is_ready(model)
            except grpc.aio.AioRpcError:
                return "received"
            return "not_received" if not ready and served is not None and model in served.models else "own"
        # The request is invalid, or the process of a model has exited: a probe shows which.
        return "own" if await self._health.check(anew=True) else "received"

    def _refusal(self, error: Any, request: WireRequest) -> RefusalError:
        refused = refusal_from_rpc(error)
        if refused.reason == "failed":
            _log.warning("%s %s: %s", request.model, request.id, error.details())
        return refused
