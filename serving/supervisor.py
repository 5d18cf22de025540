"""Supervise a server: detect within seconds that it does not respond, and heal it.

Health means completed inferences. While clients' requests are completed, the server is healthy. The supervisor sends
a probe only if no request was completed since its last check. It therefore adds no load to a busy server, and does not
mistake a slow server for a failed one.

    a model's process exited     its model is reloaded; requests in flight in it get an error
    Triton exited                Triton is restarted on the same ports
    an error, or no response     Triton is killed and restarted

A failed start is retried without end, at increasing intervals: nothing that clients send can stop the supervisor. It
serves from copies, so a restart does not need the repository.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NoReturn
from urllib.parse import urlsplit

from pydantic import Field

from plurum.conventions import MANAGERS
from plurum.errors import PlurumError, RepositoryError, ServerError
from plurum.repository.listing import check_exported
from plurum.serving.releases.releases import Releases, ReleaseState, RolloutOrder
from plurum.serving.releases.rollout import Rollout
from plurum.serving.releases.snapshot import Snapshot, Snapshots
from plurum.serving.status import Status
from plurum.serving.triton.metrics import count_responses
from plurum.serving.triton.probe import ProbeError
from plurum.serving.triton.server import Server, Urls
from plurum.settings.serving import ServerSettings
from plurum.spec import Metadata

__all__ = ["SupervisionSettings", "Supervisor"]

_log = logging.getLogger(__name__)

# Interval between checks of the processes; completed requests are counted at the settings' interval.
_TICK_S = 0.2
# A batch may take as many times longer as it has images, times this margin for shared cores.
_BATCH_MARGIN, _TRIES = 2, 3
_PAGE_S, _RELOAD_S = 0.75, 5.0
# Loading another release keeps the cores busy, and Triton loads one model after the other.
_ROLLOUT_MARGIN = 3
_LONGEST_PAUSE_S = 30.0
# Intervals between checks for orders, and between checks whether the repository has changed.
_ORDER_S, _REPOSITORY_S = 0.2, 5.0


class SupervisionSettings(Metadata):
    """Settings of a supervisor.

    Attributes:
        interval_s: Interval between two checks for completed requests, seconds.
        patience_s: Time without a completed request after which the server counts as stuck, seconds. The supervisor
            raises it if the largest batch takes longer, as estimated from the first probes.
    """

    interval_s: Annotated[float, Field(gt=0)] = 0.5
    patience_s: Annotated[float, Field(gt=0)] = 3.0


@dataclass(frozen=True)
class _Fault:
    """A fault: its kind for the metrics, its reason for the log, and the models to reload."""

    kind: str
    reason: str
    models: tuple[str, ...] = ()


class Supervisor:
    """A supervised server, for use in a `with` block; call `watch` inside it.

    The thread that enters the block must also call `watch`: when that thread ends, the kernel terminates Triton.

    Args:
        repository: Model repository to serve; with `releases`, the first release.
        settings: Settings of the server; None uses the defaults.
        supervision: Settings of the supervision; None uses the defaults.
        status: Status to update; None creates one.
        releases: Folder of releases, locked by the caller. The supervisor serves the public release, and performs the
            orders it finds there.

    Attributes:
        status: Status of the server.
        snapshot: Copy of the public release.
    """

    def __init__(
        self,
        repository: Path,
        settings: ServerSettings | None = None,
        supervision: SupervisionSettings | None = None,
        status: Status | None = None,
        releases: Releases | None = None,
    ) -> None:
        self._repository = repository
        self._releases = releases
        self._copies = Snapshots(f"plurum_{secrets.token_hex(6)}_")
        self._is_rolling_out = False
        self._resumed: RolloutOrder | None = None
        self._settings = settings or ServerSettings()
        self._supervision = supervision or SupervisionSettings()
        self.status = status or Status()

    def __enter__(self) -> Supervisor:
        try:
            self._server = self._new_server()
            self._health = self._start()
        except BaseException:
            self._copies.remove()
            raise
        # A restarted server listens on the same ports.
        urls = self._server.urls
        ports = {f"{name}_port": urlsplit(f"//{url.rpartition('//')[2]}").port for name, url in vars(urls).items()}
        self._settings = self._settings.model_copy(update=ports)
        threading.Thread(target=self._watch_files, name="files", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.status.mark_unready("the server is stopping")
        with contextlib.ExitStack() as last:
            last.callback(self._copies.remove)
            self._server.stop()

    @property
    def urls(self) -> Urls:
        """Addresses of the server's endpoints."""
        return self._server.urls

    def watch(self) -> NoReturn:
        """Watch and heal the server until interrupted."""
        checked = time.monotonic()
        while True:
            time.sleep(_TICK_S)
            try:
                fault = self._find_exited()
                if fault is None and time.monotonic() - checked >= self._supervision.interval_s:
                    fault = self._find_unresponsive()
                    checked = time.monotonic()
                if fault is not None:
                    self._heal(fault)
            except Exception:
                # Keep watching after any error.
                _log.exception("the supervisor failed to check the server; it will try again")

    def _new_server(self) -> Server:
        """Return a server of the public release, from a copy that matches the exported files.

        Raises:
            RepositoryError: a file differs from the exported one, or there is no space for the copy.
        """
        repository, tag = self._repository, ""
        if self._releases is not None:
            state = self._releases.state()
            if state is None:
                state = ReleaseState(current=self._releases.add(self._repository))
                self._releases.write_state(state)
            if (trial := state.trial) is not None:
                # A new server starts with the public release only; resume the trial.
                percent = trial.percent or None
                self._resumed = RolloutOrder(number=0, release=trial.release, percent=percent, shadow=trial.shadow)
            repository, tag = self._releases.path(state.current), state.current
        is_new = not self._copies.has(tag)
        self.snapshot = self._copies.take(repository, tag)
        if is_new:
            self._check_copy(self.snapshot)
        return Server(self.snapshot.path, self._settings, tag)

    def _check_copy(self, copy: Snapshot) -> None:
        self.status.set_copy(copy.size_bytes, copy.took_s)
        try:
            vouched = check_exported(copy.path, copy.hashes)
        except RepositoryError as error:
            raise RepositoryError(f"{copy.repository}: {copy.translate(str(error))}") from error
        if not vouched:
            _log.warning("%s: no export.json lists its files, so changes to them can't be detected", copy.repository)

    def _watch_files(self) -> None:
        """Perform orders and detect changes of the repository, in a separate thread because file systems can block."""
        checked, reported = 0.0, None
        while True:
            time.sleep(_ORDER_S)
            try:
                self._perform_order()
                if time.monotonic() - checked >= _REPOSITORY_S:
                    self._check_repository()
                    checked = time.monotonic()
                reported = None
            except (PlurumError, OSError) as error:
                # Report a lasting error once.
                if str(error) != reported:
                    reported = str(error)
                    _log.warning("no rollout: %s", error)

    def _check_repository(self) -> None:
        copy = self.snapshot
        before, difference = self.status.repository_difference(), copy.difference()
        self.status.set_repository_difference(difference)
        if difference is not None and before is None:
            _log.warning("%s: %s; the server keeps serving its copy", copy.repository, difference)
        elif difference is None and before is not None:
            _log.warning("%s matches the copy that is served again", copy.repository)

    def _perform_order(self) -> None:
        """Perform an order, if there is one."""
        if self._releases is None:
            return
        if (order := self._resumed or self._releases.take_order()) is not None:
            self._resumed, self._is_rolling_out = None, True
            try:
                Rollout(self._server, self._releases, order, copies=self._copies).run()
            finally:
                self._is_rolling_out = False
                self._keep_copies(self._releases)

    def _keep_copies(self, releases: Releases) -> None:
        """Keep the copies of releases that may be loaded again, and watch the repository of the public one."""
        if (state := releases.state()) is not None:
            self.snapshot = self._copies.take(releases.path(state.current), state.current)
            trial = None if state.trial is None else state.trial.release
            self._copies.keep({state.current, state.previous or "", trial or ""})

    def _margin(self) -> int:
        """Return the factor by which time limits are extended now."""
        return _ROLLOUT_MARGIN if self._is_rolling_out else 1

    def _start(self) -> _HealthCheck:
        try:
            self._server.__enter__()
        except ServerError as error:
            raise ServerError(self.snapshot.translate(str(error))) from error
        try:
            health = _HealthCheck(self._server, self._supervision.patience_s)
        except BaseException:
            self._server.stop(drain=False)
            raise
        self.status.mark_ready()
        return health

    def _find_exited(self) -> _Fault | None:
        try:
            self._server.check()
        except ServerError as error:
            return _Fault("died", str(error))
        models = self._server.find_unhealthy_models()
        return _Fault("model_died", f"the process of {', '.join(models)} exited", models) if models else None

    def _find_unresponsive(self) -> _Fault | None:
        if not self._health.has_progressed():
            error = self._send_probes()
            if error is not None and error.kind in {"away", "error"}:
                if (fault := self._find_exited()) is not None:
                    return fault
                # The first error may come from a process that was just replaced.
                error = self._send_probes()
            if error is not None and error.kind == "busy":
                return None
            # A server that completed other requests meanwhile is slow, not stuck.
            if error is not None and (error.kind != "late" or not self._health.has_progressed()):
                return _Fault(error.kind, str(error))
        self.status.mark_ready()
        return None

    def _send_probes(self) -> ProbeError | None:
        """Send a probe to every ensemble, and return the first error, or None."""
        try:
            self.status.probes.observe(self._health.send_probes(self._margin()))
        except ProbeError as error:
            return error
        return None

    def _heal(self, fault: _Fault) -> None:
        self.status.faults.labels(fault.kind).inc()
        if fault.models and set(fault.models) <= set(MANAGERS):
            # Inference does not need the managers.
            _log.warning("%s", fault.reason)
        else:
            self.status.mark_unready(fault.reason)
            _log.warning("not ready: %s", fault.reason)
        start = time.monotonic()
        if not (fault.models and self._reload(fault.models)):
            self._restart()
        _log.warning("ready again after %.1f s", time.monotonic() - start)

    def _reload(self, models: tuple[str, ...]) -> bool:
        try:
            for model in models:
                self._server.models.reload(model, _RELOAD_S * self._margin())
                self.status.reloads.labels(model).inc()
                _log.warning("%s was reloaded", model)
            self._health.send_probes()
        except ServerError as error:
            _log.warning("the reload did not help: %s", error)
            return False
        self.status.mark_ready()
        return True

    def _restart(self) -> None:
        """Start a new server in place of the failed one; wait longer after each failed start."""
        failures = 0
        while True:
            self._server.stop(drain=False)
            if failures:
                time.sleep(min(2.0 ** (failures - 1), _LONGEST_PAUSE_S))
            try:
                self._server = self._new_server()
                self._health = self._start()
            except (PlurumError, OSError) as error:
                failures += 1
                self.status.faults.labels("start").inc()
                self.status.failed_starts.set(failures)
                self.status.mark_unready(f"the server can't be started: {error}")
                _log.warning("start failed (%d times in a row): %s", failures, error)
                continue
            self.status.restarts.inc()
            self.status.failed_starts.set(0)
            return


