"""HTTP as cheaply as Python can ask it: prepared requests over connections that are kept, from one event loop.

Of an answer the status, the length and the body are read, and nothing else. Connections are taken that were used last,
and as many are opened as there are requests under way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

from plurum.errors import needs_extra

__all__ = ["Reply", "Wires", "post", "run_wired"]

T = TypeVar("T")


@dataclass(frozen=True)
class Reply:
    """What came back.

    Attributes:
        status: Of HTTP; 0 where the connection broke before an answer, or nothing came in time.
        body: As it came.
    """

    status: int
    body: bytes


class _Wire(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self.open = True
        self._transport: Any = None
        self._came = b""
        self._reply: asyncio.Future[Reply] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def connection_lost(self, _: Exception | None) -> None:
        self.open = False
        if self._reply is not None and not self._reply.done():
            self._reply.set_result(Reply(0, self._came))

    def data_received(self, data: bytes) -> None:
        self._came += data
        head, end, body = self._came.partition(b"\r\n\r\n")
        if not end or self._reply is None or self._reply.done():
            return
        length = head.lower().partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]
        if len(body) >= int(length or 0):
            # "HTTP/1.1 200 …"
            self._reply.set_result(Reply(int(head[9:12]), body))
            self._came = b""

    async def ask(self, request: bytes, timeout_s: float) -> Reply:
        loop = asyncio.get_running_loop()
        self._reply = loop.create_future()
        self._transport.write(request)
        if not self.open:
            self.connection_lost(None)
        # What asyncio.wait_for does takes longer than all the rest.
        clock = loop.call_later(timeout_s, self.connection_lost, None)
        try:
            return await self._reply
        finally:
            clock.cancel()

    def close(self) -> None:
        self.open = False
        self._transport.abort()


class Wires:
    """Connections to one place; to be used in an `async with` block.

    Args:
        url: With scheme, host and port.
        most: Connections at once; more requests wait for one.
    """

    def __init__(self, url: str, most: int) -> None:
        self._host, self._port = str(urlsplit(url).hostname), int(urlsplit(url).port or 80)
        self._idle: list[_Wire] = []
        self._places = asyncio.Semaphore(most)

    async def __aenter__(self) -> Wires:
        return self

    async def __aexit__(self, *_: object) -> None:
        for wire in self._idle:
            wire.close()

    async def ask(self, request: bytes, timeout_s: float, *, alone: bool = False) -> Reply:
        """Send a request, and return its answer.

        Args:
            request: As it goes over the wire.
            timeout_s: How long to wait for the answer.
            alone: Whether it gets a connection of its own, which is closed afterwards.
        """
        async with self._places:
            wire = None if alone else self._waiting()
            try:
                wire = wire or await self._opened()
                reply = await wire.ask(request, timeout_s)
            except OSError:
                reply = Reply(0, b"")
            if wire is not None and wire.open and reply.status and not alone:
                self._idle.append(wire)
            elif wire is not None:
                wire.close()
            return reply

    def _waiting(self) -> _Wire | None:
        while self._idle:
            wire = self._idle.pop()
            if wire.open:
                return wire
        return None

    async def _opened(self) -> _Wire:
        return (await asyncio.get_running_loop().create_connection(_Wire, self._host, self._port))[1]


def post(path: str, body: bytes, **headers: object) -> bytes:
    """Return a POST request as it goes over the wire; underscores in headers' names stand for hyphens."""
    lines = [f"POST {path} HTTP/1.1", "host: x", f"content-length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "\r\n"]).encode() + body


def run_wired(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` on the event loop that costs least.

    Raises:
        MissingExtraError: the package for it is not installed.
    """
    with needs_extra("gateway", "uvloop"):
        import uvloop
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)
