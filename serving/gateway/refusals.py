"""Why a request gets no answer, in HTTP's terms."""

from __future__ import annotations

from typing import Any, Literal

__all__ = ["Reason", "RefusalError", "away", "late", "lost", "refusal_from_rpc", "suspect"]

# Of `plurum_gateway_refused_total`.
Reason = Literal[
    "malformed",  # what was sent is no request, or no image
    "no_key",  # none, or one that is not in the file
    "unknown",  # no such path or model
    "too_large",  # body, head, or number of files
    "slow",  # did not arrive in time
    "gone",  # who asked went away before there was an answer
    "busy",  # no place free, nor one to wait for
    "late",  # the deadline passed
    "away",  # Triton does not answer
    "lost",  # likewise, and it has the request
    "suspect",  # Triton failed twice while it had the request
    "failed",  # Triton answered with a fault of its own
]
_FROM_RPC: dict[str, tuple[int, Reason]] = {
    "INVALID_ARGUMENT": (400, "malformed"),
    "OUT_OF_RANGE": (400, "malformed"),
    "UNIMPLEMENTED": (400, "malformed"),
    "NOT_FOUND": (404, "unknown"),
    "RESOURCE_EXHAUSTED": (503, "busy"),
    "UNAVAILABLE": (503, "busy"),
    "DEADLINE_EXCEEDED": (504, "late"),
}
_LONGEST = 500


class RefusalError(Exception):
    """A request that gets no answer.

    Attributes:
        status: Of HTTP.
        reason: A word for metrics and logs.
        text: A line for who asked.
    """

    def __init__(self, status: int, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.reason = reason
        self.text = text

    @property
    def headers(self) -> dict[str, str]:
        """What HTTP wants said beside the status."""
        if self.status == 401:
            return {"www-authenticate": "Bearer"}
        if self.reason in {"lost", "suspect"}:
            # It may be why Triton fails; clients that know this header don't send it again by themselves.
            return {"x-should-retry": "false"}
        # Sooner there is hardly a place free again.
        return {"retry-after": "1"} if self.status == 503 else {}


def away() -> RefusalError:
    """Return what a request is told while Triton does not answer."""
    return RefusalError(503, "away", "Triton does not answer at the moment")


def late(seconds: float) -> RefusalError:
    """Return what a request is told whose deadline has passed."""
    return RefusalError(504, "late", f"no answer within the request's deadline of {seconds * 1000:.0f} ms")


def lost() -> RefusalError:
    """Return what a request is told that Triton was given, while Triton does not answer.

    Not 503, which clients take as an invitation to ask again: it may be why Triton does not answer.
    """
    return RefusalError(504, "lost", "Triton was given the request and does not answer; do not send it again unchanged")


def suspect() -> RefusalError:
    """Return what a request is told during which Triton failed twice."""
    return RefusalError(422, "suspect", "Triton failed twice while it had the request; it is not tried again")


def refusal_from_rpc(error: Any) -> RefusalError:
    """Return what the error of a call to Triton means for who asked; of a fault inside, its first line."""
    status, reason = _FROM_RPC.get(error.code().name, (500, "failed"))
    lines = (error.details() or "").strip().splitlines() or ["Triton gives no reason"]
    return RefusalError(status, reason, lines[0][:_LONGEST])
