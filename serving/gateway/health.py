"""Health of Triton, based on completed inferences: Triton 2.51 reports ready after a model's process has exited.

Completed requests of clients count as much as the gateway's own probes, which it sends only while clients send none.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Any

import grpc.aio

from plurum.serving.gateway.deadlines import RequestDeadline
from plurum.serving.gateway.metrics import GatewayMetrics
from plurum.serving.gateway.triton import ENSEMBLE, ServedEnsemble, TritonConnection, probe_request
from plurum.settings.serving import GatewaySettings

__all__ = ["Health"]

_log = logging.getLogger(__name__)

# Interval of checks while Triton does not respond.
_CHECK_S = 0.1
# This model shares all its steps with `ensemble`, so a response of that shows that it works too.
_SHOWN_BY_ENSEMBLE = "ensemble_pixels"


class Health:
    """Health of one Triton server.

    Attributes:
        served: Description of the served ensemble; None until Triton has returned it.
    """

    def __init__(self, triton: TritonConnection, settings: GatewaySettings, metrics: GatewayMetrics) -> None:
        self.served: ServedEnsemble | None = None
        self._triton = triton
        self._settings = settings
        self._metrics = metrics
        self._responding = asyncio.Event()
        self._failed_at = time.monotonic()
        # True if Triton responds; None until the first check.
        self._state: bool | None = None
        self._has_responded = False
        self._responded_at: dict[str, float] = {}
        self._probes: dict[str, asyncio.Task[Any]] = {}
        self._check: asyncio.Task[None] | None = None
        self._check_now = asyncio.Event()

    @property
    def responds(self) -> bool:
        """True if the last request, a client's or a probe, was completed in time."""
        return self._responding.is_set()

    def note_response(self, model: str) -> None:
        """Note that a request to `model` was completed."""
        self._responded_at[model] = time.monotonic()

    async def watch(self) -> None:
        """Check Triton at intervals, shorter while it does not respond; run this in a separate task."""
        while True:
            try:
                await self.check()
            except Exception:
                # An unexpected error must not pass for health.
                _log.exception("Triton can't be checked")
                self._set_away("it can't be checked")
            self._check_now.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                pause_s = self._settings.probe_interval_s if self.responds else _CHECK_S
                await asyncio.wait_for(self._check_now.wait(), pause_s)

    async def check(self, *, anew: bool = False) -> bool:
        """Check Triton now, or join a check in progress; return True if Triton responds.

        Args:
            anew: If True, ignore earlier responses.
        """
        if self._check is None or self._check.done():
            if anew:
                self._responded_at.clear()
            self._check = asyncio.create_task(self._run_check())
        # A caller may be cancelled; the check continues.
        await asyncio.shield(self._check)
        return self.responds

    async def wait_after_failure(self, deadline: RequestDeadline) -> bool:
        """Wait until Triton responds again; return False if it does not before `deadline` or within `max_outage_s`."""
        self._set_away("a request was lost")
        self._check_now.set()
        return await self.wait(deadline)

    async def wait(self, deadline: RequestDeadline) -> bool:
        """Return True if Triton responds; wait for it until `deadline`, or until it has been away for too long."""
        patience_s = self._failed_at + self._settings.max_outage_s - time.monotonic()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._responding.wait(), max(0.0, min(patience_s, deadline.left_s)))
        return self.responds

    async def finish(self) -> None:
        """Wait for probes in progress, at most `probe_timeout_s`."""
        if pending := [probe for probe in self._probes.values() if not probe.done()]:
            await asyncio.wait(pending, timeout=self._settings.probe_timeout_s)

    async def _run_check(self) -> None:
        try:
            self.served = await self._triton.describe()
            for model in self.served.models:
                await self._probe(model, self.served)
        except grpc.aio.AioRpcError as error:
            # UNAVAILABLE over an established connection means that Triton runs and is busy.
            busy = (
                error.code() == grpc.StatusCode.UNAVAILABLE
                and self._triton.connected
                and await self._accepts_requests()
            )
            if busy and self._state is None:
                # Requests wait for the first check.
                self._set_responding()
            elif not busy:
                self._set_away(error.details() or error.code().name)
        except (TimeoutError, ValueError) as error:
            self._set_away(str(error))
        else:
            self._set_responding()

    async def _probe(self, model: str, served: ServedEnsemble) -> None:
        """Send a probe to `model`, unless it has completed a request recently."""
        started_at = time.monotonic()
        if (
            max(self._last(model), self._last(ENSEMBLE) if model == _SHOWN_BY_ENSEMBLE else 0)
            > started_at - self._settings.probe_interval_s
        ):
            return
        probe = self._probes.get(model)
        # One probe at a time: it must not be cancelled, so wait again for one that is in progress.
        if probe is None:
            probe = self._probes[model] = asyncio.ensure_future(self._triton.infer(probe_request(model, served)))
        await asyncio.wait({probe}, timeout=self._settings.probe_timeout_s)
        if probe.done():
            del self._probes[model]
            probe.result()
            self.note_response(model)
        elif self._last(model) < started_at:
            raise TimeoutError(f"{model} has not completed a probe within {self._settings.probe_timeout_s:g} s")

    def _last(self, model: str) -> float:
        return self._responded_at.get(model, 0.0)

    async def _accepts_requests(self) -> bool:
        try:
            return await self._triton.is_ready(ENSEMBLE)
        except grpc.aio.AioRpcError:
            return False

    def _set_responding(self) -> None:
        if self._state:
            return
        self._state = True
        _log.log(logging.WARNING if self._has_responded else logging.INFO, "Triton responds")
        if self._has_responded:
            self._metrics.returns.inc()
        self._has_responded = True
        self._metrics.ready.set(1)
        self._responding.set()

    def _set_away(self, reason: str) -> None:
        if self._state is False:
            return
        self._state = False
        _log.warning("Triton does not respond: %s", " ".join(reason.split())[:300])
        self._responded_at.clear()
        self._failed_at = time.monotonic()
        self._metrics.ready.set(0)
        self._responding.clear()
