"""One Triton server: started, asked a question, watched, and ended with nothing left of it."""

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
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import psutil

from plurum.errors import ServerError, needs_extra
from plurum.serving.admin import Admin
from plurum.serving.certificates import check_certificates
from plurum.serving.cores import usable_cores
from plurum.serving.drain import drain
from plurum.serving.installation import find_triton, lay_out
from plurum.serving.leftovers import OwnedFolder, sweep_dead_servers, sweep_environments, sweep_shared_memory
from plurum.serving.log import TritonLog
from plurum.serving.presence import Presence
from plurum.serving.probe import NoAnswerError, Probe
from plurum.serving.processes import MARK, ServerProcesses, is_alive
from plurum.serving.releases import Trial
from plurum.serving.settings import Ports, ServerSettings, claimed_ports, exposures, server_arguments
from plurum.serving.surroundings import check_folder, check_machine, check_names, check_shared_memory, name_failures
from plurum.spec import Ensemble, read_ensemble

__all__ = ["Server", "Urls"]

_log = logging.getLogger(__name__)

_POLL_S = 0.05
# Triton 2.51 can crash while it loads Python models on a busy machine, before it has answered anything.
_STARTS = 3
# On top of Triton's own time-out for requests in flight: to unload the models.
_UNLOAD_S = 5.0
_FLUSH_S = 0.2
_LAUNCHER = Path(__file__).with_name("launcher.py")


@dataclass(frozen=True)
class Urls:
    """Where a server answers.

    Attributes:
        http: With scheme.
        grpc: HOST:PORT, with `grpcs://` before it where TLS is spoken.
        metrics: With scheme and path.
    """

    http: str
    grpc: str
    metrics: str


