"""HTTP connections with limits on time and size, which uvicorn's parser leaves to a proxy in front of it."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, ClassVar, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from plurum.serving.gateway.connections.middleware import GatewayMiddleware
from plurum.serving.gateway.metrics import GatewayMetrics
from plurum.settings.serving import GatewaySettings
from plurum.web.server import ConnectionClock

if TYPE_CHECKING:
    from starlette.types import Scope
    from uvicorn._types import ASGI3Application

__all__ = ["GatewayConnection", "connection_class"]

# Limits of a request's head: bytes and number of fields.
_MAX_HEAD_BYTES, _MAX_FIELDS = 32 << 10, 128
# The parser buffers an incomplete field, so it gets pieces of this size, and limits are checked after each.
_PIECE_BYTES = 32 << 10
# Time until a closed connection is aborted, whether or not the client read the last response.
_LINGER_S = 5.0
# Each piece of a body costs the same time, so a body of many pieces must have a minimum mean piece size.
_MANY_PIECES, _SMALL_PIECE = 4096, 64
# Limits of pipelined requests and their bytes; uvicorn would queue any number.
_MAX_PIPELINED, _MAX_PIPELINED_BYTES = 16, 64 << 10


class _StopError(Exception):
    """Stops the parser from within its callbacks."""


class GatewayConnection(ConnectionClock, HttpToolsProtocol):
    """A client's connection with time limits for a request's head and for the complete request.

    If a response was sent before the whole body had arrived, the rest of the body is read for a while, so that the
    client can read the response.
    """

    settings: ClassVar[GatewaySettings]
    metrics: ClassVar[GatewayMetrics]
    middleware: ClassVar[GatewayMiddleware]

    _running: RequestResponseCycle | None = None
    _in_head = True
    _requests = 0
    _pieces = 0
    _body_bytes = 0
    # Bytes of heads, chunk sizes and extensions, and trailers: of the request, and since its last body byte.
    _framing_bytes = 0
    _framing_since_body = 0
    _pipelined_bytes = 0
    _abort: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection, unless too many are open."""
        crowded = len(self.connections) >= self.settings.max_connections
        super().connection_made(transport)
        if crowded:
            self._refuse(503, "crowded", "too many connections are open")
        else:
            self.start_clock(self.settings.receive_s / 3)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock, and notify the running request; uvicorn notifies only the last one that arrived."""
        self.stop_clock()
        if self._abort is not None:
            # It would keep the connection's memory until it is due: 256 KiB over TLS.
            self._abort.cancel()
        if self._running is not None:
            self._running.disconnected = not self._running.response_complete
            self._running.message_event.set()
        super().connection_lost(exc)
        # A pending read would otherwise resume a closed transport, which is an error.
        self.flow.read_paused = False

    def data_received(self, data: bytes) -> None:
        """Parse bytes from the client, and refuse the connection if they exceed a limit."""
        view = memoryview(data)
        for start in range(0, len(view), _PIECE_BYTES):
            if self.transport.is_closing():
                return
            self._parse(view[start : start + _PIECE_BYTES])

    def _parse(self, piece: memoryview) -> None:
        request, body_bytes = self._requests, self._body_bytes
        # The parser accepts any buffer.
        super().data_received(piece)  # type: ignore[arg-type]
        if self.transport.is_closing():
            return
        # A piece in which a request starts may also hold the end of the one before, so it counts for neither.
        came = self._body_bytes - body_bytes
        framing = len(piece) - came if self._requests == request else 0
        self._framing_bytes += framing
        self._framing_since_body = framing + (0 if came else self._framing_since_body)
        self._pipelined_bytes = self._pipelined_bytes + len(piece) if self.pipeline else 0
        self._check_framing()
        if (
            not self._in_head
            and self._clock is None
            and self.cycle is not None
            and self.cycle.response_complete
            and not self.transport.is_closing()
        ):
            # Bytes between requests have stopped uvicorn's clock for idle connections.
            self.start_clock(self.settings.receive_s / 3)

    def _check_framing(self) -> None:
        if self._pipelined_bytes > _MAX_PIPELINED_BYTES:
            self._refuse(400, "malformed", "too many bytes before the first response")
        elif self._in_head and self._framing_bytes > _MAX_HEAD_BYTES:
            self._refuse(431, "too_large", "the request's head is too large")
        elif self._framing_since_body > _MAX_HEAD_BYTES:
            self._refuse(431, "too_large", "chunk extensions or trailers are too large")
        elif self._framing_bytes > _MAX_HEAD_BYTES + self._body_bytes:
            self._refuse(400, "malformed", "the chunk headers are larger than the body")

    def on_message_begin(self) -> None:
        """Start the clock of a new request."""
        self._in_head = True
        self._requests += 1
        self._pieces = self._body_bytes = self._framing_bytes = self._framing_since_body = 0
        self.start_clock(self.settings.receive_s / 3)
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a field of the request's head; trailers are not needed, and are dropped."""
        if not self._in_head:
            return
        if len(self.headers) >= _MAX_FIELDS:
            self._refuse(431, "too_large", f"the request's head has more than {_MAX_FIELDS} fields")
            raise _StopError
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the clock of the body when the head is complete."""
        self._in_head = False
        self._framing_bytes = self._framing_since_body = 0
        self.start_clock(self.settings.receive_s)
        if len(self.pipeline) >= _MAX_PIPELINED:
            self._refuse(400, "malformed", "too many requests before the first response")
            raise _StopError
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Check and pass on a piece of the body."""
        self._pieces += 1
        self._body_bytes += len(body)
        if self._pieces > _MANY_PIECES and self._body_bytes < self._pieces * _SMALL_PIECE:
            self._refuse(400, "malformed", "the body has too many small chunks")
            raise _StopError
        if self.cycle.response_complete and self._body_bytes > 2 * self.settings.max_body_bytes:
            self.transport.abort()
            raise _StopError
        # No endpoint reads the body of another method; uvicorn would keep it until the response.
        if self.cycle.scope["method"] == "POST":
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Stop the clock when the request is complete."""
        self.stop_clock()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Drop the unread part of a body, and continue with the next request."""
        for cycle in (self.cycle, self._running):
            if cycle is not None and cycle.response_complete:
                cycle.body = bytearray()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Start the clock while the client does not read the response."""
        self.start_clock(self.settings.receive_s)
        super().pause_writing()

    def resume_writing(self) -> None:
        """Stop the clock when the client reads again."""
        self.stop_clock()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that was idle for too long."""
        if not self.transport.is_closing():
            self._close()

    def send_400_response(self, msg: str) -> None:
        """Respond to bytes that are not HTTP, or that a callback stopped."""
        if not self.transport.is_closing():
            self._refuse(400, "malformed", msg)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        """Start a request; if its head alone gets it refused, respond here, without the cost of a task."""
        refusal = None if self.flow.write_paused else self.middleware.refuse_early(cast("Scope", cycle.scope))
        if refusal is None:
            self._running = cycle
            super()._start_asgi_task(cycle, app)
            return
        cycle.response_started = cycle.response_complete = True
        self._write(refusal.status, refusal.text, refusal.headers, close=not cycle.keep_alive)
        if not cycle.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def _refuse(self, status: int, reason: str, text: str) -> None:
        """Close the connection with an error response, unless a response has started."""
        self.metrics.connections_refused.labels(reason).inc()
        if not self._may_respond():
            self.transport.abort()
            return
        self._write(status, text, {}, close=True)
        self._close()

    def _write(self, status: int, text: str, headers: dict[str, str], *, close: bool) -> None:
        body = json.dumps({"error": text})
        lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
        lines += [f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"]
        lines += ["connection: close\r\n\r\n" if close else "\r\n", body]
        self.transport.write(STATUS_LINE[status] + "".join(lines).encode())

    def _may_respond(self) -> bool:
        """Return True if no response has started to this request or, while its head arrives, to the one before."""
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None:
            return True
        if self.pipeline:
            # The client would take it for the response to an earlier request.
            return False
        return cycle.response_complete if self._in_head else not cycle.response_started

    def _close(self) -> None:
        self.transport.close()
        # The client may never read what was written.
        self._abort = self.loop.call_later(_LINGER_S, self.transport.abort)

    def on_timeout(self) -> None:
        """Refuse a request that arrives too slowly."""
        if not self.transport.is_closing():
            self._refuse(408, "slow", "the request did not arrive in time")


def connection_class(
    settings: GatewaySettings, metrics: GatewayMetrics, middleware: GatewayMiddleware
) -> type[GatewayConnection]:
    """Return the connection class of one gateway; class attributes carry what uvicorn does not pass to connections."""
    return type(
        "BoundGatewayConnection",
        (GatewayConnection,),
        {"settings": settings, "metrics": metrics, "middleware": middleware},
    )
