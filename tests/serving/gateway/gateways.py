"""Gateways for tests, each a separate process."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from plurum.serving.triton.metrics import metrics_at
from tests.cli.processes import plurum_command, started
from tests.serving.waiting import wait_until

__all__ = [
    "LIVE",
    "Gateway",
    "Reply",
    "form",
    "gateway",
    "lonely_gateway",
    "response_from",
    "run_scene",
    "wait_until_ready",
]

LIVE = b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n"

_SCRIPT = """
import json, sys
from dataclasses import asdict
from plurum.serving.gateway import GatewaySettings, run_gateway
options = {"triton": "127.0.0.1:1", "port": 0, "metrics_port": 0} | json.loads(sys.argv[1])
run_gateway(GatewaySettings(**options), lambda urls: print(json.dumps(asdict(urls)), flush=True))
"""


@dataclass(frozen=True)
class Reply:
    """Response to a request."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Gateway:
    """A running gateway.

    Attributes:
        process: Process of the gateway.
        http: URL of the API.
        metrics: URL of the metrics.
    """

    process: subprocess.Popen[str]
    http: str
    metrics: str

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.http)
        return str(parts.hostname), int(parts.port or 0)

    def connection(self, timeout_s: float = 30) -> socket.socket:
        """Return a new connection, over TLS if the gateway uses it."""
        plain = socket.create_connection(self.address, timeout=timeout_s)
        return _context().wrap_socket(plain) if self.http.startswith("https") else plain

    def send(self, method: str, path: str, body: Any = b"", **headers: str) -> Reply:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection = http.client.HTTPConnection(*self.address, timeout=40)
        if self.http.startswith("https"):
            connection = http.client.HTTPSConnection(*self.address, timeout=40, context=_context())
        with contextlib.closing(connection):
            connection.request(method, path, body, named)
            response = connection.getresponse()
            return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())

    def predict(self, image: bytes, **headers: str) -> Reply:
        return self.send("POST", "/predict", image, **headers)

    def exchange(self, *pieces: bytes) -> bytes:
        """Send these bytes, and return the first response, or what came of it before the connection was closed."""
        with contextlib.closing(self.connection()) as connection:
            # The gateway may respond and close before it has received everything.
            with contextlib.suppress(OSError):
                for piece in pieces:
                    connection.sendall(piece)
            return response_from(connection)

    def raw(self, sent: bytes) -> bytes:
        """Send these bytes, and return everything that comes back until the gateway closes the connection."""
        back = b""
        with self.connection(10) as connection:
            with contextlib.suppress(ConnectionError):
                connection.sendall(sent)
            with contextlib.suppress(ConnectionError):
                while piece := connection.recv(1 << 16):
                    back += piece
        return back

    def count(self, sample: str) -> float:
        return metrics_at(self.metrics).get(f"plurum_gateway_{sample}", 0.0)

    def refused_connections(self, reason: str) -> float:
        return self.count(f'connections_refused_total{{reason="{reason}"}}')

    def resident_mib(self, kind: str = "RSS") -> float:
        """Return resident memory in MiB: the current value (RSS) or the maximum so far (HWM)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(rf"Vm{kind}:\s+(\d+)", status)[0]) / 1024


def _context() -> ssl.SSLContext:
    """Return a context that accepts the tests' own certificates."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def response_from(connection: socket.socket) -> bytes:
    """Return one response with a length, or as much of it as came."""
    received = b""
    with contextlib.suppress(OSError):
        while piece := connection.recv(1 << 16):
            received += piece
            head, end, body = received.partition(b"\r\n\r\n")
            length = re.findall(rb"(?i)\r\ncontent-length: (\d+)", head)
            if end and length and len(body) >= int(length[0]):
                break
    return received


@contextlib.contextmanager
def gateway(triton: str, *options: str) -> Iterator[Gateway]:
    """Run `plurum gateway` in front of a server."""
    command = plurum_command("gateway", "--triton", triton, "--port", 0, "--metrics-port", 0, "--json", *options)
    with _running(command, subprocess.PIPE) as one:
        yield one
        one.process.terminate()
        one.process.wait(20)


@contextlib.contextmanager
def lonely_gateway(*before: str, log: int = subprocess.DEVNULL, **options: object) -> Iterator[Gateway]:
    """Run a gateway without a server behind it.

    Args:
        before: Command to put before the gateway's own.
        log: Destination of its standard error.
        options: Settings of the gateway.
    """
    with _running([*before, sys.executable, "-c", _SCRIPT, json.dumps(options)], log) as one:
        yield one


@contextlib.contextmanager
def _running(command: list[str], log: int) -> Iterator[Gateway]:
    with started(command, stderr=log) as (process, line):
        yield Gateway(process, **json.loads(line))


def run_scene(scene: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine, for at most 10 s."""
    asyncio.run(asyncio.wait_for(scene(), 10))


def wait_until_ready(one: Gateway) -> None:
    wait_until(lambda: one.send("GET", "/v2/health/ready").status == 200, 20)


def form(*files: tuple[str, str, bytes]) -> tuple[bytes, str]:
    """Return a form with files (field, name, content), and its content type."""
    parts = [
        f'--b\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'.encode() + data + b"\r\n"
        for field, name, data in files
    ]
    return b"".join(parts) + b"--b--\r\n", "multipart/form-data; boundary=b"
