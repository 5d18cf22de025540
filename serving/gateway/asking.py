"""Asking Triton on behalf of a request: with a place, until a deadline, and once more if Triton goes away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import grpc.aio

from plurum.serving.gateway.admission import Admission
from plurum.serving.gateway.deadlines import Deadline
from plurum.serving.gateway.health import Health
from plurum.serving.gateway.metrics import GatewayMetrics
from plurum.serving.gateway.refusals import RefusalError, away, late, refusal_from_rpc
from plurum.serving.gateway.triton import Triton

__all__ = ["Asking"]

_log = logging.getLogger(__name__)

# Errors that can mean that a server or a model went away; the others are about the request.
_DOUBTFUL = frozenset({"UNAVAILABLE", "NOT_FOUND", "INTERNAL", "UNKNOWN", "CANCELLED"})


class Asking:
    """The way from a request to Triton's answer.

    A call to Triton is never cancelled: when who asked is told that it is late, the call keeps its place until it ends.
    """

    def __init__(self, triton: Triton, health: Health, admission: Admission, metrics: GatewayMetrics) -> None:
        self._triton = triton
        self._health = health
        self._admission = admission
        self._metrics = metrics
        self._calls: set[asyncio.Task[Any]] = set()

    async def ask(
        self, request: Any, deadline: Deadline, gone: Callable[[], Awaitable[bool]], *, accepted: bool = False
    ) -> Any:
        """Return Triton's answer, a ModelInferResponse.

        Args:
            request: A ModelInferRequest.
            deadline: Until when the answer is worth something.
            gone: Says whether who asked is still there; looked at after a place had to be waited for.
            accepted: Whether this is the continuation of a request that was given a place before.

        Raises:
            RefusalError: there is no answer, and why.
        """
        if await self._admission.enter(deadline, accepted=accepted) and await gone():
            self._admission.leave()
            raise RefusalError(499, "gone", "who asked has gone")
        call = asyncio.create_task(self._answer(request, deadline))
        self._calls.add(call)
        call.add_done_callback(self._ended)
        await asyncio.wait({call}, timeout=deadline.left_s)
        if not call.done():
            if not self._health.answering:
                raise away()
            self._metrics.thrown_away.inc()
            raise late(deadline.seconds)
        return call.result()

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

    async def _answer(self, request: Any, deadline: Deadline) -> Any:
        try:
            return await self._once(request)
        except grpc.aio.AioRpcError as error:
            if not await self._went_away(error, request.model_name):
                raise self._refusal(error, request) from error
        if not await self._health.back(deadline):
            raise away()
        self._metrics.asked_again.inc()
        try:
            return await self._once(request)
        except grpc.aio.AioRpcError as error:
            raise self._refusal(error, request) from error

    async def _once(self, request: Any) -> Any:
        response = await self._triton.infer(request)
        self._health.answered(request.model_name)
        return response

    async def _went_away(self, error: Any, model: str) -> bool:
        """Whether the error says nothing of the request, as the server or one of its models is away."""
        status = error.code().name
        if status not in _DOUBTFUL:
            return False
        if not self._triton.connected:
            return True
        if status in {"UNAVAILABLE", "NOT_FOUND"}:
            # Busy, or without this model: while a release is changed it is away for a moment.
            try:
                served = self._health.served
                return not await self._triton.is_ready(model) and served is not None and model in served.models
            except grpc.aio.AioRpcError:
                return True
        # A fault of the request's own, or of a model whose process has died: the known question tells.
        return not await self._health.check(anew=True)

    def _refusal(self, error: Any, request: Any) -> RefusalError:
        refusal = refusal_from_rpc(error)
        if refusal.reason == "failed":
            _log.warning("%s %s: %s", request.model_name, request.id, error.details())
        return refusal
