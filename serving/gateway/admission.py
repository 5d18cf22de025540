"""Places at Triton: so many requests have one, so many more wait for one, the rest are refused at once.

Nor does a request wait that would not be answered in time, as far as can be told: it would be late after all, and make
those behind it late. Bulk requests let others go first: they get a place when nobody else waits, and where no more can
wait, the one that came last makes room.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque

from plurum.serving.gateway.deadlines import Deadline
from plurum.serving.gateway.pace import Pace
from plurum.serving.gateway.refusals import RefusalError, late

__all__ = ["Admission"]

# Of the time that is left a request must be expected to need no more than this share: others take longer than the mean.
_SURE = 0.8


class Admission:
    """First come, first served among equals; of one event loop.

    Args:
        places: How many requests Triton is given at once.
        waiting: How many wait for a place.
        longest_s: No request waits that is expected to be answered later than this; bulk ones may.
    """

    def __init__(self, places: int, waiting: int, longest_s: float = math.inf) -> None:
        self.taken = 0
        self._longest_s = longest_s
        self._pace = Pace(places)
        self._places = places
        self._waiting = waiting
        self._queues: dict[bool, deque[asyncio.Future[None]]] = {False: deque(), True: deque()}

    @property
    def waiting(self) -> int:
        """How many wait."""
        return sum(map(len, self._queues.values()))

    @property
    def full(self) -> bool:
        """Whether no place is free."""
        return self.taken >= self._places

    async def enter(self, deadline: Deadline, *, accepted: bool = False) -> bool:
        """Take a place, and return whether it had to be waited for; `leave` gives it back.

        Args:
            deadline: Until when waiting makes sense, and whether others go first.
            accepted: Whether the request had a place before: what was begun is not refused.

        Raises:
            RefusalError: there is no place, nor one to wait for; none came free in time; or, of a bulk request, it
                had to make room.
        """
        if not self.full:
            self.taken += 1
            self._pace.took(self.taken)
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
            # An error that it holds would hold this frame, and the callers' with their bodies, for long.
            del turn
        return True

    def check(self, deadline: Deadline) -> None:
        """Refuse what `enter` would refuse now: at once, while most of what is to be done for it is still to come.

        Raises:
            RefusalError: there is no place, nor one to wait for.
        """
        if not self.full:
            return
        self._check_time(deadline)
        if self.waiting >= self._waiting and (deadline.bulk or not self._queues[True]):
            raise self._busy()

    def leave(self) -> None:
        """Give a place to who has waited longest, bulk requests last, or back."""
        for queue in self._queues.values():
            if queue:
                queue.popleft().set_result(None)
                self._pace.left(self.taken)
                return
        self.taken -= 1
        self._pace.left(self.taken)

    def _busy(self) -> RefusalError:
        return RefusalError(503, "busy", f"{self.taken} requests are being answered and {self.waiting} wait already")

    def _check_time(self, deadline: Deadline) -> None:
        ahead = self.taken + (self.waiting if deadline.bulk else len(self._queues[False]))
        expected_s = self._pace.expected_s(ahead + 1)
        if expected_s > min(_SURE * deadline.left_s, math.inf if deadline.bulk else self._longest_s):
            raise RefusalError(
                503,
                "busy",
                f"{self.taken} requests are being answered and {self.waiting} wait already: an answer would take about "
                f"{expected_s:.1f} s",
            )

    def _give_up(self, turn: asyncio.Future[None], queue: deque[asyncio.Future[None]]) -> None:
        if not turn.done():
            queue.remove(turn)
        elif turn.exception() is None:
            self.leave()
