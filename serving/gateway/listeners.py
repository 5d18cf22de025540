"""Listening sockets of a gateway."""

from __future__ import annotations

import ipaddress
import os
import socket

from plurum.errors import ServerError

__all__ = ["is_loopback", "open_listener"]


def open_listener(host: str, port: int, option: str) -> socket.socket:
    """Return a socket that listens on `host` and `port`.

    Raises:
        ServerError: the port can't be listened on; the message names `option` as the one to change.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        # The socket's own message repeats the address; a failed name lookup has a negative errno.
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise ServerError(
            f"{option}: expected a port that can be listened on, got {port} on {host}: {reason}. "
            f"Stop the program that uses it, or change {option}."
        ) from error


def is_loopback(one: socket.socket) -> bool:
    """Return True if only this machine can reach the listening socket."""
    return ipaddress.ip_address(one.getsockname()[0]).is_loopback
