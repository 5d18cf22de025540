"""Asking Triton on behalf of a request: with a place, until a deadline, and again if Triton goes away.

A request that Triton had not taken is simply asked again. One that was inside when Triton failed may be why it failed:
it is asked once more, alone (see `quarantine`), and if Triton fails again meanwhile, it is refused for good. So a
crash costs other requests time and no errors, and no request can take Triton away more than twice. A request that had
been inside for as long as a hang takes to be noticed is not asked again, nor one that nobody waits for any more.
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
from plurum.serving.gateway.deadlines import Deadline
from plurum.serving.gateway.health import Health
from plurum.serving.gateway.metrics import GatewayMetrics
from plurum.serving.gateway.quarantine import Quarantine
from plurum.serving.gateway.refusals import RefusalError, away, late, lost, refusal_from_rpc, suspect
from plurum.serving.gateway.triton import Triton, WireRequest

__all__ = ["Asking"]

_log = logging.getLogger(__name__)

# Errors that can mean that a server or a model went away; the others are about the request.
_DOUBTFUL = frozenset({"UNAVAILABLE", "NOT_FOUND", "INTERNAL", "UNKNOWN", "CANCELLED"})
# So often a request may be inside Triton when that fails.
_MOST_FAILURES = 2

Gone = Callable[[], Awaitable[bool]]
# own: it is about the request. untaken: the model was away. inside: Triton, or the model, went away with the request.
Fate = Literal["own", "untaken", "inside"]


@dataclass
class _Attempt:
    """A request on its way.

    Attributes:
        request: For Triton.
        deadline: Until when the answer is worth something.
        gone: Says whether who asked is still there.
        inside: Whether Triton has it now.
        failures: How often Triton has failed while it had it.
    """

    request: WireRequest
    deadline: Deadline
    gone: Gone
    inside: bool = False
    failures: int = 0


class Asking:
    """The way from a request to Triton's answer.

    A call to Triton is never cancelled: when who asked is told that it is late, the call keeps its place until it ends.
    """

    def __init__(self, triton: Triton, health: Health, admission: Admission, metrics: GatewayMetrics) -> None:
        self._triton = triton
        self._health = health
        self._admission = admission
        self._metrics = metrics
        self._quarantine = Quarantine()
        self._calls: set[asyncio.Task[Any]] = set()

    async def ask(self, request: WireRequest, deadline: Deadline, gone: Gone, *, accepted: bool = False) -> Any:
        """Return Triton's answer, a ModelInferResponse.

        Args:
            request: For Triton.
            deadline: Until when the answer is worth something.
            gone: Says whether who asked is still there; looked at after a place had to be waited for.
            accepted: Whether this is the continuation of a request that was given a place before.

        Raises:
            RefusalError: there is no answer, and why.
        """
        if await self._admission.enter(deadline, accepted=accepted) and await gone():
            self._admission.leave()
            raise RefusalError(499, "gone", "who asked has gone")
        attempt = _Attempt(request, deadline, gone)
        call = asyncio.create_task(self._answer(attempt))
        self._calls.add(call)
        call.add_done_callback(self._ended)
        try:
            await asyncio.wait({call}, timeout=deadline.left_s)
            if call.done():
                return call.result()
            if not attempt.inside and not attempt.failures:
                raise away()
            if not self._health.answering:
                raise lost()
            self._metrics.thrown_away.inc()
            raise late(deadline.seconds)
        finally:
            # An error would hold this frame, the frame the call, and the call the error: with the body, for long.
            del call

    async def finish(self, timeout_s: float) -> None:
        """Wait for calls whose answer nobody waits for any more."""
        if self._calls:
            await asyncio.wait(self._calls, timeout=timeout_s)

    def _ended(self, call: asyncio.Task[Any]) -> None:
        self._admission.leave()
        self._calls.discard(call)
        if not call.cancelled():
            # Looked at, so that asyncio does not complain of errors that came late.
            call.exception()

    async def _answer(self, attempt: _Attempt) -> Any:
        """Ask until there is an answer, an error of the request's own, or no hope."""
        while True:
            alone = attempt.failures > 0
            try:
                # In the hot path this costs two questions and no turn of the event loop.
                if not (self._health.answering and self._triton.connected):
                    await self._reach(attempt.deadline)
                began, attempt.inside = time.monotonic(), True
                response = await self._triton.infer(attempt.request)
            except grpc.aio.AioRpcError as error:
                fate = await self._fate(error, attempt.request.model)
                if fate == "own":
                    raise self._refusal(error, attempt.request) from error
            else:
                self._health.answered(attempt.request.model)
                return response
            finally:
                attempt.inside = False
                if alone:
                    self._quarantine.leave()
            await self._again(attempt, fate, time.monotonic() - began)

    async def _reach(self, deadline: Deadline) -> None:
        """Wait until Triton answers over a connection that stands: what is sent then is inside Triton.

        Raises:
            RefusalError: it does not answer in time.
        """
        starting = self._health.served is None
        if self._health.answering:
            await self._health.check(anew=True)
        if not await self._health.here(deadline):
            raise away()
        if not starting:
            # Delayed by a restart, as those that are sent again.
            self._metrics.asked_again.inc()

    async def _again(self, attempt: _Attempt, fate: Fate, in_flight_s: float) -> None:
        """Wait until the request may be asked again.

        Raises:
            RefusalError: it may not.
        """
        if fate == "inside":
            attempt.failures += 1
        if attempt.failures >= _MOST_FAILURES:
            _log.warning("%s %s: Triton failed twice while it had this", attempt.request.model, attempt.request.id)
            raise suspect()
        if fate == "inside" and in_flight_s >= HUNG_S:
            raise lost()
        if not await self._health.back(attempt.deadline):
            raise lost() if attempt.failures else away()
        if attempt.failures:
            await self._quarantine.enter(in_flight_s, bulk=attempt.deadline.bulk)
        try:
            if not attempt.deadline.left_s:
                raise late(attempt.deadline.seconds)
            if await attempt.gone():
                raise RefusalError(499, "gone", "who asked has gone")
        except RefusalError:
            if attempt.failures:
                self._quarantine.leave()
            raise
        self._metrics.asked_again.inc()

    async def _fate(self, error: Any, model: str) -> Fate:
        """Say whether an error says something of the request, or that the server or one of its models is away.

        Args:
            error: An AioRpcError.
            model: Of the request.
        """
        status = error.code().name
        if status not in _DOUBTFUL:
            return "own"
        if not self._triton.connected:
            return "inside"
        if status in {"UNAVAILABLE", "NOT_FOUND"}:
            # Busy, or without this model: while a release is changed it is away for a moment.
            try:
                served = self._health.served
                ready = await self._triton.is_ready(model)
            except grpc.aio.AioRpcError:
                return "inside"
            return "untaken" if not ready and served is not None and model in served.models else "own"
        # A fault of the request's own, or of a model whose process has died: the known question tells.
        return "own" if await self._health.check(anew=True) else "inside"

    def _refusal(self, error: Any, request: WireRequest) -> RefusalError:
        refusal = refusal_from_rpc(error)
        if refusal.reason == "failed":
            _log.warning("%s %s: %s", request.model, request.id, error.details())
        return refusal
