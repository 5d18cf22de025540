"""What is attacked: `plurum serve`, a gateway with and one without TLS before it, and `plurum ui`, each a process."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

import psutil

from plurum.benchmarks.claims.hostile.wires import Place
from plurum.errors import ServerError

__all__ = ["Services"]

_PORTS = ("http", "grpc", "metrics", "status")
_END_S = 60.0


class Services:
    """The processes under attack, to be used in a `with` block; what they write lies below one folder.

    Args:
        repository: What is served.
        folder: Empty; its sub-folder `tmp` is their TMPDIR.

    Attributes:
        key: What the gateway with TLS asks for.
        ended: How often one of them ended by itself and was started again.
        stuck: Those that did not end within a minute when they were told to, and were killed.

    Raises:
        ServerError: one of them did not start.
    """

    def __init__(self, repository: Path, folder: Path) -> None:
        self._repository, self._folder = repository, folder
        self.temporary = folder / "tmp"
        self.key = secrets.token_hex(32)
        self.ended = 0
        self.stuck: list[str] = []
        self._urls: dict[str, dict[str, str]] = {}
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self._prepare()
        try:
            for name in ("serve", "gateway", "gateway-tls", "ui"):
                self._start(name)
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> Services:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    @property
    def places(self) -> dict[str, Place]:
        """Each port, by name: http, grpc, metrics, status, gateway, gateway-tls, gateway-metrics, page."""
        places = {name: Place(_port(self._urls["serve"][name])) for name in _PORTS}
        places["gateway"] = Place(_port(self._urls["gateway"]["http"]))
        places["gateway-metrics"] = Place(_port(self._urls["gateway"]["metrics"]))
        places["gateway-tls"] = Place(_port(self._urls["gateway-tls"]["http"]), tls=True)
        places["page"] = Place(_port(self._urls["ui"]["page"]))
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

    def revive(self) -> list[str]:
        """Start again what has ended by itself, at the same ports; return its names."""
        dead = [name for name, process in self._processes.items() if process.poll() is not None]
        for name in dead:
            self.ended += 1
            self._start(name)
        return dead

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

    def _words(self, name: str) -> list[str]:
        old = self._urls.get(name, {})
        if name == "serve":
            ports = [word for port in _PORTS for word in (f"--{port}-port", str(_port(old.get(port))))]
            return ["serve", str(self._repository), *ports, "--json"]
        if name == "ui":
            store = str(self._folder / "reviews")
            return ["ui", "--url", self._urls["serve"]["grpc"], "--store", store, "--port", str(_port(old.get("page")))]
        ports = ["--port", str(_port(old.get("http"))), "--metrics-port", str(_port(old.get("metrics")))]
        words = ["gateway", "--triton", self._urls["serve"]["grpc"], *ports, "--receive-s", "3", "--json"]
        if name == "gateway-tls":
            files = {option: str(self._folder / file) for option, file in _TLS.items()}
            words += [word for pair in files.items() for word in pair]
        return words

    def _start(self, name: str) -> None:
        # The folders of this process are kept: a cache that is there is used.
        environment = os.environ | {"TMPDIR": str(self.temporary)}
        with (self._folder / f"{name}.log").open("a") as log:
            command = [sys.executable, "-m", "plurum", *self._words(name)]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
        self._processes[name] = process
        line = process.stdout.readline() if process.stdout is not None else ""
        if not line:
            raise ServerError(f"plurum {name} did not start: {self.log(name)[-2000:]}")
        self._urls[name] = {"page": line.split()[-1]} if name == "ui" else json.loads(line)

    def _end(self) -> None:
        for name, process in reversed(self._processes.items()):
            with process:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(_END_S)
                except subprocess.TimeoutExpired:
                    self.stuck.append(name)
                    process.kill()


_TLS = {"--keys": "keys", "--tls-cert": "cert.pem", "--tls-key": "key.pem"}


def _port(url: str | None) -> int:
    """Return the port of a URL with or without a scheme; 0, any free one, without a URL."""
    return 0 if url is None else int(urlsplit(url if "//" in url else f"//{url}").port or 0)
