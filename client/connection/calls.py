"""Calls to servers, and flows of calls that threads and asyncio share.

A `Flow` is a generator: it starts calls, yields a `Wait`, and continues when one of the calls has ended or the time is
over. Only `run_flow` and `run_flow_async` differ between the two clients.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

__all__ = ["Call", "Deadline", "Flow", "TurnQueue", "Wait", "run_flow", "run_flow_async"]

T = TypeVar("T")


class Call(Future[T]):
    """Call to a server; its result is the response, `CallError` or `ServerError`.

    A caller that stops waiting does not end the call: Triton can crash when a gRPC call is cancelled.
    """

    def __init__(self) -> None:
        super().__init__()
        self.set_running_or_notify_cancel()

    def give_up(self) -> None:
        """Note that no caller waits any more; HTTP then disconnects, which harms no server."""


@dataclass(frozen=True)
class Wait:
    """Wait until one of `calls` has ended, or `seconds` have passed."""

    calls: tuple[Call[Any], ...]
    seconds: float


class TurnQueue:
    """Queue of flows for a single place; several threads may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._line: deque[Call[None]] = deque()

    def enter(self) -> Call[None]:
        """Return a call that ends when the place is free; `leave` gives the place back."""
        turn: Call[None] = Call()
        with self._lock:
            self._line.append(turn)
            first = len(self._line) == 1
        if first:
            turn.set_result(None)
        return turn

    def leave(self, turn: Call[None]) -> None:
        """Give the place back, or leave the queue."""
        with self._lock:
            held = self._line[0] is turn
            self._line.remove(turn)
            following = self._line[0] if held and self._line else None
        if following:
            following.set_result(None)


Flow = Generator[Wait, None, T]


@dataclass(frozen=True)
class Deadline:
    """Deadline of a request.

    Attributes:
        at_s: Time of the deadline on `time.monotonic`, seconds.
        timeout_s: Time between the start of the request and the deadline, seconds.
    """

    at_s: float
    timeout_s: float

    @classmethod
    def after(cls, timeout_s: float) -> Deadline:
        """Return the deadline that is `timeout_s` from now."""
        return cls(time.monotonic() + timeout_s, timeout_s)

    @property
    def left_s(self) -> float:
        """Remaining time, seconds, at least 0."""
        return max(0.0, self.at_s - time.monotonic())

    def at_most(self, timeout_s: float) -> Deadline:
        """Return this deadline, or the one `timeout_s` from now if that is earlier."""
        return self if self.left_s <= timeout_s else Deadline.after(timeout_s)


class _FlowRun(Generic[T]):
    """Iteration over the waits of a flow; `result` is set at the end."""

    result: T

    def __init__(self, flow: Flow[T]) -> None:
        self._flow = flow

    def __iter__(self) -> Iterator[Wait]:
        self.result = yield from self._flow


def run_flow(flow: Flow[T]) -> T:
    """Run a flow in this thread, and return its result."""
    run = _FlowRun(flow)
    with closing(flow):
        for wait in run:
            if wait.calls:
                concurrent.futures.wait(wait.calls, wait.seconds, concurrent.futures.FIRST_COMPLETED)
            else:
                time.sleep(wait.seconds)
    return run.result


async def run_flow_async(flow: Flow[T]) -> T:
    """Run a flow in this task, and return its result; if the task is cancelled, its calls continue."""
    run = _FlowRun(flow)
    with closing(flow):
        for wait in run:
            await _wait_async(wait)
    return run.result


async def _wait_async(wait: Wait) -> None:
    loop = asyncio.get_running_loop()
    ended = loop.create_future()

    def end_wait() -> None:
        if not ended.done():
            ended.set_result(None)

    def wake(_: Future[Any]) -> None:
        # A call may outlive the loop.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(end_wait)

    for call in wait.calls:
        call.add_done_callback(wake)
    await asyncio.wait([ended], timeout=wait.seconds)
