"""Requests that were inside Triton when it failed: each may be why, so they are asked again one after the other."""

from __future__ import annotations

import asyncio
import heapq
import itertools

__all__ = ["Quarantine"]


class Quarantine:
    """One place; of one event loop.

    What had been in flight for long when Triton failed comes last, and bulk requests after all others: a request that
    hangs has been there longest, and those that suffered with it are answered before it is tried again.
    """

    def __init__(self) -> None:
        self._taken = False
        self._order = itertools.count()
        self._waiting: list[tuple[bool, float, int, asyncio.Future[None]]] = []

    async def enter(self, in_flight_s: float, *, bulk: bool) -> None:
        """Wait for the place; `leave` gives it back.

        Args:
            in_flight_s: How long the request had been inside Triton.
            bulk: Whether the request lets others go first.
        """
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        heapq.heappush(self._waiting, (bulk, in_flight_s, next(self._order), turn))
        # Not at once: those that failed together come together, and are put in order first.
        loop.call_soon(self._next)
        await turn

    def leave(self) -> None:
        """Let the next one in."""
        self._taken = False
        self._next()

    def _next(self) -> None:
        if not self._taken and self._waiting:
            self._taken = True
            heapq.heappop(self._waiting)[-1].set_result(None)
