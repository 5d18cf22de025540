"""Calls under way, and conversations made of them, which are the same for threads and for asyncio.

A conversation (`Flow`) is a generator: it begins calls, yields what it waits for, and goes on when one of them has
ended or the time is over. `carried_out` and `carried_out_async` are all that differs between the two clients.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

__all__ = ["Call", "Deadline", "Flow", "Turns", "Wait", "carried_out", "carried_out_async"]

T = TypeVar("T")


class Call(Future[T]):
    """An answer on its way from a server: the answer itself, `CallError`, or `ServerError`.

    Nobody who stops to wait ends it: a Triton whose gRPC calls are cancelled in mid-flight can crash.
    """

    def __init__(self) -> None:
        super().__init__()
        self.set_running_or_notify_cancel()

    def give_up(self) -> None:
        """Say that nobody waits any more; a protocol where that hurts no server hangs up."""


@dataclass(frozen=True)
class Wait:
    """Until one of `calls` has ended, or `seconds` are over."""

    calls: tuple[Call[Any], ...]
    seconds: float


class Turns:
    """One place, given to conversations in the order in which they line up. May be used from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._line: deque[Call[None]] = deque()

    def line_up(self) -> Call[None]:
        """Return a call that ends when the place is free; give it back with `leave`."""
        turn: Call[None] = Call()
        with self._lock:
            self._line.append(turn)
            first = len(self._line) == 1
        if first:
            turn.set_result(None)
        return turn

    def leave(self, turn: Call[None]) -> None:
        """Give the place back, or stop waiting for it."""
        with self._lock:
            held = self._line[0] is turn
            self._line.remove(turn)
            following = self._line[0] if held and self._line else None
        if following:
            following.set_result(None)


Flow = Generator[Wait, None, T]


@dataclass(frozen=True)
class Deadline:
    """When something has to be done, and how long it may take in all.

    Attributes:
        at_s: Of `time.monotonic`, seconds.
        timeout_s: From its beginning.
    """

    at_s: float
    timeout_s: float

    @classmethod
    def after(cls, timeout_s: float) -> Deadline:
        """Return the one that is so far from now."""
        return cls(time.monotonic() + timeout_s, timeout_s)

    @property
    def left_s(self) -> float:
        """Seconds until then, at least 0."""
        return max(0.0, self.at_s - time.monotonic())

    def at_most(self, timeout_s: float) -> Deadline:
        """Return the nearer of this one and one so far from now."""
        return self if self.left_s <= timeout_s else Deadline.after(timeout_s)


def carried_out(flow: Flow[T]) -> T:
    """Go through with a conversation in this thread."""
    with closing(flow):
        while True:
            try:
                wait = next(flow)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            if wait.calls:
                concurrent.futures.wait(wait.calls, wait.seconds, concurrent.futures.FIRST_COMPLETED)
            else:
                time.sleep(wait.seconds)


async def carried_out_async(flow: Flow[T]) -> T:
    """Go through with a conversation in this task; a task that is cancelled leaves calls to themselves."""
    with closing(flow):
        while True:
            try:
                wait = next(flow)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            await _ended(wait)


async def _ended(wait: Wait) -> None:
    loop = asyncio.get_running_loop()
    ended = loop.create_future()

    def tell() -> None:
        if not ended.done():
            ended.set_result(None)

    def wake(_: Future[Any]) -> None:
        # A call may outlive the loop.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(tell)

    for call in wait.calls:
        call.add_done_callback(wake)
    await asyncio.wait([ended], timeout=wait.seconds)
