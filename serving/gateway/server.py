"""Run a gateway as a process: sockets, signals and shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass

import uvicorn
from prometheus_client import MetricsHandler, disable_created_metrics

from plurum.errors import SettingsError
from plurum.regular_files import MAX_SECRET_BYTES, read_regular
from plurum.serving.gateway.app import gateway_app
from plurum.serving.gateway.connections.connection import connection_class
from plurum.serving.gateway.connections.handshakes import Handshakes
from plurum.serving.gateway.connections.keys import Keys, read_keys
from plurum.serving.gateway.metrics import GatewayMetrics
from plurum.serving.small_server import SmallHttpServer
from plurum.settings.serving import GatewaySettings
from plurum.web.server import WebServer, http_url, is_loopback, open_listener, server_config

__all__ = ["GatewayServer", "GatewayUrls", "run_gateway"]

_log = logging.getLogger(__name__)

# From glibc's malloc.h: larger allocations get separate pages, which return to the system when freed.
_M_MMAP_THRESHOLD, _OWN_PAGES_BYTES = -3, 1 << 20
# Number of new objects that triggers garbage collection.
_GARBAGE = 10_000


@dataclass(frozen=True)
class GatewayUrls:
    """URLs of a gateway.

    Attributes:
        http: URL of the API, with scheme.
        metrics: URL of the metrics page, with scheme and path.
    """

    http: str
    metrics: str


class GatewayServer(WebServer):
    """A web server whose TLS handshakes count as connections."""

    def __init__(self, config: uvicorn.Config, settings: GatewaySettings, metrics: GatewayMetrics) -> None:
        super().__init__(config)
        self._settings, self._metrics = settings, metrics
        self._accepting: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen; with TLS through `Handshakes`, which counts handshakes as connections."""
        if self.config.ssl is None or sockets is None:
            await super().startup(sockets)
            return
        await super().startup([])
        handshakes = Handshakes(
            self.config.ssl,
            self._protocol,
            lambda: len(self.server_state.connections),
            self._settings.max_connections,
            lambda reason: self._metrics.connections_refused.labels(reason).inc(),
            self._settings.receive_s / 3,
        )
        self._accepting = asyncio.create_task(handshakes.accept(sockets[0]))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more connections, and let the open ones finish."""
        if self._accepting is not None:
            self._accepting.cancel()
        await super().shutdown(sockets)

    def _protocol(self) -> asyncio.Protocol:
        made: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made


def run_gateway(settings: GatewaySettings, announce: Callable[[GatewayUrls], None]) -> None:
    """Serve requests until SIGINT, SIGTERM or SIGHUP; accepted requests are completed first.

    Args:
        settings: Settings of the gateway.
        announce: Function that is called when the sockets listen.

    Raises:
        ServerError: a port can't be listened on.
        SettingsError: the keys or certificates can't be used.
    """
    keys = read_keys(settings.keys) if settings.keys is not None else None
    _check_certificate(settings)
    # Creation times of all counters would double the page.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    metrics = GatewayMetrics()
    sock = open_listener(settings.host, settings.port)
    try:
        if not is_loopback(sock):
            _warn(settings, keys)
        app = gateway_app(settings, keys, metrics)
        config = server_config(
            app,
            loop="uvloop",
            http=connection_class(settings, metrics, app),
            timeout_keep_alive=settings.keep_alive_s,
            timeout_graceful_shutdown=settings.drain_s,
            ssl_certfile=settings.tls_cert,
            ssl_keyfile=settings.tls_key,
        )
        metrics_url = _serve_metrics(settings, metrics)
        scheme = "http" if settings.tls_cert is None else "https"
        announce(GatewayUrls(http_url(settings.host, sock.getsockname()[1], scheme), metrics_url))
        # Exclude all existing objects from garbage collection; reference counting frees those of a request.
        gc.freeze()
        gc.set_threshold(_GARBAGE)
        _give_bodies_own_pages()
        GatewayServer(config, settings, metrics).run(sockets=[sock])
    finally:
        sock.close()


def _give_bodies_own_pages() -> None:
    """Return the memory of bodies to the system; by default glibc keeps up to twice 32 MiB, and more in fragments."""
    # Other C libraries have no `mallopt`.
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _OWN_PAGES_BYTES)


def _serve_metrics(settings: GatewaySettings, metrics: GatewayMetrics) -> str:
    handler = MetricsHandler.factory(metrics.registry)
    server = SmallHttpServer(settings.metrics_host, settings.metrics_port, handler, "--metrics-port")
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return f"{http_url(settings.metrics_host, server.server_port)}/metrics"


def _check_certificate(settings: GatewaySettings) -> None:
    if settings.tls_cert is None or settings.tls_key is None:
        return
    try:
        for file in (settings.tls_cert, settings.tls_key):
            read_regular(file, MAX_SECRET_BYTES)
        # The empty password keeps OpenSSL from prompting at the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.tls_cert, settings.tls_key, password="")
    except (OSError, ValueError) as error:
        raise SettingsError(
            "--tls-cert, --tls-key: expected a certificate and its private key, in PEM and without a password, got "
            f"{settings.tls_cert} and {settings.tls_key}: {error.strerror if isinstance(error, OSError) else error}"
        ) from error


def _warn(settings: GatewaySettings, keys: Keys | None) -> None:
    if keys is None:
        _log.warning(
            "every client that reaches %s may send requests: list the permitted keys in a file and give --keys FILE",
            settings.host,
        )
    if settings.tls_cert is None:
        _log.warning(
            "images and keys cross the network unencrypted: give --tls-cert and --tls-key, or put a TLS proxy in "
            "front of %s",
            settings.host,
        )
