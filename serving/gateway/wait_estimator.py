"""Estimate how long a request waits for a place, from the rate at which places became free under load."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

__all__ = ["WaitEstimator"]

# Triton completes requests in batches, so an estimate needs several of them.
_LAST, _ENOUGH = 128, 16


class WaitEstimator:
    """Estimator of waiting times; call it whenever a place is taken or freed. For use in one event loop.

    If more requests are accepted than can be completed in time, each of them waits until its deadline has passed, and
    Triton works only on late requests. Waiting times must therefore be known in advance.

    Args:
        places: Number of places.
        clock: Monotonic clock, seconds.
    """

    def __init__(self, places: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._places, self._clock = places, clock
        self._intervals: deque[float] = deque()
        self._sum_s = 0.0
        # Time at which the last place was freed, while most places are taken; with fewer, Triton is not saturated.
        self._since: float | None = None

    def took(self, taken: int) -> None:
        """Note that a place was taken; `taken` places are now in use."""
        if taken == self._places and self._since is None:
            self._since = self._clock()

    def left(self, taken: int) -> None:
        """Note that a request was completed; `taken` places are now in use."""
        if self._since is None:
            return
        now = self._clock()
        self._intervals.append(now - self._since)
        self._sum_s += now - self._since
        if len(self._intervals) > _LAST:
            self._sum_s -= self._intervals.popleft()
        self._since = now if 2 * taken > self._places else None

    def expected_s(self, requests: int) -> float:
        """Return the expected time to complete this number of requests, seconds; 0 while it is unknown."""
        if len(self._intervals) < _ENOUGH:
            return 0.0
        return requests * self._sum_s / len(self._intervals)
