"""How fast it goes, and how long it still takes."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Pace"]

# A rate is of this long, seconds: a restart of the server is forgotten again, and a pause does not make it jump.
_MEMORY_S = 30.0


@dataclass
class Pace:
    """Counts images that are done.

    Attributes:
        total: How many there are to do.
        begun_s: When it began, of any clock.
        done: How many are done.
        what: They are.
    """

    total: int
    begun_s: float
    done: int = 0
    what: str = "images"
    _mark_s: float = 0.0
    _mark: int = 0
    _next_s: float = 0.0
    _next: int = 0

    def __post_init__(self) -> None:
        self._mark_s = self._next_s = self.begun_s

    def note(self, done: int, now_s: float) -> None:
        """Note how many are done by now."""
        self.done = done
        if now_s - self._next_s >= _MEMORY_S:
            # The rate goes back to between one and two memories.
            self._mark_s, self._mark = self._next_s, self._next
            self._next_s, self._next = now_s, done

    def rate(self, now_s: float) -> float:
        """Return images per second of late; 0 before the first."""
        passed_s = now_s - self._mark_s
        return (self.done - self._mark) / passed_s if passed_s > 0 else 0.0

    def words(self, now_s: float) -> str:
        """Return it all in words."""
        rate = self.rate(now_s)
        left = f", {_duration((self.total - self.done) / rate)} left" if rate > 0 else ""
        return f"{self.done:,} of {self.total:,} {self.what}, {rate:,.{0 if rate >= 10 else 1}f}/s{left}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
