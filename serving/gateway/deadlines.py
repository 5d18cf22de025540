"""Deadlines and priorities of requests."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from plurum.serving.gateway.refusals import malformed

__all__ = ["RequestDeadline", "is_bulk", "stated_s"]


@dataclass(frozen=True)
class RequestDeadline:
    """Deadline and priority of a request.

    Attributes:
        at: Time of the deadline on the monotonic clock, seconds.
        seconds: Time between the arrival of the request and the deadline, seconds.
        bulk: True if the request has lower priority than others.
    """

    at: float
    seconds: float
    bulk: bool = False

    @classmethod
    def after(cls, seconds: float, *, bulk: bool = False) -> RequestDeadline:
        """Return the deadline that is `seconds` from now."""
        return cls(time.monotonic() + seconds, seconds, bulk)

    @property
    def left_s(self) -> float:
        """Remaining time, seconds, at least 0."""
        return max(0.0, self.at - time.monotonic())

    def sooner(self, seconds: float | None) -> RequestDeadline:
        """Return this deadline, or the one `seconds` after the request's arrival if that is earlier."""
        if seconds is None or seconds >= self.seconds:
            return self
        return RequestDeadline(self.at - self.seconds + seconds, seconds, self.bulk)


def stated_s(text: str | None, usual_s: float, most_s: float) -> float:
    """Return the seconds that the header X-Deadline-Ms states, at most `most_s`; `usual_s` without a header.

    Raises:
        RefusalError: the header is not a positive number of milliseconds.
    """
    if text is None:
        return usual_s
    try:
        milliseconds = float(text)
    except ValueError:
        milliseconds = math.nan
    if not 0 < milliseconds < math.inf:
        raise malformed(f"X-Deadline-Ms: expected milliseconds above 0, got {text[:40]!r}")
    return min(milliseconds / 1000, most_s)


def is_bulk(text: str | None) -> bool:
    """Return True if the header X-Priority is `bulk`: the request then has lower priority than others.

    Raises:
        RefusalError: the header is neither `bulk` nor `interactive`.
    """
    if text not in {None, "bulk", "interactive"}:
        raise malformed(f"X-Priority: expected bulk or interactive, got {str(text)[:40]!r}")
    return text == "bulk"
