"""TLS handshakes that count as connections from their first moment, and have little time.

An event loop that listens by itself tells of a connection only when its handshake is done, and waits a minute for that:
any number of them could be held open.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable

__all__ = ["Handshakes"]

_log = logging.getLogger(__name__)

# While no connection can be taken, as the process has too many files open.
_PAUSE_S = 0.1
# How long a client may take to agree that a connection ends.
_GOODBYE_S = 3.0


class Handshakes:
    """Takes connections from a socket, and makes protocols of those whose handshake succeeds.

    Args:
        context: Certificate and private key.
        make: Makes the protocol of a connection.
        open_connections: Says how many connections there are whose handshake is done.
        most: Connections, with those that are in a handshake; more are closed.
        refused: Told why one was closed: crowded, slow or malformed.
        timeout_s: How long a handshake may take.
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
        """Take connections, until cancelled."""
        loop = asyncio.get_running_loop()
        listening.setblocking(False)
        while True:
            try:
                connection, _ = await loop.sock_accept(listening)
            except OSError as error:
                _log.error("no connection can be taken: %s", error.strerror)
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
            # What was sent is no TLS, or not in time.
            self._refused("slow" if isinstance(error, ConnectionAbortedError) else "malformed")
            connection.close()
