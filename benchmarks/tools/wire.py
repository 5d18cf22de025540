"""An HTTP client that takes as little processor time as possible: prepared requests over connections that are kept.

It runs in one event loop and reads the status, the length and the body of a response, and nothing else. It takes the
connection that was used last, and opens as many as there are requests in flight.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

from plurum.errors import needs_extra

__all__ = ["HttpConnections", "HttpResponse", "http_request", "post", "run_fast_loop"]

T = TypeVar("T")


@dataclass(frozen=True)
class HttpResponse:
    """A response to one request.

    Attributes:
        status: HTTP status; 0 if the connection broke before a response, or none came in time.
        body: Body as received; for status 0 what was received before, or the error of the connection.
    """

    status: int
    body: bytes


class _Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self.open = True
        self._transport: Any = None
        self._received = b""
        self._response: asyncio.Future[HttpResponse] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def connection_lost(self, _: Exception | None) -> None:
        self.open = False
        if self._response is not None and not self._response.done():
            self._response.set_result(HttpResponse(0, self._received))

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end or self._response is None or self._response.done():
            return
        fields = head.lower()
        length = fields.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]
        if len(body) >= int(length or 0):
            self.open = b"\r\nconnection: close" not in fields
            # "HTTP/1.1 200 …"
            self._response.set_result(HttpResponse(int(head[9:12]), body))
            self._received = b""

    async def send(self, request: bytes, timeout_s: float) -> HttpResponse:
        loop = asyncio.get_running_loop()
        self._response = loop.create_future()
        self._transport.write(request)
        if not self.open:
            self.connection_lost(None)
        # asyncio.wait_for would take longer than all the rest.
        clock = loop.call_later(timeout_s, self.connection_lost, None)
        try:
            return await self._response
        finally:
            clock.cancel()

    def close(self) -> None:
        self.open = False
        self._transport.abort()


class HttpConnections:
    """Connections to one server, to be used in an `async with` block.

    Args:
        url: URL with scheme, host and port.
        most: Largest number of open connections; further requests wait for one.
    """

    def __init__(self, url: str, most: int) -> None:
        self._host, self._port = str(urlsplit(url).hostname), int(urlsplit(url).port or 80)
        self._idle: list[_Connection] = []
        self._places = asyncio.Semaphore(most)

    async def __aenter__(self) -> HttpConnections:
        return self

    async def __aexit__(self, *_: object) -> None:
        for connection in self._idle:
            connection.close()

    async def send(self, request: bytes, timeout_s: float, *, alone: bool = False) -> HttpResponse:
        """Send a request and return the response.

        Args:
            request: Bytes of the request.
            timeout_s: Longest wait for the response.
            alone: If True, use a connection of its own and close it afterwards.
        """
        async with self._places:
            connection = None if alone else self._idle_connection()
            try:
                connection = connection or await self._connect()
                response = await connection.send(request, timeout_s)
            except OSError as error:
                response = HttpResponse(0, str(error).encode())
            if connection is not None and connection.open and response.status and not alone:
                self._idle.append(connection)
            elif connection is not None:
                connection.close()
            return response

    def _idle_connection(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.open:
                return connection
        return None

    async def _connect(self) -> _Connection:
        return (await asyncio.get_running_loop().create_connection(_Connection, self._host, self._port))[1]


def http_request(method: str, path: str, body: bytes = b"", **headers: object) -> bytes:
    """Return the bytes of an HTTP/1.1 request; underscores in headers' names stand for hyphens."""
    lines = [f"{method} {path} HTTP/1.1", "host: 127.0.0.1", f"content-length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "\r\n"]).encode("utf-8", "surrogateescape") + body


def post(path: str, body: bytes, **headers: object) -> bytes:
    """Return the bytes of a POST request; see `http_request`."""
    return http_request("POST", path, body, **headers)


def run_fast_loop(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` on uvloop, the event loop that takes the least processor time.

    Raises:
        MissingExtraError: uvloop is not installed.
    """
    with needs_extra("gateway", "uvloop"):
        import uvloop
    return uvloop.run(main)
