"""Moving the public name from one release to another on a live server, and back.

The new release runs on a server of its own first, since a load that fails may crash Triton. Then its models are loaded
beside the old one's and asked before anyone else asks them; only then does the public ensemble become theirs. Triton
swaps an ensemble in one step, and requests in flight end with the models they began with. The old release stays
loaded, to go back to; the one before it is unloaded. Whatever fails on the way leaves the public release as it was.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from plurum.errors import OutputError, PlurumError, ServerError
from plurum.serving.releases.rehearsal import check_release, rehearse
from plurum.serving.releases.releases import Order, Releases, Report, State
from plurum.serving.releases.snapshot import Snapshots
from plurum.serving.triton.server import Server
from plurum.serving.triton.trial import ReleaseTrial
from plurum.spec import read_ensemble

__all__ = ["Rollout"]

_log = logging.getLogger(__name__)

_LOAD_S, _QUESTION_S = 300.0, 60.0
# How long the folder of releases may be full before the outcome is given up.
_TELL_S = 60


@dataclass
class Rollout:
    """One order, carried out.

    Attributes:
        server: Answers, with the public release loaded under its tag.
        releases: Where releases are, and where what is done is said.
        order: What is asked for.
        copies: Where releases are copied to before they are checked and loaded; None loads them from their folder.
        lines: What has been done.
    """

    server: Server
    releases: Releases
    order: Order
    copies: Snapshots | None = None
    lines: list[str] = field(default_factory=list)

    def run(self) -> None:
        """Do it; what became of it is in the releases' report."""
        state = self.releases.state()
        try:
            if state is None:
                raise ServerError("no release is public yet")
            self._go_back(state) if self.order.release is None else self._go_on(state, self.order.release)
        except PlurumError as error:
            self._say(str(error), "refused")
            _log.warning("rollout refused: %s", error)
        except Exception as error:
            # Whoever waits for the outcome must learn of it, whatever it is.
            self._say(f"it failed unexpectedly: {error!r}", "refused")
            _log.exception("rollout failed")
        else:
            self._say("done", "done")

    def _go_on(self, state: State, tag: str) -> None:
        if tag == state.current:
            raise ServerError(f"{tag} is public already")
        self._load(state, tag)
        if self.order.percent is not None or self.order.shadow:
            trial = ReleaseTrial(release=tag, percent=self.order.percent or 0, shadow=self.order.shadow)
            self._try(state, trial)
        else:
            self._publish(tag, state, State(current=tag, previous=state.current))
        # Memory holds two releases, not three; one that is gone back to later is loaded again.
        self._unload(state.previous, state.trial.release if state.trial else None, but=tag)

    def _go_back(self, state: State) -> None:
        if state.trial is not None:
            self._publish(state.current, state, state.model_copy(update={"trial": None}))
            self._unload(state.trial.release)
            return
        if state.previous is None:
            raise ServerError("there is no release to go back to")
        self._load(state, state.previous)
        self._publish(state.previous, state, State(current=state.previous, previous=state.current))

    def _try(self, state: State, trial: ReleaseTrial) -> None:
        members, public = (
            [member.name for member in read_ensemble(self._path(tag) / "ensemble.json").members]
            for tag in (trial.release, state.current)
        )
        if trial.percent and members != public:
            raise ServerError(
                f"its members are {', '.join(members)}, those that are public {', '.join(public)}; who asks is told of "
                "the public ones: compare them with --shadow instead"
            )
        self._change(
            state,
            State(current=state.current, previous=state.previous, trial=trial),
            lambda: self.server.put_on_trial(trial, state.current, _LOAD_S),
        )
        what = "is compared with it" if trial.shadow else f"answers {trial.percent:g} % of the questions"
        self._say(f"{state.current} is public; {trial.release} {what}")

    def _unload(self, *tags: str | None, but: str | None = None) -> None:
        for tag in tags:
            if tag is not None and tag != but and self.server.has_release(tag):
                self.server.remove_release(tag, _LOAD_S)
                self._say(f"{tag} is unloaded")

    def _load(self, state: State, tag: str) -> None:
        """Load a release and ask it, unless it is loaded."""
        if self.server.has_release(tag):
            self._say(f"{tag} is still loaded")
            return
        repository = self._path(tag)
        ensemble = read_ensemble(repository / "ensemble.json")
        public = read_ensemble(self._path(state.current) / "ensemble.json")
        check_release(repository, public, ensemble)
        self._say(f"{tag}: its gate passed, and its files are those that were exported")
        with self.server.for_rehearsal(repository, tag) as rehearsal:
            if (probe := rehearsal.probe()) is not None:
                rehearse(probe, repository, ensemble, _QUESTION_S)
        self._say(f"{tag} was loaded and asked on a server of its own")
        try:
            probe = self.server.add_release(repository, tag, _LOAD_S)
            self._say(f"{tag} is loaded beside {state.current}")
            difference = rehearse(probe, repository, ensemble, _QUESTION_S)
        except PlurumError:
            self.server.remove_release(tag, _LOAD_S)
            raise
        self._say(
            f"{tag} answers as its artefacts did when exported (probabilities differ by at most {difference:.1g})"
        )

    def _path(self, tag: str) -> Path:
        folder = self.releases.path(tag)
        return folder if self.copies is None else self.copies.take(folder, tag).path

    def _publish(self, tag: str, state: State, new: State) -> None:
        self._change(state, new, lambda: self.server.publish(tag, _LOAD_S))
        self._say(f"{tag} is public")

    def _change(self, state: State, new: State, act: Callable[[], None]) -> None:
        """Go from one state to another; a server that has to be started anew on the way begins with the new one."""
        self.releases.keep(new)
        try:
            act()
        except ServerError:
            try:
                self.releases.keep(state)
            finally:
                # Some of its ensembles may be public by now.
                self.server.publish(state.current, _LOAD_S)
            raise

    def _say(self, line: str, outcome: str | None = None) -> None:
        self.lines.append(line)
        _log.info("rollout: %s", line)
        report = Report.model_validate({"number": self.order.number, "lines": self.lines, "outcome": outcome})
        # The client waits for the outcome; the lines before it are told with it, if the disk is full now.
        for _ in range(_TELL_S if outcome else 1):
            try:
                self.releases.tell(report)
            except OutputError as error:
                _log.warning("rollout: not told: %s", error)
                time.sleep(1 if outcome else 0)
            else:
                return
