"""HTTP connections that can't be held open or flooded: what uvicorn's parser leaves to a proxy in front of it."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, ClassVar, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from plurum.serving.gateway.connections.door import Door
from plurum.serving.gateway.metrics import GatewayMetrics
from plurum.serving.gateway.settings import GatewaySettings

if TYPE_CHECKING:
    from starlette.types import Scope
    from uvicorn._types import ASGI3Application

__all__ = ["Connection", "connection_class"]

# Before a request is accepted a connection holds its head and no more: so many bytes, in so many fields.
_MAX_HEAD_BYTES, _MAX_FIELDS = 32 << 10, 128
# The parser keeps an unfinished field, so it is given pieces of this size: limits are looked at after each.
_PIECE_BYTES = 32 << 10
# Until a closed connection is gone for good, whether or not its last answer was read.
_LAST_WORDS_S = 5.0
# Each piece of a body costs as much as any other: of more than so many, the mean must be of some size.
_MANY_PIECES, _SMALL_PIECE = 4096, 64
# Requests that came before the answer to the first, and their bytes: uvicorn would queue any number of them.
_MAX_PIPELINED, _MAX_PIPELINED_BYTES = 16, 64 << 10


class _StopError(Exception):
    """Raised out of the parser's callbacks, so that it leaves the rest of what came alone."""


class Connection(HttpToolsProtocol):
    """One client's, with a clock: a request's head and the whole of it must arrive in time.

    After an answer that did not wait for the rest of the body, that rest is read for a while, so that the client gets
    to see the answer.
    """

    settings: ClassVar[GatewaySettings]
    metrics: ClassVar[GatewayMetrics]
    door: ClassVar[Door]

    _clock: asyncio.TimerHandle | None = None
    _running: RequestResponseCycle | None = None
    _in_head = True
    _requests = 0
    _pieces = 0
    _body_bytes = 0
    # What is no body: heads, sizes and extensions of chunks, trailers. All of a request, and since its last body byte.
    _framing_bytes = 0
    _framing_since_body = 0
    _pipelined_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take one connection more, unless there are too many."""
        crowded = len(self.connections) >= self.settings.max_connections
        super().connection_made(transport)
        if crowded:
            self._refuse(503, "crowded", "too many connections are open")
        else:
            self._wind_up(self.settings.receive_s / 3)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock, and tell the request that is being answered: uvicorn tells only the last that came."""
        self._stop()
        if self._running is not None:
            self._running.disconnected = not self._running.response_complete
            self._running.message_event.set()
        super().connection_lost(exc)
        # Who still reads would have a closed connection go on, which is an error.
        self.flow.read_paused = False

    def data_received(self, data: bytes) -> None:
        """Parse bytes from the client, and refuse the connection where they exceed a limit."""
        view = memoryview(data)
        for start in range(0, len(view), _PIECE_BYTES):
            if self.transport.is_closing():
                return
            self._parse(view[start : start + _PIECE_BYTES])

    def _parse(self, piece: memoryview) -> None:
        request, body_bytes = self._requests, self._body_bytes
        # The parser takes any buffer.
        super().data_received(piece)  # type: ignore[arg-type]
        if self.transport.is_closing():
            return
        # A piece in which a request began may hold the end of the one before: it counts for neither.
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
            self._wind_up(self.settings.receive_s / 3)

    def _check_framing(self) -> None:
        if self._pipelined_bytes > _MAX_PIPELINED_BYTES:
            self._refuse(400, "malformed", "too many bytes before the first answer")
        elif self._in_head and self._framing_bytes > _MAX_HEAD_BYTES:
            self._refuse(431, "too_large", "the request's head is too large")
        elif self._framing_since_body > _MAX_HEAD_BYTES:
            self._refuse(431, "too_large", "chunk extensions or trailers are too large")
        elif self._framing_bytes > _MAX_HEAD_BYTES + self._body_bytes:
            self._refuse(400, "malformed", "the body is smaller than what its chunks say about it")

    def on_message_begin(self) -> None:
        """A request begins."""
        self._in_head = True
        self._requests += 1
        self._pieces = self._body_bytes = self._framing_bytes = self._framing_since_body = 0
        self._wind_up(self.settings.receive_s / 3)
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a field of its head; trailers say nothing that we need, and are dropped."""
        if not self._in_head:
            return
        if len(self.headers) >= _MAX_FIELDS:
            self._refuse(431, "too_large", f"the request's head has more than {_MAX_FIELDS} fields")
            raise _StopError
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Its head is whole."""
        self._in_head = False
        self._framing_bytes = self._framing_since_body = 0
        self._wind_up(self.settings.receive_s)
        if len(self.pipeline) >= _MAX_PIPELINED:
            self._refuse(400, "malformed", "too many requests before the first answer")
            raise _StopError
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of its body."""
        self._pieces += 1
        self._body_bytes += len(body)
        if self._pieces > _MANY_PIECES and self._body_bytes < self._pieces * _SMALL_PIECE:
            self._refuse(400, "malformed", "the body comes in too many small chunks")
            raise _StopError
        if self.cycle.response_complete and self._body_bytes > 2 * self.settings.max_body_bytes:
            self.transport.abort()
            raise _StopError
        # Nobody reads the body of another method: uvicorn would keep it until the answer.
        if self.cycle.scope["method"] == "POST":
            super().on_body(body)

    def on_message_complete(self) -> None:
        """It is whole."""
        self._stop()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Drop what came of a body that was not read to its end, and go on with the next request."""
        for cycle in (self.cycle, self._running):
            if cycle is not None and cycle.response_complete:
                cycle.body = bytearray()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """The client does not read what it is sent."""
        self._wind_up(self.settings.receive_s)
        super().pause_writing()

    def resume_writing(self) -> None:
        """It does again."""
        self._stop()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that was idle for too long."""
        if not self.transport.is_closing():
            self._close()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, or what was stopped."""
        if not self.transport.is_closing():
            self._refuse(400, "malformed", msg)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        """Begin with a request; what is refused by its head is answered here, without a task and what comes with it."""
        refusal = None if self.flow.write_paused else self.door.shut(cast("Scope", cycle.scope))
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
        """Close the connection with an answer, unless one has begun."""
        self.metrics.connections_refused.labels(reason).inc()
        if not self._may_answer():
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

    def _may_answer(self) -> bool:
        """Whether no answer has begun, to this request or, while its head comes, to the one before."""
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None:
            return True
        if self.pipeline:
            # It would be read as the answer to a request before.
            return False
        return cycle.response_complete if self._in_head else not cycle.response_started

    def _close(self) -> None:
        self.transport.close()
        # What was written may never be read.
        self.loop.call_later(_LAST_WORDS_S, self.transport.abort)

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


def connection_class(settings: GatewaySettings, metrics: GatewayMetrics, door: Door) -> type[Connection]:
    """Return the class of one gateway's connections: uvicorn makes them, and tells them nothing of ours."""
    return type("GatewayConnection", (Connection,), {"settings": settings, "metrics": metrics, "door": door})
