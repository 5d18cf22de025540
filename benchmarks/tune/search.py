"""Successive halving over variants of a served ensemble, each measured as a whole and under load.

The original repository is served all the time and measured just before and just after each variant. The ratio counts,
as other work on the machine differs from one variant to the next.
"""

from __future__ import annotations

import functools
import logging
import math
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from plurum.benchmarks.tools.load import LoadFigures, average_of, closed_loop, member_probabilities, requests_of
from plurum.benchmarks.tools.servers import server_of
from plurum.benchmarks.tools.turns import in_turns
from plurum.benchmarks.tune.repository import Artefacts, write_variant
from plurum.benchmarks.tune.result import Final, Objective, Side, TuneTrial
from plurum.benchmarks.tune.variant import AS_IS, Form, Placement, Variant
from plurum.errors import ServerError
from plurum.files import write_text
from plurum.serving import Server
from plurum.spec import Metadata

__all__ = ["WORTH", "Search", "TuneJournal", "is_preferable"]

_log = logging.getLogger(__name__)

# A smaller ratio is no reason to change: turns of a few seconds scatter by more.
WORTH = 1.02
# For equal rates, the 99th percentile must be lower by this factor: few requests of a turn determine it.
_SOONER = 1.1
# Of a probability: what FP32 graphs may differ from PyTorch.
_TOLERANCE = 1e-4
# Servers allocate memory for every size of batch in it.
_WARM_UP_S = 2.0
# One in so many variants goes to the next turn.
_KEPT = 3


def is_preferable(gain: float, p99_ms: float, before_p99_ms: float) -> bool:
    """Return True if this ratio of images per second, with this 99th percentile, is clearly better than before."""
    return gain > WORTH or (gain * WORTH >= 1 and p99_ms * _SOONER < before_p99_ms)


class _Page(Metadata):
    key: str
    trials: tuple[TuneTrial, ...]


class TuneJournal:
    """The trials of a tuning so far, in a file, so that an interrupted tuning resumes."""

    def __init__(self, file: Path, key: str) -> None:
        self._file, self._key = file, key
        self.trials: list[TuneTrial] = []
        try:
            page = _Page.model_validate_json(file.read_bytes())
        except (OSError, ValidationError):
            return
        if page.key == key:
            self.trials = list(page.trials)

    def find(self, stage: str, turn: int, seconds: float, variant: Variant) -> TuneTrial | None:
        """Return that trial, or None if it was not taken."""
        key = (stage, turn, seconds, variant)
        return next((one for one in self.trials if (one.stage, one.turn, one.seconds, one.variant) == key), None)

    def add(self, trial: TuneTrial) -> None:
        """Add a trial, also on disk."""
        self.trials.append(trial)
        write_text(self._file, _Page(key=self._key, trials=tuple(self.trials)).model_dump_json())


