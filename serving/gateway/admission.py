"""Admission control: a limited number of requests run on Triton, a limited number wait, and the rest are refused.

A request that is expected to miss its deadline is refused instead of queued: it would delay the requests behind it.
Bulk requests have lower priority: they run only if no other request waits. If the queue is full, the newest bulk
request is refused to make room.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque

from plurum.serving.gateway.deadlines import RequestDeadline
from plurum.serving.gateway.refusals import RefusalError, late
from plurum.serving.gateway.wait_estimator import WaitEstimator

__all__ = ["Admission"]

# A request may use at most this fraction of its remaining time, as half of the requests take longer than the mean.
_SAFE_FRACTION = 0.8


class Admission:
    """Queue for Triton, in order of arrival within each priority; for use in one event loop.

    Args:
        places: Maximum number of requests in progress on Triton.
        waiting: Maximum number of waiting requests.
        longest_s: Refuse requests whose expected response time exceeds this, seconds; bulk requests are exempt.
    """

    def __init__(self, places: int, waiting: int, longest_s: float = math.inf) -> None:
        self.taken = 0
        self._longest_s = longest_s
        self._estimator = WaitEstimator(places)
        self._places = places
        self._waiting = waiting
        self._queues: dict[bool, deque[asyncio.Future[None]]] = {False: deque(), True: deque()}

    @property
    def waiting(self) -> int:
        """Number of waiting requests."""
        return sum(map(len, self._queues.values()))

    @property
    def full(self) -> bool:
        """True if no place is free."""
        return self.taken >= self._places

    async def enter(self, deadline: RequestDeadline, *, accepted: bool = False) -> bool:
        """Take a place, and return True if the request had to wait for it; `leave` gives the place back.

        Args:
            deadline: Deadline and priority of the request.
            accepted: True if the request had a place before; a started request is not refused.

        Raises:
            RefusalError: all places and the queue are full, no place became free in time, or a bulk request had to make
                room.
        """
        if not self.full:
            self.taken += 1
            self._estimator.took(self.taken)
            return False
        if not accepted:
            self.check(deadline)
            if self.waiting >= self._waiting:
                busy = self._busy()
                self._queues[True].pop().set_exception(busy)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue = self._queues[deadline.bulk and not accepted]
        queue.append(turn)
        try:
            await asyncio.wait({turn}, timeout=deadline.left_s)
            if not turn.done():
                self._give_up(turn, queue)
                raise late(deadline.seconds)
            turn.result()
        except asyncio.CancelledError:
            self._give_up(turn, queue)
            raise
        finally:
            # An error in `turn` would keep this frame and its callers', with their bodies, in memory.
            del turn
        return True

    def check(self, deadline: RequestDeadline) -> None:
        """Refuse a request that `enter` would refuse now, before more work is spent on it.

        Raises:
            RefusalError: all places and the queue are full, or the request would miss its deadline.
        """
        if not self.full:
            return
        self._check_time(deadline)
        if self.waiting >= self._waiting and (deadline.bulk or not self._queues[True]):
            raise self._busy()

    def leave(self) -> None:
        """Give the place to the request that has waited longest, to bulk requests last, or free it."""
        for queue in self._queues.values():
            if queue:
                queue.popleft().set_result(None)
                self._estimator.left(self.taken)
                return
        self.taken -= 1
        self._estimator.left(self.taken)

    def _busy(self) -> RefusalError:
        return RefusalError(503, "busy", f"{self.taken} requests are in progress and {self.waiting} are waiting")

    def _check_time(self, deadline: RequestDeadline) -> None:
        ahead = self.taken + (self.waiting if deadline.bulk else len(self._queues[False]))
        expected_s = self._estimator.expected_s(ahead + 1)
        if expected_s > min(_SAFE_FRACTION * deadline.left_s, math.inf if deadline.bulk else self._longest_s):
            raise RefusalError(
                503,
                "busy",
                f"{self.taken} requests are in progress and {self.waiting} are waiting: a response would take about "
                f"{expected_s:.1f} s",
            )

    def _give_up(self, turn: asyncio.Future[None], queue: deque[asyncio.Future[None]]) -> None:
        if not turn.done():
            queue.remove(turn)
        elif turn.exception() is None:
            self.leave()
