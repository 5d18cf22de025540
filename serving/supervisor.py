"""Keeping a server answering: noticing within seconds that it does not, and healing it.

Health is an answered question, whoever asked it: while others' questions are answered the server is well, and only
when none was since the last look does the supervisor ask one itself. A server under load is thus left alone, and one
that is only slow is not taken for dead.

    a stub has died              its model is loaded anew; in-flight requests to it get an error
    Triton has died              it is started anew on the same ports
    an error, no answer in time  Triton is killed and started anew

A server that can't be started is tried again and again, less and less often: nothing that clients send can end the
supervisor. It serves from copies, so a restart does not need the repository.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, NoReturn
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

from plurum.conventions import MANAGERS
from plurum.errors import PlurumError, RepositoryError, ServerError
from plurum.listing import check_exported
from plurum.serving.metrics import answered
from plurum.serving.probe import NoAnswerError
from plurum.serving.releases import Order, Releases, State
from plurum.serving.rollout import Rollout
from plurum.serving.server import Server, Urls
from plurum.serving.settings import ServerSettings
from plurum.serving.snapshot import Snapshot, Snapshots
from plurum.serving.status import Status

__all__ = ["SupervisionSettings", "Supervisor"]

_log = logging.getLogger(__name__)

# How often stubs and Triton are looked at; answers are counted at the settings' interval.
_TICK_S = 0.2
# An answer to a whole batch may take as much longer than one to a single image, times this for cores that are shared.
_BATCH_MARGIN, _TRIES = 2, 3
_PAGE_S, _RELOAD_S = 0.75, 5.0
# While models of another release are loaded the cores are busy, and Triton loads one model after the other.
_ROLLOUT_MARGIN = 3
_LONGEST_PAUSE_S = 30.0
# How often orders are looked for, and whether the repository is what it was.
_ORDER_S, _REPOSITORY_S = 0.2, 5.0


class SupervisionSettings(BaseModel):
    """How a server is watched.

    Attributes:
        interval_s: Between two looks at whether questions are answered, seconds.
        patience_s: How long no question may be answered before the server is taken for stuck, seconds. Longer by
            itself where the largest batch takes longer, judged by the time that the first question took.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    interval_s: Annotated[float, Field(gt=0)] = 0.5
    patience_s: Annotated[float, Field(gt=0)] = 3.0


@dataclass(frozen=True)
class _Fault:
    """What is wrong: a kind for the metrics, a line for the log, and the models that should be loaded anew."""

    kind: str
    reason: str
    models: tuple[str, ...] = ()