class Search:
    """Search for the best variant, to be used in a `with` block.

    Args:
        artefacts: Exports by name.
        objective: Objective of the tuning.
        images: Encoded images, sent in turn.
        seconds: Length of the first turn of a stage.
        journal: Journal of all trials.
        folder: Folder for one repository of links.
        progress: Receives one line about each step.
    """

    def __init__(
        self,
        artefacts: Mapping[str, Artefacts],
        objective: Objective,
        images: Sequence[bytes],
        seconds: float,
        journal: TuneJournal,
        folder: Path,
        progress: Callable[[str], None],
    ) -> None:
        self._artefacts, self._objective, self._images = artefacts, objective, images
        self._seconds, self._journal, self._folder, self._progress = seconds, journal, folder, progress
        self._references: dict[tuple[str, Form], npt.NDArray[np.float32]] = {}
        self._before: Server | None = None

    def __enter__(self) -> Search:
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            self._before.stop()

    def best(self, stage: str, variants: Sequence[Variant], holder: Variant | None = None) -> Variant:
        """Return the best of `variants`, or the holder where none is clearly better.

        All variants get a short turn, the best third one twice as long, until one is left. The holder takes part in
        every turn. Of variants with equal rates, the one with the lower latency is better.

        Raises:
            ServerError: None of the variants can be served.
        """
        left, turn, seconds = list(variants), 1, self._seconds
        order = random.Random(stage)  # noqa: S311 (an order, not a secret)
        while left and (holder is not None or len(left) > 1):
            field = [*left, *([holder] if holder is not None else [])]
            trials = [self._trial(stage, turn, seconds, one) for one in order.sample(field, len(field))]
            held = next((one for one in trials if one.variant == holder and not one.error), None)
            good = self._ranked([one for one in trials if not one.error], held)
            if not good:
                raise ServerError(f"none of {len(field)} variants works; the first: {trials[0].error}")
            rivals = [one for one in good if one.variant != holder]
            if holder is not None and len(rivals) <= 1:
                return rivals[0].variant if rivals and self._beats(rivals[0], held) else holder
            left = [one.variant for one in rivals[: math.ceil(len(rivals) / _KEPT)]]
            turn, seconds = turn + 1, 2 * seconds
        return left[0] if left or holder is None else holder

    def _ranked(self, trials: Sequence[TuneTrial], held: TuneTrial | None) -> list[TuneTrial]:
        """Return trials from the best: those that beat the holder first; of equal rates, the lowest latency first."""
        ranked = sorted(trials, key=self._merit, reverse=True)
        near = [one for one in ranked if 0 < self._merit(ranked[0]) <= WORTH * self._merit(one)]
        ranked = [*sorted(near, key=self._p99_ms), *ranked[len(near) :]]
        return ranked if held is None else sorted(ranked, key=lambda one: not self._beats(one, held))

    def _beats(self, rival: TuneTrial, held: TuneTrial | None) -> bool:
        if held is None:
            return True
        gain, before = self._merit(rival), self._merit(held)
        if min(gain, before) <= 0:
            return gain > before + (WORTH - 1) * abs(before)
        return is_preferable(gain / before, self._p99_ms(rival), self._p99_ms(held))

    def _p99_ms(self, trial: TuneTrial) -> float:
        return self._objective.best(trial.points).p99_ms

    def _merit(self, trial: TuneTrial) -> float:
        return trial.merit(self._objective)

    def _trial(self, stage: str, turn: int, seconds: float, variant: Variant) -> TuneTrial:
        if (before := self._journal.find(stage, turn, seconds, variant)) is not None:
            return before
        self._progress(f"{stage}, turn {turn}: {variant}")
        trial = TuneTrial(stage=stage, turn=turn, seconds=seconds, variant=variant)
        # Twice: one crash of a server need not be due to the variant.
        for _ in range(2):
            try:
                found = self._measured(variant, seconds)
                break
            except ServerError as error:
                found = {"error": str(error)}
        trial = trial.model_copy(update=found)
        _log.debug("%s: %s", variant, trial.error or self._objective.best(trial.points))
        self._journal.add(trial)
        return trial

    def _measured(self, variant: Variant, seconds: float) -> dict[str, Any]:
        """Return the fields of a trial that a measurement fills."""
        artefacts = self._artefacts[variant.artefacts]
        before, reference = self._original(), self._reference(artefacts, variant.form)
        self._write(artefacts, variant)
        with server_of(self._folder) as server:
            found = self._probabilities(server)
            difference = float(np.abs(found - reference).max())
            # True for NaN, too.
            if not difference <= _TOLERANCE:
                return {"error": f"predictions differ from those of the export by {difference:.1e}"}
            # In this order a steady change of the machine affects both alike.
            first, *halves, last = (
                self._loads(one, self._objective.clients, seconds / 2) for one in (before, server, server, before)
            )
        return {"points": _means(halves), "beside": _means([first, last])}

    def _original(self) -> Server:
        """Return the server of the original repository, started again if it has failed."""
        if self._before is not None:
            try:
                self._before.check()
            except ServerError as error:
                _log.debug("started again: %s", error)
                self._before.stop()
                self._before = None
        if self._before is None:
            self._before = server_of(self._artefacts[AS_IS].path).__enter__()
        return self._before

    def _reference(self, artefacts: Artefacts, form: Form) -> npt.NDArray[np.float32]:
        """Return the probabilities of the export in this form, on the backends that export has checked."""
        key = (artefacts.name, form)
        if key not in self._references:
            if artefacts.name == AS_IS and form == artefacts.form:
                self._references[key] = self._probabilities(self._original())
            else:
                graphs = {
                    one: Placement(backend=artefacts.backends[one][0], instances=1) for one in artefacts.graphs(form)
                }
                self._write(artefacts, Variant(artefacts=artefacts.name, form=form, graphs=graphs))
                with server_of(self._folder) as server:
                    self._references[key] = self._probabilities(server)
        return self._references[key]

    def _write(self, artefacts: Artefacts, variant: Variant) -> None:
        """Write a variant for a trial to the folder."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        write_variant(artefacts, variant, self._folder, trial=True)

    def _probabilities(self, server: Server) -> npt.NDArray[np.float32]:
        return member_probabilities(server.urls.grpc, self._requests)

    @functools.cached_property
    def _requests(self) -> list[bytes]:
        return requests_of(self._images, self._artefacts[AS_IS].ensemble.image, self._objective.model)

    def final(self, after: Path, turns: int, seconds: float) -> list[Final]:
        """Measure a repository and the original in turn, with both served at once.

        Besides the loads of the objective, a single client is measured.
        """
        clients = sorted({1, *self._objective.clients})
        finals = []
        self._progress("at the end: starting the servers of before and after")
        with server_of(after) as second:
            servers: dict[Side, Server] = {"before": self._original(), "after": second}
            for turn, side in in_turns(list(servers), turns):
                self._progress(f"at the end, turn {turn} of {turns}: {side}")
                finals.append(Final(side=side, turn=turn, points=self._loads(servers[side], clients, seconds)))
        return finals

    def _loads(self, server: Server, clients: Sequence[int], seconds: float) -> tuple[LoadFigures, ...]:
        """Return the figures of a server under each load, after a warm-up with the heaviest that does not count."""
        url, requests = server.urls.grpc, self._requests
        closed_loop(url, requests, max(clients), min(_WARM_UP_S, seconds))
        return tuple(closed_loop(url, requests, one, seconds) for one in clients)


def _means(turns: Sequence[Sequence[LoadFigures]]) -> tuple[LoadFigures, ...]:
    return tuple(average_of(points) for points in zip(*turns, strict=True))
