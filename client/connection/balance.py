"""Distribute requests over several servers: round robin over those that respond."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from plurum.client.connection.calls import Call
from plurum.client.connection.transport import CallError, Transport

__all__ = ["Balance"]

# First and longest pause between checks of an unreachable server, seconds; the pause doubles each time.
_AWAY_S, _LONGEST_AWAY_S = 0.25, 5.0
# Pause between checks while no server responds, seconds.
_CHECK_S = 0.25
# Time limit of a check, seconds.
_LIVE_S = 2.0


@dataclass
class _Server:
    """State of one server.

    Attributes:
        transport: Connection to the server.
        up: True if it responded last time; None before the first request.
        failures: Number of consecutive failures.
        failed_s: Time of the last failure on `time.monotonic`, seconds.
        check: Check in progress; None if there is none.
    """

    transport: Transport
    up: bool | None = None
    failures: int = 0
    failed_s: float = 0.0
    check: Call[bool] | None = None


class Balance:
    """Round robin over the servers that respond; the others are checked in the background.

    A single server gets every request. May be used from several threads.
    """

    def __init__(self, transports: Sequence[Transport]) -> None:
        self._servers = [_Server(transport) for transport in transports]
        self._single = len(transports) == 1
        self._turn = 0
        self._lock = threading.Lock()
        self._last_error: tuple[Transport, CallError] | None = None

    def __len__(self) -> int:
        return len(self._servers)

    @property
    def transports(self) -> list[Transport]:
        """Connections to all servers."""
        return [server.transport for server in self._servers]

    @property
    def addresses(self) -> str:
        """Addresses of all servers, for messages."""
        return ", ".join(transport.address for transport in self.transports)

    @property
    def last_error(self) -> tuple[Transport, CallError] | None:
        """The last failure and its server; None if there was none."""
        return self._last_error

    def choose(self) -> Transport | None:
        """Return the next server, and start checks that are due; None while no server is known to respond."""
        if self._single:
            return self._servers[0].transport
        with self._lock:
            up = [server for server in self._servers if server.up]
            due = [server for server in self._servers if self._is_due(server, alone=not up)]
            self._turn += 1
            chosen = up[self._turn % len(up)].transport if up else None
        # Outside the lock: a call that fails immediately runs its callback in this thread.
        for server in due:
            self._start_check(server)
        return chosen

    def checks(self) -> tuple[Call[Any], ...]:
        """Return the checks in progress."""
        with self._lock:
            return tuple(server.check for server in self._servers if server.check)

    def others_respond(self, transport: Transport) -> bool:
        """Return True if another server responds."""
        with self._lock:
            return any(server.up for server in self._servers if server.transport is not transport)

    def failed(self, transport: Transport, error: CallError) -> None:
        """Record a failure: the other servers get the requests until this one responds again."""
        self._last_error = (transport, error)
        with self._lock:
            (server,) = (server for server in self._servers if server.transport is transport)
            server.up, server.failed_s = False, time.monotonic()
            server.failures += 1

    def _is_due(self, server: _Server, *, alone: bool) -> bool:
        if server.up or server.check:
            return False
        wait_s = _CHECK_S if alone else min(_LONGEST_AWAY_S, _AWAY_S * 2 ** min(server.failures, 10))
        return server.up is None or time.monotonic() - server.failed_s >= wait_s

    def _start_check(self, server: _Server) -> None:
        check = server.transport.live(_LIVE_S)
        with self._lock:
            if server.check:
                return
            server.check = check

        def note(ended: Any) -> None:
            error = ended.exception()
            if error is not None:
                self.failed(server.transport, error if isinstance(error, CallError) else CallError(str(error), "away"))
            with self._lock:
                server.check = None
                if error is None:
                    server.up, server.failures = True, 0

        check.add_done_callback(note)
