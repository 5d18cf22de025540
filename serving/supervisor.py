"""Keeping a server answering: noticing within seconds that it does not, and healing it.

Health is an answered question, whoever asked it: while others' questions are answered the server is well, and only
when none was since the last look does the supervisor ask one itself. A server under load is thus left alone, and one
that is only slow is not taken for dead.

    a stub has died              its model is loaded anew; in-flight requests to it get an error
    Triton has died              it is started anew on the same ports
    an error, no answer in time  Triton is killed and started anew

What fails again and again is tried less and less often, and given up in the end.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

from plurum.errors import PlurumError, ServerError
from plurum.serving.metrics import answered
from plurum.serving.probe import NoAnswerError
from plurum.serving.releases import Order, Releases, State
from plurum.serving.rollout import Rollout
from plurum.serving.server import Server, Urls
from plurum.serving.settings import ServerSettings
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
# Who was well for so long before has not failed again, but anew.
_WELL_S = 5.0
_LONGEST_PAUSE_S = 30.0


class SupervisionSettings(BaseModel):
    """How a server is watched.

    Attributes:
        interval_s: Between two looks at whether questions are answered, seconds.
        patience_s: How long no question may be answered before the server is taken for stuck, seconds. Longer by
            itself where the largest batch takes longer, judged by the time that the first question took.
        attempts: After so many restarts without being well in between the server is given up, when the last one fails.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    interval_s: Annotated[float, Field(gt=0)] = 0.5
    patience_s: Annotated[float, Field(gt=0)] = 3.0
    attempts: Annotated[int, Field(ge=1)] = 6


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
        self._rollout: threading.Thread | None = None
        self._resumed: Order | None = None
        self._settings = settings or ServerSettings()
        self._supervision = supervision or SupervisionSettings()
        self.status = status or Status()
        self._server = self._new_server()
        self._failures, self._well_since = 0, 0.0

    def __enter__(self) -> Supervisor:
        self._view = self._start()
        # A second server takes the place of the first, and is found where that was.
        urls = self._server.urls
        ports = {f"{name}_port": urlsplit(f"//{url.rpartition('//')[2]}").port for name, url in vars(urls).items()}
        self._settings = self._settings.model_copy(update=ports)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.status.is_away("it is ending")
        self._server.stop()

    @property
    def urls(self) -> Urls:
        """Where the server answers."""
        return self._server.urls

    def watch(self) -> None:
        """Look after the server until interrupted.

        Raises:
            ServerError: it could not be healed.
        """
        looked = time.monotonic()
        while True:
            time.sleep(_TICK_S)
            try:
                self._take_order()
            except PlurumError as error:
                _log.warning("no rollout: %s", error)
            fault = self._dead()
            if fault is None and time.monotonic() - looked >= self._supervision.interval_s:
                fault = self._silent()
                looked = time.monotonic()
            if fault is not None:
                self._heal(fault)

    def _new_server(self) -> Server:
        if self._releases is None:
            return Server(self._repository, self._settings)
        state = self._releases.state()
        if state is None:
            state = State(current=self._releases.add(self._repository))
            self._releases.keep(state)
        if (trial := state.trial) is not None:
            # A new server knows the public release alone.
            self._resumed = Order(number=0, release=trial.release, percent=trial.percent or None, shadow=trial.shadow)
        return Server(self._releases.path(state.current), self._settings, state.current)

    def _take_order(self) -> None:
        """Carry out an order in a thread of its own, one at a time: the server is looked after meanwhile."""
        if self._releases is None or self._is_rolling_out():
            return
        if (order := self._resumed or self._releases.take_order()) is not None:
            self._resumed = None
            rollout = Rollout(self._server, self._releases, order)
            self._rollout = threading.Thread(target=rollout.run, name="rollout", daemon=True)
            self._rollout.start()

    def _is_rolling_out(self) -> bool:
        return self._rollout is not None and self._rollout.is_alive()

    def _margin(self) -> int:
        """How many times longer than otherwise an answer may take now."""
        return _ROLLOUT_MARGIN if self._is_rolling_out() else 1

    def _start(self) -> _View:
        self._server.__enter__()
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
        """Start a server in place of the one that fails; wait longer each time."""
        if time.monotonic() - self._well_since > _WELL_S:
            self._failures = 0
        while True:
            self._server.stop(answer=False)
            if self._failures:
                time.sleep(min(2.0 ** (self._failures - 1), _LONGEST_PAUSE_S))
            self._failures += 1
            try:
                self._server = self._new_server()
                self._view = self._start()
            except PlurumError as error:
                self.status.faults.labels("start").inc()
                _log.warning("not started again (%d of %d): %s", self._failures, self._supervision.attempts, error)
                if self._failures >= self._supervision.attempts:
                    raise ServerError(f"given up after {self._failures} restarts: {error}") from error
                continue
            self.status.restarts.inc()
            self._well_since = time.monotonic()
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
