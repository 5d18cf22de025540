"""HTTP server for health and metrics, with limits on the number and duration of connections."""

from __future__ import annotations

import contextlib
import http.server
import socket
import threading
import time
from typing import Any

from plurum.errors import port_error

__all__ = ["SmallHttpServer"]

_MOST_CONNECTIONS = 64
_LONGEST_S = 10.0


class SmallHttpServer(http.server.ThreadingHTTPServer):
    """An HTTP server with at most 64 connections, each for at most 10 s.

    A further connection closes the oldest one, so that clients that hold connections open can't block others.

    Args:
        host: Address to listen on: IPv4, IPv6 or a host name.
        port: Port to listen on; 0 picks a free port.
        handler: Class that handles a request.
        option: Option that changes the port, for messages.

    Raises:
        ServerError: the port can't be listened on.
    """

    daemon_threads = True
    # The library's 5 would make a client wait a second or more for its place behind a burst of others.
    request_queue_size = 128

    def __init__(
        self, host: str, port: int, handler: type[http.server.BaseHTTPRequestHandler], option: str = "--port"
    ) -> None:
        self._deadlines: dict[socket.socket, float] = {}
        self._lock = threading.Lock()
        try:
            self.address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            super().__init__((host, port), handler)
        except OSError as error:
            raise port_error(option, port, host, error) from error

    def process_request(self, request: Any, client_address: Any) -> None:
        """Handle a request in a thread, and close the oldest connection if there are too many."""
        with self._lock:
            self._deadlines[request] = time.monotonic() + _LONGEST_S
            crowded = list(self._deadlines)[:-_MOST_CONNECTIONS]
        self._break(crowded)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a completed connection."""
        with self._lock:
            self._deadlines.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Close connections that have exceeded their time limit; called twice a second."""
        now = time.monotonic()
        with self._lock:
            late = [one for one, deadline in self._deadlines.items() if deadline < now]
        self._break(late)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log nothing: disconnected clients are not faults, and one line for each would fill the disk."""

    def _break(self, connections: list[socket.socket]) -> None:
        """Shut connections down, so that reads and writes of their threads fail at once."""
        for one in connections:
            with self._lock:
                self._deadlines.pop(one, None)
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