class Server:
    """A Triton server of a model repository, to be used in a `with` block: inside it, questions are answered.

    The thread that starts a server must outlive it: when that thread ends, the kernel ends Triton.

    Args:
        repository: A model repository.
        settings: Where it listens, and for how long it waits.
        release: A tag that is put behind the names of the repository's models, so that those of another release can
            be loaded beside them; its ensembles are public under their own names too.

    Attributes:
        name: Begins the names of the server's shared memory, and tells its processes from others'.
        log: Triton's; its file is removed at the end unless the server failed.
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
                crashed = (
                    isinstance(error, ServerError) and self._process is not None and (self._process.poll() or 0) < 0
                )
                self.stop()
                if not (crashed and left):
                    raise
                _log.warning("started once more: %s", error)
            else:
                break
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def urls(self) -> Urls:
        """Where the server answers.

        Raises:
            ServerError: it was not started.
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
        """Check what can be checked, then start Triton; it is not ready when this returns.

        Raises:
            ContractError: the repository's `ensemble.json` is broken.
            MissingExtraError: the extra `serving` is not installed.
            RepositoryError: there is no repository, or a config in it can't be read.
            ServerError: there is no Triton, it can't run here, a port is taken, or certificates can't be used.
        """
        try:
            with name_failures():
                self._launch()
        except BaseException:
            self.stop()
            raise

    def wait_ready(self) -> None:
        """Wait until the ensemble has answered a question or, in a repository without one, until Triton is ready.

        Raises:
            ServerError: the server ended, answered with an error, or took longer than its time-out.
        """
        deadline = time.monotonic() + self._settings.start_timeout_s
        while not self._admin.is_ready():
            self.check()
            if time.monotonic() > deadline:
                raise self._failure(f"was not ready after {self._settings.start_timeout_s:g} s")
            time.sleep(_POLL_S)
        self._ask(max(1.0, deadline - time.monotonic()))
        self._presence.watch(self._staged.configs)
        self._ready, self._ready_s = True, time.time()

    def check(self) -> None:
        """Forward what Triton has logged, and make sure that it still runs.

        Raises:
            ServerError: it has ended by itself, or was not started.
        """
        self.log.forward()
        if self._process is None:
            raise ServerError("the server was not started")
        # A Triton that was stopped (SIGSTOP) is killed by this, and noticed at the next look.
        with contextlib.suppress(psutil.Error):
            is_alive(psutil.Process(self._process.pid))
        code = self._process.poll()
        if code is not None:
            raise self._failure(f"{'ended by itself' if self._ready else 'did not start'} (exit code {code})")

    def probe(self) -> Probe | None:
        """Return who asks the server's ensemble, or None in a repository without one."""
        public = [name for name in self._staged.configs if not (self._release and "-" in name)]
        return None if self._ensemble is None else Probe(self.urls.http, self._ensemble, public)

    @property
    def max_batch_size(self) -> int:
        """The largest batch that any of its models takes; at least 1."""
        return max((config.max_batch_size for config in self._staged.configs.values()), default=1) or 1

    def processes(self) -> list[int]:
        """Return the ids of its processes: Triton's, and those of Python models and backends."""
        return [] if self._processes is None else [process.pid for process in self._processes.find()]

    def stubs(self) -> dict[int, str]:
        """Return the processes of its Python models and backends: the model of each, by process id."""
        found = {} if self._processes is None else self._processes.stubs()
        return {process.pid: model for process, model in found.items()}

    def died(self) -> tuple[str, ...]:
        """Return the models, sorted, of which a process has died or was stopped, though Triton serves them.

        A model that is being loaded or unloaded is none of them.
        """
        return self._presence.missing()

    def reload(self, model: str, timeout_s: float) -> None:
        """Have Triton load a model anew, in new processes, unless that is under way or it is no longer served.

        Raises:
            ServerError: it could not, or not in time.
        """
        if model not in self._presence:
            return
        with name_failures():
            self._staged.touch(model)
        self._load(model, timeout_s)

    def add_release(self, repository: Path, tag: str, timeout_s: float) -> Probe:
        """Load the models of another release beside those that are served, and return who can ask its ensembles.

        Args:
            repository: The release.
            tag: Put behind its models' names.
            timeout_s: For each model.

        Raises:
            ContractError: its contract is broken.
            RepositoryError: it is no repository.
            ServerError: a model could not be loaded, or not in time; those that were stay until `remove_release`.
        """
        with name_failures():
            self._staged.add(repository, tag)
        models = self._staged.of(tag)
        check_names(repository, models)
        for model in models:
            self._load(model, timeout_s)
        return Probe(self.urls.http, read_ensemble(repository / "ensemble.json"), models)

    def for_rehearsal(self, repository: Path, tag: str) -> Server:
        """Return a server of another release, with this one's settings, that only this machine reaches.

        A release that can't be loaded, or that crashes Triton, must not do so inside the server that others use:
        Triton's Python backend reads freed memory after a load that fails.
        """
        here: dict[str, object] = {"host": "127.0.0.1", "grpc_host": None, "grpc_tls": None}
        here |= dict.fromkeys(("http_port", "grpc_port", "metrics_port"), 0)
        return Server(repository, self._settings.model_copy(update=here), tag)

    def has_release(self, tag: str) -> bool:
        """Whether the models of a release are loaded."""
        return bool(self._staged.of(tag))

    def publish(self, tag: str, timeout_s: float) -> None:
        """Have a loaded release answer under the public names; requests in flight end with the one they began with.

        Raises:
            ServerError: Triton could not, or not in time.
        """
        with name_failures():
            chains = self._staged.publish(tag)
        for chain in chains:
            self._load(chain, timeout_s)

    def put_on_trial(self, trial: Trial, current: str, timeout_s: float) -> None:
        """Have a loaded release answer a share of the public questions, or be compared with the one that does.

        Raises:
            ServerError: Triton could not, or not in time.
        """
        with name_failures():
            fronts = self._staged.put_on_trial(trial, current)
        for front in fronts:
            self._load(front, timeout_s)

    def remove_release(self, tag: str, timeout_s: float) -> None:
        """Unload the models of a release that is not public, and forget them."""
        models = self._staged.of(tag)
        # Forgotten first, so that nobody misses their processes.
        for model in models:
            self._presence.forget(model)
        self._staged.remove(tag)
        for model in reversed(models):
            try:
                self._admin.unload(model, timeout_s)
            except ServerError as error:
                # It may never have been loaded.
                _log.debug("%s", error)

    def _load(self, model: str, timeout_s: float) -> None:
        self._presence.loads_anew(model)
        self._admin.load(model, timeout_s)
        self._presence.watch([model])

    def stop(self, *, answer: bool = True) -> None:
        """End the server: every process and file of it goes.

        Args:
            answer: Let requests in flight be answered first; for a server that does not answer that is time lost.
        """
        process, self._process = self._process, None
        with contextlib.ExitStack() as tidying:
            # Last in, first out; each is done whatever becomes of the others.
            tidying.callback(self._remove_files)
            tidying.callback(sweep_shared_memory, self.name)
            tidying.callback(lambda: sweep_environments(self._launched_s, self._ready_s or time.time()))
            tidying.callback(self._end_processes, process)
            if answer and process is not None and process.poll() is None:
                if self._ready:
                    self._drain()
                process.send_signal(signal.SIGTERM)
                self._wait_until_stopped(process)

    def _wait_until_stopped(self, process: subprocess.Popen[bytes]) -> None:
        """Wait until no request is left, or for the longest time that Triton may take to end."""
        most = self._settings.exit_timeout_s + _UNLOAD_S
        deadline = time.monotonic() + most
        while time.monotonic() < deadline:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_POLL_S)
                return
            if self.log.says_stopped():
                # Unloading takes seconds and changes nothing that outlives the processes. Sent responses still leave.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_FLUSH_S)
                return
        _log.warning("Triton took more than %g s to end and is killed", most)

    def _end_processes(self, process: subprocess.Popen[bytes] | None) -> None:
        if self._processes is not None:
            self._processes.end()
        if process is not None:
            # It may not be Triton yet, but what becomes it.
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
        # Python models take the working directory for a place to import from.
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
                # Ctrl-C at a terminal is for us; we pass it on in our own time.
                start_new_session=True,
            )
            self._processes = ServerProcesses(self.name, self._process.pid)
            self._presence = Presence(self._processes, self._staged.instances, self._admin.is_loaded)
            folder.record(self._process.pid)
            os.write(opened, b".")

    def _prepare(self) -> tuple[list[str], dict[str, str], OwnedFolder]:
        """Check everything, and return Triton's command line, its environment and the folder laid out for it."""
        with needs_extra("serving"):
            from plurum.serving.staging import Staged, are_complete, model_folders
        check_machine()
        model_folders(self._repository)
        contract = self._repository / "ensemble.json"
        self._ensemble = read_ensemble(contract) if contract.is_file() else None
        triton = find_triton()
        if self._settings.grpc_tls is not None:
            check_certificates(self._settings.grpc_tls)
        sweep_dead_servers()
        self._ports = claimed_ports(self._settings)
        for warning in exposures(self._settings, from_wheel=triton.wheel is not None):
            _log.warning("%s", warning)
        self._folder = OwnedFolder(self.name)
        check_folder(self._folder.path, runs_code=triton.wheel is not None)
        self._admin = Admin(self.urls.http, self.urls.metrics, self._folder.path, self.log)
        self._staged = Staged(self._folder.path / "models", usable_cores(), cpu_only=not triton.uses_gpu)
        self._staged.add(self._repository, self._release)
        self._staged.add_managers()
        if self._release:
            self._staged.publish(self._release)
        check_names(self._repository, list(self._staged.configs))
        check_shared_memory(self._staged.processes(all_backends=triton.wheel is not None))
        layout = lay_out(triton, self._folder.path)
        arguments = server_arguments(self._settings, self._ports, str(self._staged.folder), self.name)
        if are_complete(list(self._staged.configs.values())):
            arguments.append("--disable-auto-complete-config")
        return [str(triton.binary), *arguments, *layout.arguments], layout.environment, self._folder

    def _drain(self) -> None:
        # A front model's questions go through the ensembles, which must stay until it is done.
        for models in (self._staged.fronts, self._staged.chains):
            if models:
                drain(self._admin, models, self._settings.exit_timeout_s)

    def _ask(self, timeout_s: float) -> None:
        if (probe := self.probe()) is None:
            return
        start = time.monotonic()
        for chain in probe.chains:
            try:
                probe.ask(chain, timeout_s)
            except NoAnswerError as error:
                raise self._failure(f"did not answer a first question ({error})") from error
        _log.debug("first questions answered in %.3f s", time.monotonic() - start)

    def _failure(self, what: str) -> ServerError:
        self._failed = True
        reason = self.log.reason()
        if self._folder is not None:
            # The view is gone by the time this is read.
            reason = reason.replace(str(self._folder.path / "models"), str(self._repository))
        return ServerError(f"Triton {what}: {reason}; its whole log is in {self.log.path}")
