"""The page as a process: its socket, its end."""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from plurum.client.ui.app import ui_app
from plurum.client.ui.connection import Connection
from plurum.client.ui.page_connection import PageConnection
from plurum.client.ui.store import ReviewStore
from plurum.errors import ServerError
from plurum.evidence import Evidence
from plurum.settings.client import UiSettings

__all__ = ["run_ui"]

_log = logging.getLogger(__name__)
_DRAIN_S = 5


class _Uvicorn(uvicorn.Server):
    """Ends well on SIGINT, SIGTERM and SIGHUP, where uvicorn would drain and then raise the signal again."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Say that it answers once it does, and takes signals."""
        await super().startup(sockets)
        # Its terminal was closed; under nohup that is ignored.
        if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
            signal.signal(signal.SIGHUP, self.handle_exit)
        self._started()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 (uvicorn's name)
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


def run_ui(
    connection: Connection,
    store: ReviewStore,
    evidence: Evidence | None,
    settings: UiSettings,
    announce: Callable[[str], None],
) -> None:
    """Show the page until SIGINT, SIGTERM or SIGHUP.

    Args:
        connection: To the served ensemble, which may be away.
        store: Of reviews.
        evidence: Where members looked; None shows none.
        settings: Options.
        announce: Called with the page's URL once its socket listens.

    Raises:
        ServerError: the port can't be listened on.
    """
    with _listener(settings) as sock:
        host, port = sock.getsockname()[:2]
        if not ipaddress.ip_address(host).is_loopback:
            _log.warning(
                "there is no login: whoever reaches %s sees all images sent to review and may decide about them, and "
                "they cross the network unencrypted; put a proxy with a login and TLS before it",
                settings.host,
            )
        config = uvicorn.Config(
            ui_app(connection, store, evidence, settings),
            loop="asyncio",
            http=PageConnection,
            ws="none",
            lifespan="on",
            log_config=None,
            log_level=logging.ERROR,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=_DRAIN_S,
        )
        url = f"http://{f'[{settings.host}]' if ':' in settings.host else settings.host}:{port}"
        _Uvicorn(config, lambda: announce(url)).run(sockets=[sock])


def _listener(settings: UiSettings) -> socket.socket:
    try:
        family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((settings.host, settings.port), family=family)
    except OSError as error:
        # The socket's own words repeat the address; a name that is none has a negative number.
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise ServerError(
            f"port {settings.port} on {settings.host} can't be listened on: {reason}; end what uses it or change --port"
        ) from error
