"""TLS handshakes that count towards the connection limit from the start, and have a short time limit.

An event loop's own TLS server reports a connection only after its handshake, for which it waits a minute. Clients
could hold any number of unfinished handshakes open.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable

__all__ = ["Handshakes"]

_log = logging.getLogger(__name__)

# Pause when no connection can be accepted because the process has too many open files.
_PAUSE_S = 0.1
# Time limit for the client to confirm the end of a connection.
_GOODBYE_S = 3.0


class Handshakes:
    """Accepts connections from a socket, and creates protocols for those whose handshake succeeds.

    Args:
        context: TLS context with certificate and private key.
        make: Function that creates the protocol of a connection.
        open_connections: Function that returns the number of connections whose handshake is complete.
        most: Maximum number of connections, including those in a handshake; further ones are closed.
        refused: Function that is called with the reason when a connection is closed: crowded, slow or malformed.
        timeout_s: Time limit of a handshake, seconds.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        make: Callable[[], asyncio.Protocol],
        open_connections: Callable[[], int],
        most: int,
        refused: Callable[[str], None],
        timeout_s: float,
    ) -> None:
        self._context, self._make, self._open_connections = context, make, open_connections
        self._most, self._refused, self._timeout_s = most, refused, timeout_s
        self._under_way: set[asyncio.Task[None]] = set()

    async def accept(self, listening: socket.socket) -> None:
        """Accept connections until cancelled."""
        loop = asyncio.get_running_loop()
        listening.setblocking(False)
        while True:
            try:
                connection, _ = await loop.sock_accept(listening)
            except OSError as error:
                _log.error("no connection can be accepted: %s", error.strerror)
                await asyncio.sleep(_PAUSE_S)
                continue
            if self._open_connections() + len(self._under_way) >= self._most:
                self._refused("crowded")
                connection.close()
                continue
            task = loop.create_task(self._shake(connection))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

    async def _shake(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(
                self._make,
                connection,
                ssl=self._context,
                ssl_handshake_timeout=self._timeout_s,
                ssl_shutdown_timeout=_GOODBYE_S,
            )
        except OSError as error:
            # The client sent something other than TLS, or not in time.
            self._refused("slow" if isinstance(error, ConnectionAbortedError) else "malformed")
            connection.close()
