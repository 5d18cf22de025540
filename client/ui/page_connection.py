"""HTTP connections to the page that can't be held open or flooded."""

from __future__ import annotations

import asyncio
from typing import cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["PageConnection"]

_MOST_CONNECTIONS = 256
# A whole request must have arrived by then.
_ARRIVAL_S = 60.0
# The parser takes its time for a flood of small pieces, and everybody waits meanwhile.
_READ_BYTES = 1 << 14


class PageConnection(H11Protocol):
    """One client's, with a clock: a connection without a whole request is closed after a minute.

    One connection more than 256 closes the one that has waited longest for a request.
    """

    _clock: asyncio.TimerHandle | None = None
    _waits_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wind up the clock."""
        super().connection_made(transport)
        # An attribute of asyncio's own transports; others read as much as they like.
        transport.max_size = _READ_BYTES  # type: ignore[attr-defined]
        self._wind_up()
        if len(self.connections) > _MOST_CONNECTIONS:
            idle = [one for one in cast("set[PageConnection]", self.connections) if one._clock is not None]
            min(idle, key=lambda one: one._waits_since).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stop()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Take what has arrived, and stop the clock once a request is whole."""
        super().handle_events()
        if self.cycle is not None and not self.cycle.more_body and not self.cycle.response_complete:
            self._stop()

    def send_400_response(self, msg: str) -> None:
        """Refuse what can't be parsed, and keep the application from answering it too."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        # A response to HEAD has no body, which ours would be.
        is_head = self.conn.our_state is h11.SEND_RESPONSE and self.scope["method"] == "HEAD"
        if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE} and not is_head:
            super().send_400_response(msg)
        else:
            self.transport.abort()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self._stop()
        self._wind_up()
        super().on_response_complete()

    def _wind_up(self) -> None:
        self._waits_since = self.loop.time()
        self._clock = self.loop.call_later(_ARRIVAL_S, self._late)

    def _stop(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _late(self) -> None:
        self._clock = None
        self.transport.abort()