class Supervisor:
    """A server that is watched, to be used in a `with` block; `watch` does it.

    The thread that enters the block must be the one that watches: when it ends, the kernel ends Triton.

    Args:
        repository: What is served, at first where there are releases.
        settings: Where it listens.
        supervision: How it is watched.
        status: Told how it is.
        releases: Held by the caller. What is public there is served, and orders for others are carried out.

    Attributes:
        status: How the server is.
        snapshot: The copy of what is public.
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
        self._resumed: Order | None = None
        self._settings = settings or ServerSettings()
        self._supervision = supervision or SupervisionSettings()
        self.status = status or Status()

    def __enter__(self) -> Supervisor:
        try:
            self._server = self._new_server()
            self._view = self._start()
        except BaseException:
            self._copies.remove()
            raise
        # A second server takes the place of the first, and is found where that was.
        urls = self._server.urls
        ports = {f"{name}_port": urlsplit(f"//{url.rpartition('//')[2]}").port for name, url in vars(urls).items()}
        self._settings = self._settings.model_copy(update=ports)
        threading.Thread(target=self._look_after_files, name="files", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.status.is_away("it is ending")
        with contextlib.ExitStack() as last:
            last.callback(self._copies.remove)
            self._server.stop()

    @property
    def urls(self) -> Urls:
        """Where the server answers."""
        return self._server.urls

    def watch(self) -> NoReturn:
        """Look after the server until interrupted."""
        looked = time.monotonic()
        while True:
            time.sleep(_TICK_S)
            try:
                fault = self._dead()
                if fault is None and time.monotonic() - looked >= self._supervision.interval_s:
                    fault = self._silent()
                    looked = time.monotonic()
                if fault is not None:
                    self._heal(fault)
            except Exception:
                # Whatever it is: a server that nobody looks after is worse.
                _log.exception("the server could not be looked after")

    def _new_server(self) -> Server:
        """Return a server of what is public, from a copy whose files are those that were exported.

        Raises:
            RepositoryError: they are not, or there is no space for the copy.
        """
        repository, tag = self._repository, ""
        if self._releases is not None:
            state = self._releases.state()
            if state is None:
                state = State(current=self._releases.add(self._repository))
                self._releases.keep(state)
            if (trial := state.trial) is not None:
                # A new server knows the public release alone.
                percent = trial.percent or None
                self._resumed = Order(number=0, release=trial.release, percent=percent, shadow=trial.shadow)
            repository, tag = self._releases.path(state.current), state.current
        is_new = not self._copies.has(tag)
        self.snapshot = self._copies.take(repository, tag)
        if is_new:
            self._check_copy(self.snapshot)
        return Server(self.snapshot.path, self._settings, tag)

    def _check_copy(self, copy: Snapshot) -> None:
        self.status.has_copied(copy.size_bytes, copy.took_s)
        try:
            vouched = check_exported(copy.path, copy.hashes)
        except RepositoryError as error:
            raise RepositoryError(f"{copy.repository}: {copy.translate(str(error))}") from error
        if not vouched:
            _log.warning("%s: no export.json lists its files, so nobody knows if one was changed", copy.repository)

    def _look_after_files(self) -> None:
        """Carry out orders, and notice when the repository changes, in a thread that a file system may hold up."""
        looked, complaint = 0.0, None
        while True:
            time.sleep(_ORDER_S)
            try:
                self._take_order()
                if time.monotonic() - looked >= _REPOSITORY_S:
                    self._look_at_repository()
                    looked = time.monotonic()
                complaint = None
            except (PlurumError, OSError) as error:
                # Once, however long it stays so.
                if str(error) != complaint:
                    complaint = str(error)
                    _log.warning("no rollout: %s", error)

    def _look_at_repository(self) -> None:
        copy = self.snapshot
        before, difference = self.status.repository(), copy.difference()
        self.status.repository_is(difference)
        if difference is not None and before is None:
            _log.warning("%s: %s; what was copied at the start is served on", copy.repository, difference)
        elif difference is None and before is not None:
            _log.warning("%s is again what is served", copy.repository)

    def _take_order(self) -> None:
        """Carry out an order, if there is one."""
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
        """Keep the copies of releases that may be loaded again, and watch the one that is public."""
        if (state := releases.state()) is not None:
            self.snapshot = self._copies.take(releases.path(state.current), state.current)
            trial = None if state.trial is None else state.trial.release
            self._copies.keep({state.current, state.previous or "", trial or ""})

    def _margin(self) -> int:
        """How many times longer than otherwise an answer may take now."""
        return _ROLLOUT_MARGIN if self._is_rolling_out else 1

    def _start(self) -> _View:
        try:
            self._server.__enter__()
        except ServerError as error:
            raise ServerError(self.snapshot.translate(str(error))) from error
        try:
            view = _View(self._server, self._supervision.patience_s)
        except BaseException:
            self._server.stop(answer=False)
            raise
        self.status.answers()
        return view

    def _dead(self) -> _Fault | None:
        try:
            self._server.check()
        except ServerError as error:
            return _Fault("died", str(error))
        models = self._server.died()
        return _Fault("model_died", f"the process of {', '.join(models)} has died", models) if models else None

    def _silent(self) -> _Fault | None:
        if not self._view.has_answered():
            error = self._unanswered()
            if error is not None and error.kind in {"away", "error"}:
                if (fault := self._dead()) is not None:
                    return fault
                # One error can be that of a process which was just replaced.
                error = self._unanswered()
            if error is not None and error.kind == "busy":
                return None
            # Where others were answered in the meantime it is slow, not stuck.
            if error is not None and (error.kind != "late" or not self._view.has_answered()):
                return _Fault(error.kind, str(error))
        self.status.answers()
        return None

    def _unanswered(self) -> NoAnswerError | None:
        """Ask the ensembles, and return what one said instead of an answer."""
        try:
            self.status.questions.observe(self._view.ask(self._margin()))
        except NoAnswerError as error:
            return error
        return None

    def _heal(self, fault: _Fault) -> None:
        self.status.faults.labels(fault.kind).inc()
        if fault.models and set(fault.models) <= set(MANAGERS):
            # Requests are answered without them.
            _log.warning("%s", fault.reason)
        else:
            self.status.is_away(fault.reason)
            _log.warning("not ready: %s", fault.reason)
        start = time.monotonic()
        if not (fault.models and self._reload(fault.models)):
            self._restart()
        _log.warning("ready again after %.1f s", time.monotonic() - start)

    def _reload(self, models: tuple[str, ...]) -> bool:
        try:
            for model in models:
                self._server.reload(model, _RELOAD_S * self._margin())
                self.status.reloads.labels(model).inc()
                _log.warning("%s was loaded anew", model)
            self._view.ask()
        except ServerError as error:
            _log.warning("that did not help: %s", error)
            return False
        self.status.answers()
        return True

    def _restart(self) -> None:
        """Start a server in place of the one that fails; wait longer each time that it can't be started."""
        failures = 0
        while True:
            self._server.stop(answer=False)
            if failures:
                time.sleep(min(2.0 ** (failures - 1), _LONGEST_PAUSE_S))
            try:
                self._server = self._new_server()
                self._view = self._start()
            except (PlurumError, OSError) as error:
                failures += 1
                self.status.faults.labels("start").inc()
                self.status.has_failed_to_start(failures)
                self.status.is_away(f"it can't be started: {error}")
                _log.warning("not started again (%d times by now): %s", failures, error)
                continue
            self.status.restarts.inc()
            self.status.has_failed_to_start(0)
            return


class _View:
    """What is watched of one server: whether its ensembles answer, and how many questions they have answered.

    Args:
        server: Ready.
        patience_s: The least.
    """

    def __init__(self, server: Server, patience_s: float) -> None:
        self._server = server
        self._probe = server.probe()
        self._patience_s = _RELOAD_S
        self._answered = 0.0
        # Questions before have warmed the models up; what else runs on the machine now should not count for ever.
        took = min(self.ask() for _ in range(_TRIES))
        self._patience_s = max(patience_s, _BATCH_MARGIN * took * server.max_batch_size)
        self.has_answered()

    def has_answered(self) -> bool:
        """Whether questions have been answered since this was last asked."""
        before, self._answered = self._answered, self._answers()
        return self._answered > before

    def ask(self, margin: int = 1) -> float:
        """Ask every ensemble, and return how long that took, seconds.

        Args:
            margin: How many times the usual patience an answer may take.

        Raises:
            NoAnswerError: one does not answer.
        """
        start = time.monotonic()
        if self._probe is not None:
            for chain in self._probe.chains:
                self._probe.ask(chain, self._patience_s * margin)
        return time.monotonic() - start

    def _answers(self) -> float:
        chains = self._probe.chains if self._probe is not None else []
        try:
            return answered(self._server.urls.metrics, chains, _PAGE_S)
        except OSError:
            return self._answered
