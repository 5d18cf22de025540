"""How fast places at Triton come free, told from those that lately did while there were hardly any left."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

__all__ = ["Pace"]

# Answers come in bursts, a batch of Triton's each: fewer than some of those say little.
_LAST, _ENOUGH = 128, 16


class Pace:
    """Told whenever a place is taken or left; of one event loop.

    Where more requests are taken on than can be answered in time, each waits until it is too late, and Triton is busy
    with those alone. So it must be known beforehand how long waiting takes.

    Args:
        places: How many there are.
        clock: Seconds, always rising.
    """

    def __init__(self, places: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._places, self._clock = places, clock
        self._intervals: deque[float] = deque()
        self._sum_s = 0.0
        # When the last place was left, while most are taken: with fewer, Triton is not at its limit.
        self._since: float | None = None

    def took(self, taken: int) -> None:
        """Say that a place was taken, and how many are now."""
        if taken == self._places and self._since is None:
            self._since = self._clock()

    def left(self, taken: int) -> None:
        """Say that a request was answered, and how many places are taken now."""
        if self._since is None:
            return
        now = self._clock()
        self._intervals.append(now - self._since)
        self._sum_s += now - self._since
        if len(self._intervals) > _LAST:
            self._sum_s -= self._intervals.popleft()
        self._since = now if 2 * taken > self._places else None

    def expected_s(self, requests: int) -> float:
        """Return how long it takes to answer so many, the last one included; 0 while that is not known."""
        if len(self._intervals) < _ENOUGH:
            return 0.0
        return requests * self._sum_s / len(self._intervals)
