"""Time limit of an HTTP connection."""

from __future__ import annotations

import asyncio

__all__ = ["ConnectionClock"]


class ConnectionClock:
    """Part of a connection's protocol: a clock that calls `on_timeout` unless it is stopped or restarted in time."""

    loop: asyncio.AbstractEventLoop
    _clock: asyncio.TimerHandle | None = None

    def start_clock(self, seconds: float) -> None:
        """Start the clock, or start it again."""
        self.stop_clock()
        self._clock = self.loop.call_later(seconds, self._ring)

    def stop_clock(self) -> None:
        """Stop the clock, if it runs."""
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def on_timeout(self) -> None:
        """Refuse or close the connection."""
        raise NotImplementedError

    def _ring(self) -> None:
        self._clock = None
        self.on_timeout()
