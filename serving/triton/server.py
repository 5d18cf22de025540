"""Start a Triton server, check it with a first inference, watch it, and stop it without leaving anything behind."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import astuple, dataclass
from pathlib import Path

import psutil

from plurum.errors import ServerError, needs_extra
from plurum.repository.listing import model_folders
from plurum.serving.installation import find_triton, lay_out
from plurum.serving.triton.admin import Admin
from plurum.serving.triton.certificates import check_certificates
from plurum.serving.triton.cores import usable_cores
from plurum.serving.triton.leftovers import OwnedFolder, sweep_environments, sweep_killed_servers, sweep_shared_memory
from plurum.serving.triton.log import TritonLog
from plurum.serving.triton.model_processes import ModelProcesses
from plurum.serving.triton.probe import Probe, ProbeError
from plurum.serving.triton.processes import MARK, ServerProcesses, is_alive
from plurum.serving.triton.served_models import ServedModels
from plurum.serving.triton.settings import Ports, claim_ports, find_exposures, server_arguments
from plurum.serving.triton.surroundings import (
    check_folder,
    check_machine,
    check_names,
    check_shared_memory,
    name_failures,
)
from plurum.settings.serving import ServerSettings
from plurum.spec import Ensemble, read_ensemble

__all__ = ["Server", "Urls"]

_log = logging.getLogger(__name__)

_POLL_S = 0.05
# Triton 2.51 can crash while it loads Python models on a busy machine.
_STARTS = 3
# Time to unload the models, in addition to Triton's own time-out for requests in flight.
_UNLOAD_S = 5.0
_FLUSH_S = 0.2
_LAUNCHER = Path(__file__).with_name("launcher.py")


@dataclass(frozen=True)
class Urls:
    """Addresses of a server's endpoints.

    Attributes:
        http: URL of the HTTP endpoint, with scheme.
        grpc: HOST:PORT of the gRPC endpoint; with TLS it starts with `grpcs://`.
        metrics: URL of the metrics page, with scheme and path.
    """

    http: str
    grpc: str
    metrics: str


class Server:
    """A Triton server of a model repository, for use in a `with` block; inside the block it serves requests.

    The thread that starts a server must outlive it: when that thread ends, the kernel terminates Triton.

    Args:
        repository: Model repository to serve.
        settings: Addresses, ports and time-outs; None uses the defaults.
        release: Tag appended to the names of the repository's models, so that models of another release can be loaded
            beside them. The release's ensembles are public under their own names too. Empty for none.

    Attributes:
        name: Prefix of the server's shared memory; it also identifies the server's processes.
        log: Log of Triton; its file is removed at the end unless the server failed.
    """

    def __init__(self, repository: Path, settings: ServerSettings | None = None, release: str = "") -> None:
        self.name = f"plurum_{secrets.token_hex(6)}_"
        self.log = TritonLog(Path(tempfile.gettempdir()) / f"{self.name}triton.log")
        self._repository = repository
        self._settings = settings or ServerSettings()
        self._release = release
        self._ports: Ports | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._processes: ServerProcesses | None = None
        self._folder: OwnedFolder | None = None
        self._ensemble: Ensemble | None = None
        self._launched_s = self._ready_s = 0.0
        self._ready = False
        self._failed = False

    def __enter__(self) -> Server:
        for left in reversed(range(_STARTS)):
            self.start()
            try:
                self.wait_ready()
            except BaseException as error:
                deserves_another = isinstance(error, ServerError) and self._has_failed_by_chance()
                self.stop()
                if not (deserves_another and left):
                    raise
                _log.warning("starting Triton again: %s", error)
            else:
                break
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def urls(self) -> Urls:
        """Addresses of the server's endpoints.

        Raises:
            ServerError: the server was not started.
        """
        if self._ports is None:
            raise ServerError("the server was not started")
        host, ports = self._settings.host, self._ports
        scheme = "" if self._settings.grpc_tls is None else "grpcs://"
        return Urls(
            http=f"http://{host}:{ports.http}",
            grpc=f"{scheme}{self._settings.grpc_address}:{ports.grpc}",
            metrics=f"http://{host}:{ports.metrics}/metrics",
        )

    def start(self) -> None:
        """Check the repository and the machine, then start Triton; it is not ready when this returns.

        Raises:
            MetadataError: the repository's `ensemble.json` is broken.
            MissingExtraError: the extra `serving` is not installed.
            RepositoryError: `repository` is not a model repository, or a config in it can't be read.
            ServerError: no Triton was found, it can't run here, a port is in use, or the certificates can't be used.
        """
        try:
            with name_failures():
                self._launch()
        except BaseException:
            self.stop()
            raise

    def wait_ready(self) -> None:
        """Wait until the ensemble has completed an inference or, without an ensemble, until Triton is ready.

        Raises:
            ServerError: the server exited, returned an error, or exceeded its start time-out.
        """
        deadline = time.monotonic() + self._settings.start_timeout_s
        # A server that took one of the ports in the meantime would report ready, too.
        while not (self._admin.is_ready() and self._is_listening()):
            self.check()
            if time.monotonic() > deadline:
                raise self._failure(f"was not ready after {self._settings.start_timeout_s:g} s")
            time.sleep(_POLL_S)
        self._check_inference(max(1.0, deadline - time.monotonic()))
        self._models.processes.watch(self._staged.configs)
        self._ready, self._ready_s = True, time.time()

    def check(self) -> None:
        """Forward Triton's new log lines, and check that Triton still runs.

        Raises:
            ServerError: Triton has exited, or was not started.
        """
        self.log.forward()
        if self._process is None:
            raise ServerError("the server was not started")
        # `is_alive` kills a stopped Triton (SIGSTOP); the next check reports it.
        with contextlib.suppress(psutil.Error):
            is_alive(psutil.Process(self._process.pid))
        code = self._process.poll()
        if code is not None:
            raise self._failure(f"{'exited unexpectedly' if self._ready else 'did not start'} (exit code {code})")

    @property
    def models(self) -> ServedModels:
        """Models of the started server, to reload them and to change releases."""
        return self._models

    def probe(self) -> Probe | None:
        """Return a probe of the server's ensembles, or None if the repository has no ensemble."""
        public = [name for name in self._staged.configs if not (self._release and "-" in name)]
        return None if self._ensemble is None else Probe(self.urls.http, self._ensemble, public)

    @property
    def max_batch_size(self) -> int:
        """Largest batch that any of the models accepts; at least 1."""
        return max((config.max_batch_size for config in self._staged.configs.values()), default=1) or 1

    def processes(self) -> list[int]:
        """Return the process ids of Triton and of its Python models and backends."""
        return [] if self._processes is None else [process.pid for process in self._processes.find()]

    def stubs(self) -> dict[int, str]:
        """Return the model of each process of a Python model or backend, by process id."""
        found = {} if self._processes is None else self._processes.stubs()
        return {process.pid: model for process, model in found.items()}

    def find_unhealthy_models(self) -> tuple[str, ...]:
        """Return the models, sorted, that Triton serves although one of their processes has exited or was stopped.

        Models that are being loaded or unloaded are left out.
        """
        return self._models.processes.find_unhealthy()

    def create_rehearsal_server(self, repository: Path, tag: str) -> Server:
        """Return a server of another release, with this server's settings, that only this machine can reach.

        A release that fails to load, or crashes Triton, must not do so inside the public server: Triton's Python
        backend reads freed memory after a failed load.
        """
        here: dict[str, object] = {"host": "127.0.0.1", "grpc_host": None, "grpc_tls": None}
        here |= dict.fromkeys(("http_port", "grpc_port", "metrics_port"), 0)
        return Server(repository, self._settings.model_copy(update=here), tag)

    def stop(self, *, drain: bool = True) -> None:
        """Stop the server, and remove all its processes and files.

        Args:
            drain: If True, complete requests in flight first. Give False for a server that does not respond.
        """
        process, self._process = self._process, None
        with contextlib.ExitStack() as cleanup:
            # Callbacks run in reverse order, and each runs even if another fails.
            cleanup.callback(self._remove_files)
            cleanup.callback(sweep_shared_memory, self.name)
            cleanup.callback(lambda: sweep_environments(self._launched_s, self._ready_s or time.time()))
            cleanup.callback(self._end_processes, process)
            if drain and process is not None and process.poll() is None:
                if self._ready:
                    self._drain()
                process.send_signal(signal.SIGTERM)
                self._wait_until_stopped(process)

    def _wait_until_stopped(self, process: subprocess.Popen[bytes]) -> None:
        """Wait until no request is left, at most as long as Triton may take to exit."""
        timeout_s = self._settings.exit_timeout_s + _UNLOAD_S
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_POLL_S)
                return
            if self.log.has_stopped():
                # Don't wait for the models to unload, which takes seconds. Responses already sent still leave.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_FLUSH_S)
                return
        _log.warning("Triton did not exit within %g s and was killed", timeout_s)

    def _end_processes(self, process: subprocess.Popen[bytes] | None) -> None:
        if self._processes is not None:
            self._processes.end()
        if process is not None:
            # This may still be the launcher, which is not in `_processes` yet.
            process.kill()
            process.wait()

    def _remove_files(self) -> None:
        if self._folder is not None:
            self._folder.remove()
        self.log.forward()
        if self._failed:
            self.log.keep()
        else:
            self.log.path.unlink(missing_ok=True)

    def _launch(self) -> None:
        command, environment, folder = self._prepare()
        # An empty working directory, because Python models import from it.
        empty = folder.path / "empty"
        empty.mkdir()
        _log.debug("starting %s in %s", command[0], folder.path)
        with self.log.create() as log, contextlib.ExitStack() as ends:
            gate, opened = os.pipe()
            for end in (gate, opened):
                ends.callback(os.close, end)
            self._launched_s = time.time()
            self._process = subprocess.Popen(
                [sys.executable, "-IS", _LAUNCHER, str(os.getpid()), *command],
                cwd=empty,
                env=environment | {MARK: self.name},
                stdin=gate,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C at a terminal must reach only this process, which stops Triton in order.
                start_new_session=True,
            )
            self._processes = ServerProcesses(self.name, self._process.pid)
            processes = ModelProcesses(self._processes, self._staged.instances, self._admin.is_loaded)
            self._models = ServedModels(self._staged, self._admin, processes, self.urls.http)
            folder.record(self._process.pid)
            os.write(opened, b".")

    def _prepare(self) -> tuple[list[str], dict[str, str], OwnedFolder]:
        """Check the prerequisites, and return Triton's command line, its environment and its prepared folder."""
        with needs_extra("serving"):
            from plurum.serving.triton.staging import StagedRepository, are_complete
        check_machine()
        model_folders(self._repository)
        path = self._repository / "ensemble.json"
        self._ensemble = read_ensemble(path) if path.is_file() else None
        triton = find_triton()
        if self._settings.grpc_tls is not None:
            check_certificates(self._settings.grpc_tls)
        sweep_killed_servers()
        self._ports = claim_ports(self._settings)
        for warning in find_exposures(self._settings, from_wheel=triton.wheel is not None):
            _log.warning("%s", warning)
        self._folder = OwnedFolder(self.name)
        check_folder(self._folder.path, runs_code=triton.wheel is not None)
        self._admin = Admin(self.urls.http, self.urls.metrics, self._folder.path, self.log)
        self._staged = StagedRepository(self._folder.path / "models", usable_cores(), cpu_only=not triton.uses_gpu)
        self._staged.add(self._repository, self._release)
        self._staged.add_managers()
        if self._release:
            self._staged.publish(self._release)
        check_names(self._repository, list(self._staged.configs))
        check_shared_memory(self._staged.processes(all_backends=triton.wheel is not None))
        extra_arguments, environment = lay_out(triton, self._folder.path)
        arguments = server_arguments(self._settings, self._ports, str(self._staged.folder), self.name)
        if are_complete(list(self._staged.configs.values())):
            arguments.append("--disable-auto-complete-config")
        return [str(triton.binary), *arguments, *extra_arguments], environment, self._folder

    def _is_listening(self) -> bool:
        """Return True if Triton itself listens on all of the claimed ports."""
        if self._process is None or self._ports is None:
            return False
        with contextlib.suppress(psutil.Error):
            connections = psutil.Process(self._process.pid).net_connections("inet")
            return {one.laddr.port for one in connections if one.status == psutil.CONN_LISTEN} >= {
                *astuple(self._ports)
            }
        return False

    def _has_failed_by_chance(self) -> bool:
        """Return True if Triton crashed, not for an error of a Python model, or lost a port after it was claimed."""
        if self._process is None or not (code := self._process.poll()):
            return False
        return self.log.has_lost_port() or (code < 0 and not self.log.has_model_error())

    def _drain(self) -> None:
        # Front models send their requests to the ensembles, so unload the fronts first.
        for models in (self._staged.fronts, self._staged.chains):
            if models:
                self._admin.drain(models, self._settings.exit_timeout_s)

    def _check_inference(self, timeout_s: float) -> None:
        if (probe := self.probe()) is None:
            return
        start = time.monotonic()
        for chain in probe.chains:
            try:
                probe.check(chain, timeout_s)
            except ProbeError as error:
                raise self._failure(f"failed a first inference ({error})") from error
        _log.debug("first inferences completed in %.3f s", time.monotonic() - start)

    def _failure(self, what: str) -> ServerError:
        self._failed = True
        reason = self.log.reason()
        if self._folder is not None:
            # The staged folder is removed before the user reads this message.
            reason = reason.replace(str(self._folder.path / "models"), str(self._repository))
        return ServerError(f"Triton {what}: {reason.rstrip('.')}. Its complete log is in {self.log.path}")
