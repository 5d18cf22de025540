"""Raw sockets to one port: they send bytes as they are, and read only the status of a response."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import time
from dataclasses import dataclass

__all__ = ["CLOSED", "TIMEOUT", "ServerPort", "Wire"]

# Outcomes beside the statuses of HTTP.
CLOSED, TIMEOUT = 0, -1
_PIECE = 1 << 16


@dataclass(frozen=True)
class ServerPort:
    """A port of a server.

    Attributes:
        port: Port on 127.0.0.1.
        tls: If True, the server uses TLS.
    """

    port: int
    tls: bool = False


class Wire:
    """One connection.

    Args:
        place: Port of the server.
        timeout_s: Longest wait for one piece of a response.
        receive_bytes: Size of the receive buffer; None leaves it to the system.

    Raises:
        OSError: The server does not accept the connection.
    """

    def __init__(self, place: ServerPort, timeout_s: float = 10.0, receive_bytes: int | None = None) -> None:
        plain = socket.socket()
        try:
            plain.settimeout(timeout_s)
            if receive_bytes is not None:
                plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
            plain.connect(("127.0.0.1", place.port))
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # An unverified context: the certificate is the script's own.
            self._socket = ssl._create_unverified_context().wrap_socket(plain) if place.tls else plain  # noqa: S323
        except BaseException:
            plain.close()
            raise
        self._came = b""
        self.is_open = True

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, data: bytes) -> bool:
        """Send all of `data`; return True if the server has taken it."""
        try:
            self._socket.sendall(data)
        except OSError:
            self.is_open = False
        return self.is_open

    def status(self) -> int:
        """Read one response, and return its status, `CLOSED` or `TIMEOUT`."""
        try:
            while b"\r\n\r\n" not in self._came:
                if not self._read():
                    return CLOSED
            head, _, self._came = self._came.partition(b"\r\n\r\n")
            words = head.split(b" ", 2)
            status = int(words[1]) if len(words) > 1 and words[1][:3].isdigit() else CLOSED
            if 100 <= status < 200:
                return self.status()
            self._skip_body(head.lower())
        except TimeoutError:
            self.is_open = False
            return TIMEOUT
        except OSError:
            self.is_open = False
            return CLOSED
        return status

    def wait_closed(self, seconds: float) -> int:
        """Read until the server closes the connection; return the last status it sent, `CLOSED` or `TIMEOUT`."""
        deadline, status = time.monotonic() + seconds, CLOSED
        while self.is_open:
            self._socket.settimeout(max(deadline - time.monotonic(), 0.01))
            came = self.status()
            if came == TIMEOUT:
                return status or TIMEOUT
            if came == CLOSED:
                return status
            status = came
        return status

    def rest(self, seconds: float) -> bytes:
        """Return all bytes until the connection closes or the time is over."""
        deadline = time.monotonic() + seconds
        try:
            while (left := deadline - time.monotonic()) > 0:
                self._socket.settimeout(left)
                if not self._read():
                    break
        except OSError:
            pass
        return self._came

    def half_close(self) -> None:
        """Close the sending half of the connection."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close with RST instead of FIN."""
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self.is_open = False
        with contextlib.suppress(OSError):
            self._socket.close()

    def _read(self) -> bool:
        piece = self._socket.recv(_PIECE)
        self._came += piece
        self.is_open = self.is_open and bool(piece)
        return bool(piece)

    def _skip_body(self, head: bytes) -> None:
        length = head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0].strip()
        chunked = b"transfer-encoding: chunked" in head
        left = int(length) if length.isdigit() else 0
        while (chunked and not self._came.endswith(b"0\r\n\r\n")) or len(self._came) < left:
            if not self._read():
                return
        self._came = b"" if chunked else self._came[left:]
        if b"\r\nconnection: close" in head:
            self.is_open = False
