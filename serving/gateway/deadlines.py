"""Until when a request's answer is worth something."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from plurum.serving.gateway.refusals import RefusalError

__all__ = ["Deadline", "is_bulk", "stated_s"]


@dataclass(frozen=True)
class Deadline:
    """A moment.

    Attributes:
        at: On the monotonic clock.
        seconds: How far away it was when the request came.
        bulk: Whether the request lets those of others go before it.
    """

    at: float
    seconds: float
    bulk: bool = False

    @classmethod
    def after(cls, seconds: float, *, bulk: bool = False) -> Deadline:
        """Return the moment that is so many seconds away."""
        return cls(time.monotonic() + seconds, seconds, bulk)

    @property
    def left_s(self) -> float:
        """Seconds until then, at least 0."""
        return max(0.0, self.at - time.monotonic())

    def sooner(self, seconds: float | None) -> Deadline:
        """Return this one, or the one so long after the same start if that comes first."""
        if seconds is None or seconds >= self.seconds:
            return self
        return Deadline(self.at - self.seconds + seconds, seconds, self.bulk)


def stated_s(text: str | None, usual_s: float, most_s: float) -> float:
    """Return the seconds that the header X-Deadline-Ms states, at most `most_s`; `usual_s` where there is none.

    Raises:
        RefusalError: it is no number of milliseconds above 0.
    """
    if text is None:
        return usual_s
    try:
        milliseconds = float(text)
    except ValueError:
        milliseconds = math.nan
    if not 0 < milliseconds < math.inf:
        raise RefusalError(400, "malformed", f"X-Deadline-Ms is {text[:40]!r}: milliseconds above 0 are needed")
    return min(milliseconds / 1000, most_s)


def is_bulk(text: str | None) -> bool:
    """Whether the header X-Priority says that a request lets others go before it.

    Raises:
        RefusalError: it says neither `bulk` nor `interactive`.
    """
    if text not in {None, "bulk", "interactive"}:
        raise RefusalError(400, "malformed", f"X-Priority is {str(text)[:40]!r}: it is bulk, or interactive")
    return text == "bulk"
