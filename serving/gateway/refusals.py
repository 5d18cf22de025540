"""Reasons for which a request is refused, with their HTTP status codes."""

from __future__ import annotations

from typing import Any, Literal

__all__ = ["Reason", "RefusalError", "late", "malformed", "refusal", "refusal_from_rpc"]

# Values of the label `reason` of `plurum_gateway_refused_total`.
Reason = Literal[
    "malformed",  # the request or the image is invalid
    "no_key",  # the key is missing or not in the file
    "unknown",  # the path or model does not exist
    "too_large",  # the body, the head or the number of files exceeds a limit
    "slow",  # the request did not arrive in time
    "gone",  # the client disconnected before there was a response
    "busy",  # all places and the queue are full
    "late",  # the deadline passed
    "away",  # Triton does not respond, and has not received the request
    "lost",  # Triton does not respond, and has received the request
    "suspect",  # Triton failed twice during the request
    "failed",  # Triton returned an internal error
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
_FIXED: dict[str, tuple[int, Reason, str]] = {
    "away": (503, "away", "Triton does not respond at the moment"),
    "gone": (499, "gone", "the client has disconnected"),
    # Not 503, on which clients retry: the request may be why Triton does not respond.
    "lost": (504, "lost", "Triton received the request and does not respond; do not send it again unchanged"),
    "suspect": (422, "suspect", "Triton failed twice while it processed the request; it is not retried"),
}
_LONGEST = 500


class RefusalError(Exception):
    """A request is refused.

    Attributes:
        status: HTTP status code.
        reason: Reason for metrics and logs.
        text: One-line message for the client.
    """

    def __init__(self, status: int, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.reason = reason
        self.text = text

    @property
    def headers(self) -> dict[str, str]:
        """HTTP headers of the response."""
        # A balancer before several gateways decides by the reason whether another gateway gets the request.
        headers: dict[str, str] = {"x-plurum-refusal": self.reason}
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        elif self.reason in {"lost", "suspect"}:
            # The request may be why Triton fails; clients that know this header don't retry it automatically.
            headers["x-should-retry"] = "false"
        elif self.status == 503:
            # A place hardly becomes free sooner.
            headers["retry-after"] = "1"
        return headers


def malformed(text: str, status: int = 400) -> RefusalError:
    """Return the error of an invalid request."""
    return RefusalError(status, "malformed", text)


def late(seconds: float) -> RefusalError:
    """Return the error of a request whose deadline has passed."""
    return RefusalError(504, "late", f"no response within the request's deadline of {seconds * 1000:.0f} ms")


def refusal(reason: Literal["away", "gone", "lost", "suspect"]) -> RefusalError:
    """Return the error of a request that is refused because of Triton or the client."""
    return RefusalError(*_FIXED[reason])


def refusal_from_rpc(error: Any) -> RefusalError:
    """Return the client's error for a failed call to Triton, with the first line of Triton's message."""
    status, reason = _FROM_RPC.get(error.code().name, (500, "failed"))
    lines = (error.details() or "").strip().splitlines() or ["Triton gave no reason"]
    return RefusalError(status, reason, lines[0][:_LONGEST])
