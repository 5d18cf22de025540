"""Rate of a long task, and its remaining time."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ProgressRate"]

# Time over which the rate is averaged, seconds: long enough for pauses, short enough to forget a server restart.
_MEMORY_S = 30.0


@dataclass
class ProgressRate:
    """Progress of a task.

    Attributes:
        total: Number of items.
        started_s: Start time, seconds on any clock.
        done: Number of completed items.
        what: Name of the items, in the plural.
    """

    total: int
    started_s: float
    done: int = 0
    what: str = "images"
    _mark_s: float = 0.0
    _mark: int = 0
    _next_s: float = 0.0
    _next: int = 0

    def __post_init__(self) -> None:
        self._mark_s = self._next_s = self.started_s

    def note(self, done: int, now_s: float) -> None:
        """Record the number of completed items."""
        self.done = done
        if now_s - self._next_s >= _MEMORY_S:
            # The rate covers the last one to two periods.
            self._mark_s, self._mark = self._next_s, self._next
            self._next_s, self._next = now_s, done

    def rate(self, now_s: float) -> float:
        """Return the recent rate, items per second; 0 before the first item."""
        passed_s = now_s - self._mark_s
        return (self.done - self._mark) / passed_s if passed_s > 0 else 0.0

    def summary(self, now_s: float) -> str:
        """Return progress, rate and remaining time as one line."""
        rate = self.rate(now_s)
        left = f", {_duration((self.total - self.done) / rate)} left" if rate > 0 else ""
        return f"{self.done:,} of {self.total:,} {self.what}, {rate:,.{0 if rate >= 10 else 1}f}/s{left}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
