"""Places at Triton: so many requests have one, so many more wait for one, the rest are refused at once."""

from __future__ import annotations

import asyncio
from collections import deque

from plurum.serving.gateway.deadlines import Deadline
from plurum.serving.gateway.refusals import RefusalError, late

__all__ = ["Admission"]


class Admission:
    """First come, first served; of one event loop.

    Args:
        places: How many requests Triton is given at once.
        waiting: How many wait for a place.
    """

    def __init__(self, places: int, waiting: int) -> None:
        self.taken = 0
        self._places = places
        self._waiting = waiting
        self._queue: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._queue)

    async def enter(self, deadline: Deadline, *, accepted: bool = False) -> bool:
        """Take a place, and return whether it had to be waited for; `leave` gives it back.

        Args:
            deadline: Until when waiting makes sense.
            accepted: Whether the request had a place before: what was begun is not refused.

        Raises:
            RefusalError: there is no place, nor one to wait for; or none came free in time.
        """
        if self.taken < self._places:
            self.taken += 1
            return False
        if len(self._queue) >= self._waiting and not accepted:
            raise RefusalError(503, "busy", f"{self.taken} requests are being answered and {self.waiting} wait already")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            await asyncio.wait({turn}, timeout=deadline.left_s)
        except asyncio.CancelledError:
            self._give_up(turn)
            raise
        if not turn.done():
            self._give_up(turn)
            raise late(deadline.seconds)
        return True

    def leave(self) -> None:
        """Give a place to who has waited longest, or back."""
        if self._queue:
            self._queue.popleft().set_result(None)
        else:
            self.taken -= 1

    def _give_up(self, turn: asyncio.Future[None]) -> None:
        if turn.done():
            self.leave()
        else:
            self._queue.remove(turn)
