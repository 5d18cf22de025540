"""Roll out another release on a live server, or roll back.

The new release first runs on a separate server, because a failed load may crash Triton. Its models are then loaded
beside those of the old release and rehearsed; only after that do they become public. Triton swaps an ensemble
atomically, and requests in flight complete with the models they started with. The old release stays loaded for a
rollback; the one before it is unloaded. A failed rollout leaves the public release as it was.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from plurum.errors import OutputError, PlurumError, ServerError
from plurum.serving.releases.rehearsal import check_release, rehearse
from plurum.serving.releases.releases import Releases, ReleaseState, RolloutOrder, RolloutReport
from plurum.serving.releases.snapshot import Snapshots
from plurum.serving.triton.server import Server
from plurum.serving.triton.settings import ReleaseTrial
from plurum.spec import read_ensemble

__all__ = ["Rollout"]

_log = logging.getLogger(__name__)

_LOAD_S, _REQUEST_S = 300.0, 60.0
# How often, at intervals of 1 s, writing the outcome is retried, for example on a full disk.
_REPORT_TRIES = 60


@dataclass
class Rollout:
    """Performs one order.

    Attributes:
        server: Running server, with the public release loaded under its tag.
        releases: Folder of the releases, which also receives the report.
        order: RolloutOrder to perform.
        copies: Copies of the releases, made before they are checked and loaded; None loads them from their folder.
        lines: Completed steps.
    """

    server: Server
    releases: Releases
    order: RolloutOrder
    copies: Snapshots | None = None
    lines: list[str] = field(default_factory=list)

    def run(self) -> None:
        """Perform the order, and write its outcome to the report."""
        state = self.releases.state()
        try:
            if state is None:
                raise ServerError("no release is public yet")
            self._roll_back(state) if self.order.release is None else self._roll_out(state, self.order.release)
        except PlurumError as error:
            self._report(str(error), "refused")
            _log.warning("rollout refused: %s", error)
        except Exception as error:
            # The client waits for an outcome, so report every error.
            self._report(f"unexpected error: {error!r}", "refused")
            _log.exception("rollout failed")
        else:
            self._report("done", "done")

    def _roll_out(self, state: ReleaseState, tag: str) -> None:
        if tag == state.current:
            raise ServerError(f"{tag} is already public")
        self._load(state, tag)
        if self.order.percent is not None or self.order.shadow:
            trial = ReleaseTrial(release=tag, percent=self.order.percent or 0, shadow=self.order.shadow)
            self._start_trial(state, trial)
        else:
            self._publish(tag, state, ReleaseState(current=tag, previous=state.current))
        # Keep two releases in memory, not three; a later rollback reloads its release.
        self._unload(state.previous, state.trial.release if state.trial else None, but=tag)

    def _roll_back(self, state: ReleaseState) -> None:
        if state.trial is not None:
            self._publish(state.current, state, state.model_copy(update={"trial": None}))
            self._unload(state.trial.release)
            return
        if state.previous is None:
            raise ServerError("there is no previous release to roll back to")
        self._load(state, state.previous)
        self._publish(state.previous, state, ReleaseState(current=state.previous, previous=state.current))

    def _start_trial(self, state: ReleaseState, trial: ReleaseTrial) -> None:
        members, public = (
            [member.name for member in read_ensemble(self._path(tag) / "ensemble.json").members]
            for tag in (trial.release, state.current)
        )
        if trial.percent and members != public:
            raise ServerError(
                f"members: expected {', '.join(public)}, as in the public release whose metadata clients read, got "
                f"{', '.join(members)}. Compare the releases with --shadow instead."
            )
        self._change(
            state,
            ReleaseState(current=state.current, previous=state.previous, trial=trial),
            lambda: self.server.models.put_on_trial(trial, state.current, _LOAD_S),
        )
        what = "is compared with it" if trial.shadow else f"handles {trial.percent:g} % of the requests"
        self._report(f"{state.current} is public; {trial.release} {what}")

    def _unload(self, *tags: str | None, but: str | None = None) -> None:
        for tag in tags:
            if tag is not None and tag != but and self.server.models.has_release(tag):
                self.server.models.remove_release(tag, _LOAD_S)
                self._report(f"{tag} is unloaded")

    def _load(self, state: ReleaseState, tag: str) -> None:
        """Check, load and rehearse a release, unless it is loaded already."""
        if self.server.models.has_release(tag):
            self._report(f"{tag} is still loaded")
            return
        repository = self._path(tag)
        ensemble = read_ensemble(repository / "ensemble.json")
        public = read_ensemble(self._path(state.current) / "ensemble.json")
        check_release(repository, public, ensemble)
        self._report(f"{tag} passed its export's gate, and its files are unchanged since")
        with self.server.create_rehearsal_server(repository, tag) as rehearsal:
            if (probe := rehearsal.probe()) is not None:
                rehearse(probe, repository, ensemble, _REQUEST_S)
        self._report(f"{tag} passed its rehearsal on a separate server")
        try:
            probe = self.server.models.add_release(repository, tag, _LOAD_S)
            self._report(f"{tag} is loaded beside {state.current}")
            difference = rehearse(probe, repository, ensemble, _REQUEST_S)
        except PlurumError:
            self.server.models.remove_release(tag, _LOAD_S)
            raise
        self._report(f"{tag} predicts what it predicted at export (probabilities differ by at most {difference:.1g})")

    def _path(self, tag: str) -> Path:
        folder = self.releases.path(tag)
        return folder if self.copies is None else self.copies.take(folder, tag).path

    def _publish(self, tag: str, state: ReleaseState, new: ReleaseState) -> None:
        self._change(state, new, lambda: self.server.models.publish(tag, _LOAD_S))
        self._report(f"{tag} is public")

    def _change(self, state: ReleaseState, new: ReleaseState, act: Callable[[], None]) -> None:
        """Change to another state; a server that is restarted meanwhile starts with the new state."""
        self.releases.write_state(new)
        try:
            act()
        except ServerError:
            try:
                self.releases.write_state(state)
            finally:
                # Some of the new release's ensembles may already be public.
                self.server.models.publish(state.current, _LOAD_S)
            raise

    def _report(self, line: str, outcome: str | None = None) -> None:
        self.lines.append(line)
        _log.info("rollout: %s", line)
        report = RolloutReport.model_validate({"number": self.order.number, "lines": self.lines, "outcome": outcome})
        # The client waits for the outcome, so retry it; a step that could not be written is in the next report.
        for _ in range(_REPORT_TRIES if outcome else 1):
            try:
                self.releases.write_report(report)
            except OutputError as error:
                _log.warning("rollout: the report could not be written: %s", error)
                time.sleep(1 if outcome else 0)
            else:
                return
