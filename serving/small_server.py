"""HTTP for health and metrics: small responses to anybody, from threads that no client can hold or multiply."""

from __future__ import annotations

import contextlib
import http.server
import socket
import threading
import time
from typing import Any

__all__ = ["SmallHttpServer"]

_MOST_CONNECTIONS = 64
_LONGEST_S = 10.0


class SmallHttpServer(http.server.ThreadingHTTPServer):
    """A server that has at most 64 connections, each for at most 10 s.

    One connection more closes the oldest, so that a new client is answered however many others hold theirs open.

    Args:
        host: Address to listen on, IPv4 or IPv6, or a name.
        port: 0 takes a free one.
        handler: Answers a request.

    Raises:
        OSError: the port can't be listened on.
    """

    daemon_threads = True

    def __init__(self, host: str, port: int, handler: type[http.server.BaseHTTPRequestHandler]) -> None:
        self._deadlines: dict[socket.socket, float] = {}
        self._lock = threading.Lock()
        self.address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        super().__init__((host, port), handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, and let go of the oldest connection if there are too many."""
        with self._lock:
            self._deadlines[request] = time.monotonic() + _LONGEST_S
            crowded = list(self._deadlines)[:-_MOST_CONNECTIONS]
        self._break(crowded)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection that is done with."""
        with self._lock:
            self._deadlines.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Let go of connections that have lasted too long; called twice a second."""
        now = time.monotonic()
        with self._lock:
            late = [one for one, deadline in self._deadlines.items() if deadline < now]
        self._break(late)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that has gone away is no fault of ours, and a line for each would fill disks."""

    def _break(self, connections: list[socket.socket]) -> None:
        """Have the threads of connections end: what they read or write fails at once."""
        for one in connections:
            with self._lock:
                self._deadlines.pop(one, None)
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
