"""Retry the requests that were in progress when Triton failed one at a time, because any of them may be the cause."""

from __future__ import annotations

import asyncio
import heapq
import itertools

__all__ = ["Quarantine"]


class Quarantine:
    """A single place for retries; for use in one event loop.

    Requests that had been in progress longest come last, and bulk requests after all others. A request that hangs has
    been in progress longest, so the others are completed before it is retried.
    """

    def __init__(self) -> None:
        self._taken = False
        self._order = itertools.count()
        self._waiting: list[tuple[bool, float, int, asyncio.Future[None]]] = []

    async def enter(self, in_flight_s: float, *, bulk: bool) -> None:
        """Wait for the place; `leave` gives it back.

        Args:
            in_flight_s: Time that the request had been in progress when Triton failed, seconds.
            bulk: True if the request has lower priority than others.
        """
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        heapq.heappush(self._waiting, (bulk, in_flight_s, next(self._order), turn))
        # Deferred, so that requests that failed together are all queued and ordered first.
        loop.call_soon(self._next)
        await turn

    def leave(self) -> None:
        """Give the place to the next request."""
        self._taken = False
        self._next()

    def _next(self) -> None:
        if not self._taken and self._waiting:
            self._taken = True
            heapq.heappop(self._waiting)[-1].set_result(None)
