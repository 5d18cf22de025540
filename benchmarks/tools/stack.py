"""What faces a network in production: `plurum serve` and `plurum gateway` before it, each a process of its own."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType

from plurum.benchmarks.tools.machine import processor_s
from plurum.errors import ServerError
from plurum.serving.triton.metrics import metrics_at
from plurum.serving.triton.processes import ServerProcesses

__all__ = ["Stack"]

_FREE = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", "--status-port", "0")
_END_S = 60.0


class Stack:
    """A watched server and its gateway, to be used in a `with` block.

    Args:
        repository: What is served.
        options: Of `plurum gateway`, beside where Triton is and free ports.

    Attributes:
        urls: Where the server answers: http, grpc, metrics, status.
        gateway: Where the gateway answers, with scheme.
        metrics: Where the gateway's metrics are.

    Raises:
        ServerError: one of them did not start.
    """

    def __init__(self, repository: Path, *options: str) -> None:
        self._log = Path(tempfile.mkstemp(prefix="plurum_stack_")[1])
        self._processes: list[subprocess.Popen[str]] = []
        try:
            self.urls = self._started("serve", str(repository), *_FREE)
            near = ("--triton", self.urls["grpc"], "--port", "0", "--metrics-port", "0")
            urls = self._started("gateway", *near, *options)
        except BaseException:
            self._end()
            raise
        self.gateway, self.metrics = urls["http"], urls["metrics"]

    def __enter__(self) -> Stack:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def said(self) -> str:
        """Return what both have written to standard error."""
        return self._log.read_text()

    def faults(self) -> dict[str, int]:
        """Return what the supervisor has noticed and done so far: restarts of Triton, models loaded anew, by kind."""
        counts = metrics_at(f"{self.urls['status']}/metrics")
        wanted = re.compile(r"plurum_(faults|model_reloads|restarts)_total")
        return {name: int(count) for name, count in counts.items() if count and wanted.match(name)}

    def processes(self) -> dict[int, str]:
        """Return the ids of all processes, and what each is: supervisor, gateway, triton, or a model's name."""
        serve, gateway = self._processes
        named = {serve.pid: "supervisor", gateway.pid: "gateway"}
        server = ServerProcesses.started_by(serve.pid)
        if server is None:
            raise ServerError(f"Triton is not running: {self.said()}")
        stubs = server.stubs()
        return named | {process.pid: stubs.get(process, "triton") for process in server.find()}

    def memory_bytes(self) -> dict[str, int]:
        """Return the memory of each kind of process, bytes: its own and its share of what several use (PSS)."""
        held: dict[str, int] = {}
        for process, name in self.processes().items():
            (kib,) = re.findall(r"^Pss:\s+(\d+)", Path(f"/proc/{process}/smaps_rollup").read_text(), re.MULTILINE)
            held[name] = held.get(name, 0) + 1024 * int(kib)
        return held

    def gateway_peak_bytes(self) -> int:
        """Return the most memory that the gateway has had at once, bytes (resident)."""
        status = Path(f"/proc/{self._processes[1].pid}/status").read_text()
        return 1024 * int(re.findall(r"VmHWM:\s+(\d+)", status)[0])

    def cpu_s(self) -> dict[str, float]:
        """Return for how long processors have been busy so far: with the gateway, and with the server."""
        busy = {"gateway": 0.0, "server": 0.0}
        for process, name in self.processes().items():
            busy["gateway" if name == "gateway" else "server"] += processor_s(process)
        return busy

    def _started(self, *words: str) -> dict[str, str]:
        with self._log.open("a") as log:
            command = [sys.executable, "-m", "plurum", *words, "--json"]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        self._processes.append(process)
        line = process.stdout.readline() if process.stdout is not None else ""
        if not line:
            raise ServerError(f"plurum {words[0]} did not start: {self.said()}")
        urls: dict[str, str] = json.loads(line)
        return urls

    def _end(self) -> None:
        for process in reversed(self._processes):
            with process:
                process.send_signal(signal.SIGTERM)
                process.wait(_END_S)
        self._log.unlink()
