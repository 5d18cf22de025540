"""Run an ASGI application with uvicorn: socket, settings, signals, and time limits of connections."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn

from plurum.errors import port_error

__all__ = ["ConnectionClock", "WebServer", "http_url", "is_loopback", "open_listener", "server_config"]


class WebServer(uvicorn.Server):
    """A uvicorn server that exits normally on SIGINT, SIGTERM and SIGHUP, where uvicorn would re-raise the signal.

    A second SIGINT stops it at once. Under `nohup`, SIGHUP stays ignored.

    Args:
        config: Settings of uvicorn.
        started: Function that is called when the server accepts requests and signals.
    """

    def __init__(self, config: uvicorn.Config, started: Callable[[], None] = lambda: None) -> None:
        super().__init__(config)
        self._started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen, and report it."""
        await super().startup(sockets)
        self._started()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 (uvicorn's name)
        """Complete the requests in progress, and exit."""
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal arrives; requests in progress are completed first."""
        if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
            signal.signal(signal.SIGHUP, self.handle_exit)
        super().run(sockets)


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


def server_config(app: Callable[..., Any], **options: Any) -> uvicorn.Config:
    """Return uvicorn's settings for an application with lifespan events.

    Only uvicorn's errors are logged: a line for each invalid request would fill the disk.
    """
    return uvicorn.Config(
        app,
        ws="none",
        lifespan="on",
        log_config=None,
        log_level=logging.ERROR,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        **options,
    )


def open_listener(host: str, port: int, option: str = "--port") -> socket.socket:
    """Return a socket that listens on `host` and `port`.

    Raises:
        ServerError: the port can't be listened on; the message names `option` as the one to change.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise port_error(option, port, host, error) from error


def is_loopback(listener: socket.socket) -> bool:
    """Return True if only this machine can reach the listening socket."""
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def http_url(host: str, port: int, scheme: str = "http") -> str:
    """Return the URL of a server; an IPv6 address gets brackets."""
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
