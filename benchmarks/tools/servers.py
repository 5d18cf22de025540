"""Servers to measure: Triton on free ports, and `plurum` commands in processes of their own."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from plurum.benchmarks.tools.machine import memory_bytes, peak_bytes, processor_s
from plurum.errors import ServerError
from plurum.serving import Server, ServerSettings
from plurum.serving.triton.metrics import metrics_at
from plurum.serving.triton.processes import ServerProcesses

__all__ = ["GatewayStack", "PlurumProcess", "port_of", "roles_of", "serve_behind_gateway", "server_of", "triton_of"]

# Option that sets each port, by command and by the port's name in the line that the command prints.
_PORTS = {
    "serve": {"http": "--http-port", "grpc": "--grpc-port", "metrics": "--metrics-port", "status": "--status-port"},
    "gateway": {"http": "--port", "metrics": "--metrics-port"},
    "ui": {"page": "--port"},
}
_END_S = 60.0


def server_of(repository: Path) -> Server:
    """Return a Triton server of `repository` on free ports, to be used in a `with` block."""
    return Server(repository, ServerSettings(http_port=0, grpc_port=0, metrics_port=0))


def port_of(url: str) -> int:
    """Return the port of a URL with or without a scheme."""
    return int(urlsplit(url if "//" in url else f"//{url}").port or 0)


class PlurumProcess:
    """A `plurum` command in a process of its own on free ports, to be used in a `with` block.

    Args:
        command: Command that listens: `serve`, `gateway` or `ui`.
        arguments: Arguments of the command except ports.
        log: File that receives standard error; None for a temporary file, which is removed at the end.
        environment: Environment variables of the process; None for those of this process.

    Attributes:
        urls: URLs at which the process listens, by name of the port.

    Raises:
        ServerError: The process did not start.
    """

    def __init__(
        self, command: str, *arguments: object, log: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        self._command, self._arguments, self._environment = command, arguments, environment
        self._is_temporary = log is None
        self._log = log or Path(tempfile.mkstemp(prefix=f"plurum_{command}_")[1])
        self.urls: dict[str, str] = {}
        self.start()

    def __enter__(self) -> PlurumProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        has_ended = self.stop()
        if kind is not None:
            # Only the log says why.
            sys.stderr.write(self.log())
        if self._is_temporary:
            self._log.unlink()
        if not has_ended and kind is None:
            raise ServerError(f"plurum {self._command} did not end within {_END_S:g} s")

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def is_running(self) -> bool:
        """Return True if the process has not exited."""
        return self._process.poll() is None

    def log(self) -> str:
        """Return what the process has written to standard error."""
        return self._log.read_text(errors="replace")

    def start(self) -> None:
        """Start the process, at the ports it had before if it was started before."""
        command = [sys.executable, "-m", "plurum", self._command, *map(str, self._arguments)]
        for name, option in _PORTS[self._command].items():
            command += [option, str(port_of(self.urls.get(name, "")))]
        if self._command != "ui":
            command.append("--json")
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, env=self._environment
            )
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        if not line:
            self.stop()
            raise ServerError(f"plurum {self._command} did not start: {self.log()[-2000:]}")
        self.urls = {"page": line.split()[-1]} if self._command == "ui" else json.loads(line)

    def stop(self) -> bool:
        """End the process; return False if it had to be killed."""
        with self._process as process:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                return False
        return True

    def restart(self) -> None:
        """End the process and start it again at the same ports."""
        self.stop()
        self.start()


class GatewayStack:
    """`plurum serve` behind `plurum gateway`, as in production; `serve_behind_gateway` starts both.

    Attributes:
        urls: URLs of the server: http, grpc, metrics, status.
        gateway: URL of the gateway.
        metrics: URL of the gateway's metrics.
    """

    def __init__(self, serve: PlurumProcess, gateway: PlurumProcess) -> None:
        self._serve, self._gateway = serve, gateway
        self.urls, self.gateway, self.metrics = serve.urls, gateway.urls["http"], gateway.urls["metrics"]

    def faults(self) -> dict[str, int]:
        """Return how often the supervisor noticed a fault, restarted Triton or reloaded a model, by metric."""
        counts = metrics_at(f"{self.urls['status']}/metrics")
        names = re.compile(r"plurum_(faults|model_reloads|restarts)_total")
        return {name: int(count) for name, count in counts.items() if count and names.match(name)}

    def memory_bytes(self) -> dict[str, int]:
        """Return the memory of each kind of process, bytes: its own and its share of what several use (PSS)."""
        return memory_bytes(self._processes())

    def gateway_peak_bytes(self) -> int:
        """Return the highest resident memory of the gateway so far, bytes."""
        return peak_bytes(self._gateway.pid)

    def cpu_s(self) -> dict[str, float]:
        """Return the processor time used so far by the gateway and by the server, seconds."""
        busy = {"gateway": 0.0, "server": 0.0}
        for process, name in self._processes().items():
            busy["gateway" if name == "gateway" else "server"] += processor_s(process)
        return busy

    def _processes(self) -> dict[int, str]:
        return {self._gateway.pid: "gateway"} | roles_of(self._serve)


@contextmanager
def serve_behind_gateway(repository: Path, *options: str) -> Iterator[GatewayStack]:
    """Start `plurum serve` and `plurum gateway` before it, and end both.

    Args:
        repository: Repository to serve.
        options: Options of `plurum gateway` except ports.

    Raises:
        ServerError: One of the two did not start, or did not end.
    """
    with (
        PlurumProcess("serve", repository) as serve,
        PlurumProcess("gateway", "--triton", serve.urls["grpc"], *options) as gateway,
    ):
        yield GatewayStack(serve, gateway)


def triton_of(serve: PlurumProcess) -> ServerProcesses:
    """Return the processes of the Triton that `plurum serve` has started.

    Raises:
        ServerError: Triton is not running.
    """
    server = ServerProcesses.started_by(serve.pid)
    if server is None:
        raise ServerError(f"Triton is not running: {serve.log()}")
    return server


def roles_of(serve: PlurumProcess) -> dict[int, str]:
    """Return the role of each process of `plurum serve` by its id: supervisor, triton, or the name of a model."""
    server = triton_of(serve)
    stubs = server.stubs()
    return {serve.pid: "supervisor"} | {one.pid: stubs.get(one, "triton") for one in server.find()}
