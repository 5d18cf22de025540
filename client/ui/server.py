"""Run the page as a process."""

from __future__ import annotations

import logging
from collections.abc import Callable

from plurum.client.ui.app import ui_app
from plurum.client.ui.connection import Connection
from plurum.client.ui.page_connection import PageConnection
from plurum.client.ui.store import ReviewStore
from plurum.evidence import Evidence
from plurum.settings.client import UiSettings
from plurum.web.server import WebServer, http_url, is_loopback, open_listener, server_config

__all__ = ["run_ui"]

_log = logging.getLogger(__name__)
_DRAIN_S = 5


def run_ui(
    connection: Connection,
    store: ReviewStore,
    evidence: Evidence | None,
    settings: UiSettings,
    announce: Callable[[str], None],
) -> None:
    """Serve the page until SIGINT, SIGTERM or SIGHUP.

    Args:
        connection: Connection to the served ensemble, which may be unavailable.
        store: Store of reviews.
        evidence: Source of Grad-CAM maps; None shows none.
        settings: Options of the page.
        announce: Function that is called with the page's URL when it accepts requests.

    Raises:
        ServerError: the port can't be listened on.
    """
    with open_listener(settings.host, settings.port) as listener:
        if not is_loopback(listener):
            _log.warning(
                "there is no login: everyone who can reach %s sees all images that were sent to review and may decide "
                "about them, and the images cross the network unencrypted. Put a proxy with a login and TLS in front.",
                settings.host,
            )
        config = server_config(
            ui_app(connection, store, evidence, settings),
            loop="asyncio",
            http=PageConnection,
            timeout_graceful_shutdown=_DRAIN_S,
        )
        url = http_url(settings.host, listener.getsockname()[1])
        WebServer(config, lambda: announce(url)).run(sockets=[listener])
