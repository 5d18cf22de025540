"""HTTP connections to the page, with limits that prevent clients from holding them open or flooding the page."""

from __future__ import annotations

import asyncio
from typing import cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from plurum.web.server import ConnectionClock

__all__ = ["PageConnection"]

_MAX_CONNECTIONS = 256
# Time limit for a complete request to arrive.
_ARRIVAL_S = 60.0
# Parsing many small pieces takes long, and blocks all other requests meanwhile.
_READ_BYTES = 1 << 14


class PageConnection(ConnectionClock, H11Protocol):
    """A connection that is closed after a minute without a complete request.

    If there are more than 256 connections, the one that has waited longest for a request is closed.
    """

    _waits_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock."""
        super().connection_made(transport)
        # An attribute of asyncio's own transports; others read any amount at once.
        transport.max_size = _READ_BYTES  # type: ignore[attr-defined]
        self._wait_for_request()
        if len(self.connections) > _MAX_CONNECTIONS:
            idle = [one for one in cast("set[PageConnection]", self.connections) if one._clock is not None]
            min(idle, key=lambda one: one._waits_since).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self.stop_clock()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Process what has arrived, and stop the clock when a request is complete."""
        super().handle_events()
        if self.cycle is not None and not self.cycle.more_body and not self.cycle.response_complete:
            self.stop_clock()

    def send_400_response(self, msg: str) -> None:
        """Refuse bytes that can't be parsed, and keep the application from responding too."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        # A response to HEAD must not have a body.
        is_head = self.conn.our_state is h11.SEND_RESPONSE and self.scope["method"] == "HEAD"
        if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE} and not is_head:
            super().send_400_response(msg)
        else:
            self.transport.abort()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self._wait_for_request()
        super().on_response_complete()

    def on_timeout(self) -> None:
        """Close a connection without a complete request."""
        self.transport.abort()

    def _wait_for_request(self) -> None:
        self._waits_since = self.loop.time()
        self.start_clock(_ARRIVAL_S)
