"""The attacked processes: `plurum serve`, a gateway with and one without TLS before it, and `plurum ui`."""

from __future__ import annotations

import os
import secrets
import subprocess
from pathlib import Path

import psutil

from plurum.benchmarks.claims.hostile.wires import ServerPort
from plurum.benchmarks.tools.servers import PlurumProcess, port_of
from plurum.errors import ServerError

__all__ = ["Services"]

_TLS = {"--keys": "keys", "--tls-cert": "cert.pem", "--tls-key": "key.pem"}


class Services:
    """The processes under attack, to be used in a `with` block; everything they write lies below one folder.

    Args:
        repository: Repository to serve.
        folder: Empty folder; its sub-folder `tmp` is their TMPDIR.

    Attributes:
        key: Key of the gateway with TLS.
        ended: Number of times that one of them exited by itself and was started again.
        stuck: Names of those that did not end within a minute after SIGTERM, and were killed.

    Raises:
        ServerError: One of them did not start.
    """

    def __init__(self, repository: Path, folder: Path) -> None:
        self._folder = folder
        self.temporary = folder / "tmp"
        self.key = secrets.token_hex(32)
        self.ended = 0
        self.stuck: list[str] = []
        self._processes: dict[str, PlurumProcess] = {}
        self._prepare()
        try:
            self._start("serve", "serve", repository)
            triton = self._processes["serve"].urls["grpc"]
            gateway = ("--triton", triton, "--receive-s", "3")
            self._start("gateway", "gateway", *gateway)
            files = [word for option, file in _TLS.items() for word in (option, folder / file)]
            self._start("gateway-tls", "gateway", *gateway, *files)
            self._start("ui", "ui", "--url", triton, "--store", folder / "reviews")
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Services:
        return self

    def __exit__(self, *_: object) -> None:
        self.stuck += [name for name, process in reversed(self._processes.items()) if not process.stop()]

    @property
    def places(self) -> dict[str, ServerPort]:
        """Each port, by name: http, grpc, metrics, status, gateway, gateway-tls, gateway-metrics, page."""
        urls = {name: process.urls for name, process in self._processes.items()}
        places = {name: ServerPort(port_of(url)) for name, url in urls["serve"].items()}
        places["gateway"] = ServerPort(port_of(urls["gateway"]["http"]))
        places["gateway-metrics"] = ServerPort(port_of(urls["gateway"]["metrics"]))
        places["gateway-tls"] = ServerPort(port_of(urls["gateway-tls"]["http"]), tls=True)
        places["page"] = ServerPort(port_of(urls["ui"]["page"]))
        return places

    def header(self) -> tuple[bytes, bytes]:
        """Return the header that opens management, name and value, as every user of the machine can read them."""
        serve = psutil.Process(self._processes["serve"].pid)
        for process in serve.children(recursive=True):
            for word in process.cmdline():
                if word.startswith("--grpc-restricted-protocol="):
                    name, _, value = word.partition(":")[2].partition("=")
                    return f"triton-grpc-protocol-{name}".encode(), value.encode()
        return b"admin-key", b""

    def revive(self) -> None:
        """Start again those that have exited by themselves, at the same ports."""
        for process in self._processes.values():
            if not process.is_running():
                self.ended += 1
                process.start()

    def log(self, name: str) -> str:
        """Return what a process has written to standard error so far."""
        return (self._folder / f"{name}.log").read_text(errors="replace")

    def _prepare(self) -> None:
        self.temporary.mkdir(mode=0o755)
        (self._folder / "keys").write_text(f"{self.key}\n")
        (self._folder / "keys").chmod(0o600)
        words = "req -x509 -days 2 -subj /CN=127.0.0.1 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
        pair = ("-keyout", str(self._folder / "key.pem"), "-out", str(self._folder / "cert.pem"))
        try:
            subprocess.run(["openssl", *words.split(), *pair], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise ServerError(f"openssl: a certificate for the gateway is needed, and it failed: {error}") from error

    def _start(self, name: str, command: str, *arguments: object) -> None:
        # The other variables stay: an existing cache is used.
        environment = os.environ | {"TMPDIR": str(self.temporary)}
        log = self._folder / f"{name}.log"
        self._processes[name] = PlurumProcess(command, *arguments, log=log, environment=environment)