class _HealthCheck:
    """Checks whether the ensembles of one server respond and complete requests.

    Args:
        server: Server that is ready.
        patience_s: Minimum time limit of a probe, seconds.
    """

    def __init__(self, server: Server, patience_s: float) -> None:
        self._server = server
        self._probe = server.probe()
        self._patience_s = _RELOAD_S
        self._completed = 0.0
        # The models are warm by now. Take the fastest of several probes, as other load on the machine may be temporary.
        took = min(self.send_probes() for _ in range(_TRIES))
        self._patience_s = max(patience_s, _BATCH_MARGIN * took * server.max_batch_size)
        self.has_progressed()

    def has_progressed(self) -> bool:
        """Return True if requests were completed since the last call."""
        before, self._completed = self._completed, self._count_completed()
        return self._completed > before

    def send_probes(self, margin: int = 1) -> float:
        """Send a probe to every ensemble, and return how long all of them took, seconds.

        Args:
            margin: Factor by which the time limit of a probe is extended.

        Raises:
            ProbeError: an ensemble does not respond, or returns an error.
        """
        start = time.monotonic()
        if self._probe is not None:
            for chain in self._probe.chains:
                self._probe.check(chain, self._patience_s * margin)
        return time.monotonic() - start

    def _count_completed(self) -> float:
        chains = self._probe.chains if self._probe is not None else []
        try:
            return count_responses(self._server.urls.metrics, chains, _PAGE_S)
        except OSError:
            return self._completed
