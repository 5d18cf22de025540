"""A watched server as a process of its own, that can be ended and started again where it was."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

from plurum.errors import ServerError

__all__ = ["Served"]

_END_S = 60.0


class Served:
    """`plurum serve` of a repository on free ports, to be used in a `with` block.

    Args:
        repository: What is served.

    Attributes:
        urls: Where it answers: http, grpc, metrics, status.

    Raises:
        ServerError: it did not start.
    """

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self._log = Path(tempfile.mkstemp(prefix="plurum_served_")[1])
        self.urls: dict[str, str] = {}
        self._process = self._started()

    def __enter__(self) -> Served:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        self._log.unlink()

    def restart(self) -> None:
        """End it, and start it again at the same ports."""
        self._end()
        self._process = self._started()

    def triton(self) -> int:
        """Return the process id of its Triton."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text(encoding="ascii")
        if not children.split():
            raise ServerError("Triton is not running")
        return int(children.split()[0])

    def max_batch_size(self) -> int:
        """Return the most images that it takes in one request."""
        from plurum.client import EnsembleClient

        with EnsembleClient(self.urls["grpc"]) as client:
            return client.served.max_batch_size

    def _started(self) -> subprocess.Popen[str]:
        ports = [
            word
            for name in ("http", "grpc", "metrics", "status")
            for word in (f"--{name}-port", str(_port(self.urls.get(name))))
        ]
        with self._log.open("a") as log:
            command = [sys.executable, "-m", "plurum", "serve", str(self._repository), "--json", *ports]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        line = process.stdout.readline() if process.stdout is not None else ""
        if not line:
            process.wait(_END_S)
            raise ServerError(f"plurum serve did not start: {self._log.read_text()}")
        self.urls = json.loads(line)
        return process

    def _end(self) -> None:
        with self._process:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(_END_S)


def _port(url: str | None) -> int:
    """Return the port of a URL with or without a scheme; 0, any free one, without a URL."""
    return 0 if url is None else int(urlsplit(url if "//" in url else f"//{url}").port or 0)
