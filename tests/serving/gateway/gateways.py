"""Gateways for tests, each a process of its own with no Triton behind it, and what it takes."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["LIVE", "Process", "answer_from", "lonely_gateway"]

LIVE = b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n"

_SCRIPT = """
import json, sys
from dataclasses import asdict
from plurum.serving.gateway import GatewaySettings, run_gateway
options = {"triton": "127.0.0.1:1", "port": 0, "metrics_port": 0} | json.loads(sys.argv[1])
run_gateway(GatewaySettings(**options), lambda urls: print(json.dumps(asdict(urls)), flush=True))
"""


@dataclass(frozen=True)
class Process:
    """A gateway.

    Attributes:
        process: Its process.
        place: Host and port.
        metrics: Where its metrics are.
        secure: Whether it speaks TLS.
    """

    process: subprocess.Popen[str]
    place: tuple[str, int]
    metrics: str
    secure: bool

    def resident_mib(self, kind: str = "RSS") -> float:
        """Return resident memory in MiB: RSS now, or the most so far (HWM)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(rf"Vm{kind}:\s+(\d+)", status)[0]) / 1024

    def connection(self, timeout_s: float = 30) -> socket.socket:
        """Return a new connection, over TLS where the gateway speaks that."""
        plain = socket.create_connection(self.place, timeout=timeout_s)
        if not self.secure:
            return plain
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context.wrap_socket(plain)

    def send(self, *pieces: bytes) -> bytes:
        """Return what comes back for these pieces until the answer's end, or the connection's."""
        with contextlib.closing(self.connection()) as connection:
            with contextlib.suppress(OSError):
                for piece in pieces:
                    connection.sendall(piece)
            return answer_from(connection)


def answer_from(connection: socket.socket) -> bytes:
    """Return one answer with a length, or as much of it as came."""
    came = b""
    with contextlib.suppress(OSError):
        while piece := connection.recv(1 << 16):
            came += piece
            head, end, body = came.partition(b"\r\n\r\n")
            length = re.findall(rb"(?i)\r\ncontent-length: (\d+)", head)
            if end and length and len(body) >= int(length[0]):
                break
    return came


@contextmanager
def lonely_gateway(*before: str, log: int = subprocess.DEVNULL, **options: object) -> Iterator[Process]:
    """Start a gateway that no Triton stands behind.

    Args:
        before: What stands before its command.
        log: Where its standard error goes.
        options: Of the gateway.
    """
    command = [*before, sys.executable, "-c", _SCRIPT, json.dumps(options)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process:
        try:
            assert process.stdout is not None
            urls = json.loads(process.stdout.readline())
            place = ("127.0.0.1", int(urls["http"].rpartition(":")[2]))
            yield Process(process, place, urls["metrics"], urls["http"].startswith("https"))
        finally:
            process.kill()
