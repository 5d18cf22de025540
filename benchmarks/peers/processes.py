"""Servers that start, pause while others are measured, and end without leaving processes or files."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

from plurum.benchmarks.peers.application import Job, job_variable
from plurum.benchmarks.peers.catalogue import Peer
from plurum.errors import ServerError
from plurum.serving import Server

__all__ = ["PeerServer", "PlurumServer", "free_port", "marked_processes"]

_MARK = "PLURUM_PEER_MARK"
_START_S, _END_S, _GONE_S, _POLL_S = 120.0, 15.0, 5.0, 0.05
# Triton's Python backend checks every 0.3 s whether its processes respond.
_SIGN_OF_LIFE_S = 1.0


class PeerServer:
    """A peer's application, which listens during a `with` block."""

    def __init__(self, peer: Peer, python: Path, job: Job) -> None:
        self._peer, self._python, self._job = peer, python, job
        self._mark = secrets.token_hex(8)
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None

    def __enter__(self) -> PeerServer:
        try:
            self._start()
            self._wait()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def address(self, kind: str) -> str:  # noqa: ARG002 - the other server has two
        """Return HOST:PORT of its only endpoint."""
        return f"127.0.0.1:{self._job.port}"

    def pause(self) -> None:
        """Stop all processes of the application."""
        _signal(marked_processes(_MARK, self._mark), signal.SIGSTOP)

    def resume(self) -> None:
        """Continue all processes of the application."""
        _signal(marked_processes(_MARK, self._mark), signal.SIGCONT)

    def stop(self) -> None:
        """End the application: send SIGTERM, then kill every process that is left and remove its files."""
        self.resume()
        if self._process is not None:
            # Before the first process ends: afterwards the children that it forgets have other parents.
            family = marked_processes(_MARK, self._mark)
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_S)
            deadline = time.monotonic() + _GONE_S
            while (left := family & _running() | marked_processes(_MARK, self._mark)) and time.monotonic() < deadline:
                _signal(left, signal.SIGKILL)
                time.sleep(_POLL_S)
            self._process.wait()
            self._process = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self) -> None:
        # Short: sockets lie below it, and their paths may have at most 107 characters.
        self._folder = Path(tempfile.mkdtemp(prefix="plurum_"))
        variables = {name: value.format(folder=self._folder) for name, value in self._peer.environment}
        path = f"{self._python.parent}{os.pathsep}{os.environ.get('PATH', '')}"
        # Settings of other programs would change the measurement.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "PYTHON"))}
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [self._python, *self._peer.words(self._job)],
                cwd=self._folder,
                env=inherited | variables | job_variable(self._job) | {"PATH": path, _MARK: self._mark},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _wait(self) -> None:
        deadline = time.monotonic() + _START_S
        while True:
            if self._process is None or self._process.poll() is not None:
                raise ServerError(f"{self._peer.title} exited: {self._last_line()}")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._job.port), 1):
                return
            if time.monotonic() > deadline:
                raise ServerError(f"{self._peer.title} did not listen within {_START_S:g} s: {self._last_line()}")
            time.sleep(_POLL_S)

    def _last_line(self) -> str:
        lines = [] if self._folder is None else (self._folder / "log").read_text(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "no message")


class PlurumServer:
    """Triton, as `plurum serve` starts it."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def address(self, kind: str) -> str:
        """Return HOST:PORT of Triton's HTTP or gRPC."""
        urls = self._server.urls
        return urls.http.removeprefix("http://") if kind == "kserve" else urls.grpc

    @property
    def metrics_url(self) -> str:
        """URL of Triton's metrics."""
        return self._server.urls.metrics

    def pause(self) -> None:
        """Stop all processes, Triton first: it would give up the processes of its models if it found them stopped."""
        triton, models = self._processes()
        _signal(triton, signal.SIGSTOP)
        _signal(models, signal.SIGSTOP)

    def resume(self) -> None:
        """Continue all processes, Triton last, when the processes of its models respond again."""
        triton, models = self._processes()
        _signal(models, signal.SIGCONT)
        time.sleep(_SIGN_OF_LIFE_S)
        _signal(triton, signal.SIGCONT)

    def _processes(self) -> tuple[set[psutil.Process], set[psutil.Process]]:
        found = set(map(psutil.Process, self._server.processes()))
        triton = {one for one in found if Path(one.exe()).name == "tritonserver"}
        return triton, found - triton


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def marked_processes(variable: str, value: str) -> set[psutil.Process]:
    """Return the processes that were started with this environment variable, and all their descendants.

    A descendant may have written its title over its environment.
    """
    found, running = set[psutil.Process](), _running()
    for process in running:
        # Processes may exit meanwhile.
        with contextlib.suppress(psutil.Error):
            if process.environ().get(variable) == value:
                found |= {process, *process.children(recursive=True)}
    return found & running


def _running() -> set[psutil.Process]:
    return {one for one in psutil.process_iter(["status"]) if one.info["status"] != psutil.STATUS_ZOMBIE}


def _signal(processes: Iterable[psutil.Process], number: int) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)
