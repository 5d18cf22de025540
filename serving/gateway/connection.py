"""HTTP connections that can't be held open or flooded: what uvicorn's parser leaves to a proxy in front of it."""

from __future__ import annotations

import asyncio
import json
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from plurum.serving.gateway.metrics import GatewayMetrics
from plurum.serving.gateway.settings import GatewaySettings

__all__ = ["Connection", "connection_class"]

_MAX_HEAD_BYTES = 32 << 10
# Each piece of a body costs as much as any other: of more than so many, the mean must be of some size.
_MANY_PIECES, _SMALL_PIECE = 4096, 64


class Connection(HttpToolsProtocol):
    """One client's, with a clock: a request's head and the whole of it must arrive in time.

    After an answer that did not wait for the rest of the body, that rest is read for a while, so that the client gets
    to see the answer.
    """

    settings: ClassVar[GatewaySettings]
    metrics: ClassVar[GatewayMetrics]

    _clock: asyncio.TimerHandle | None = None
    _in_head = True
    _head_bytes = 0
    _pieces = 0
    _body_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take one connection more, unless there are too many."""
        crowded = len(self.connections) >= self.settings.max_connections
        super().connection_made(transport)
        if crowded:
            self._refuse(503, "crowded", "too many connections are open")
        else:
            self._wind_up(self.settings.receive_s / 3)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what has come."""
        began_before = self._in_head
        super().data_received(data)
        if self.transport.is_closing():
            return
        if began_before and self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > _MAX_HEAD_BYTES:
                self._refuse(431, "too_large", "the request's head is too large")
        elif self._clock is None and self.cycle is not None and self.cycle.response_complete:
            # Bytes between requests have stopped uvicorn's clock for idle connections.
            self._wind_up(self.settings.receive_s / 3)

    def on_message_begin(self) -> None:
        """A request begins."""
        self._in_head = True
        self._head_bytes = self._pieces = self._body_bytes = 0
        self._wind_up(self.settings.receive_s / 3)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Its head is whole."""
        self._in_head = False
        self._wind_up(self.settings.receive_s)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of its body."""
        if self.transport.is_closing():
            return
        self._pieces += 1
        self._body_bytes += len(body)
        if self._pieces > _MANY_PIECES and self._body_bytes < self._pieces * _SMALL_PIECE:
            self._refuse(400, "malformed", "the body comes in too many small chunks")
        elif self.cycle.response_complete and self._body_bytes > 2 * self.settings.max_body_bytes:
            self.transport.abort()
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """It is whole."""
        self._stop()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP."""
        self._refuse(400, "malformed", msg)

    def _refuse(self, status: int, reason: str, text: str) -> None:
        """Close the connection with an answer, unless one has begun."""
        self.metrics.connections_refused.labels(reason).inc()
        if self.cycle is None or not self.cycle.response_started or self._in_head:
            body = json.dumps({"error": text}).encode()
            head = f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
            self.transport.write(STATUS_LINE[status] + head.encode() + body)
        self.transport.close()

    def _wind_up(self, seconds: float) -> None:
        self._stop()
        self._clock = self.loop.call_later(seconds, self._too_slow)

    def _stop(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _too_slow(self) -> None:
        self._clock = None
        if not self.transport.is_closing():
            self._refuse(408, "slow", "the request did not arrive in time")


def connection_class(settings: GatewaySettings, metrics: GatewayMetrics) -> type[Connection]:
    """Return the class of one gateway's connections: uvicorn makes them, and tells them nothing of ours."""
    return type("GatewayConnection", (Connection,), {"settings": settings, "metrics": metrics})
