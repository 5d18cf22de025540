"""Successive halving over variants of a served ensemble, each measured as a whole and under load.

The repository as it was is served all the time and asked just before and just after each variant: what counts is the
ratio, as the rest of the machine is seldom as quiet for one variant as for the next.
"""

from __future__ import annotations

import logging
import math
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from plurum.benchmarks.tools.load import Point, answers, closed_loop, mean_of, requests_of
from plurum.benchmarks.tune.repository import Artefacts, write_variant
from plurum.benchmarks.tune.result import Final, Objective, Side, Trial
from plurum.benchmarks.tune.variant import AS_IS, Form, Variant
from plurum.errors import ServerError
from plurum.files import write_text
from plurum.serving import Server, ServerSettings
from plurum.spec import Metadata

__all__ = ["WORTH", "Journal", "Search", "preferable", "served"]

_log = logging.getLogger(__name__)

# What is better by less stays as it is: turns of a few seconds scatter by more.
WORTH = 1.02
# As good, and its 99th percentile is lower by this: few requests of a turn have a say in that.
_SOONER = 1.1
# Of a probability: as far as an FP32 graph may be from PyTorch.
_TOLERANCE = 1e-4
# Memory for every size of batch is got in it.
_WARM_UP_S = 2.0
# One of so many goes on.
_KEPT = 3


def preferable(gain: float, p99_ms: float, before_p99_ms: float) -> bool:
    """Whether so many times as many images a second, with this 99th percentile, are clearly better than before."""
    return gain > WORTH or (gain * WORTH >= 1 and p99_ms * _SOONER < before_p99_ms)


class _Page(Metadata):
    key: str
    trials: tuple[Trial, ...]


class Journal:
    """The trials of a tuning so far, in a file, so that the same tuning goes on where it was interrupted."""

    def __init__(self, file: Path, key: str) -> None:
        self._file, self._key = file, key
        self.trials: list[Trial] = []
        try:
            page = _Page.model_validate_json(file.read_bytes())
        except (OSError, ValidationError):
            return
        if page.key == key:
            self.trials = list(page.trials)

    def find(self, stage: str, turn: int, seconds: float, variant: Variant) -> Trial | None:
        """Return that trial if it was taken."""
        wanted = (stage, turn, seconds, variant)
        return next((one for one in self.trials if (one.stage, one.turn, one.seconds, one.variant) == wanted), None)

    def add(self, trial: Trial) -> None:
        """Take it down, on disk too."""
        self.trials.append(trial)
        write_text(self._file, _Page(key=self._key, trials=tuple(self.trials)).model_dump_json())


class Search:
    """Chooses among variants.

    Args:
        artefacts: By name.
        objective: What is best.
        images: Encoded, sent in turn.
        seconds: Length of the first turn of a stage.
        journal: Where trials are taken down.
        folder: A place for one repository of links.
        progress: Told what is being done, a line each.
    """

    def __init__(
        self,
        artefacts: Mapping[str, Artefacts],
        objective: Objective,
        images: Sequence[bytes],
        seconds: float,
        journal: Journal,
        folder: Path,
        progress: Callable[[str], None],
    ) -> None:
        self._artefacts, self._objective, self._images = artefacts, objective, images
        self._seconds, self._journal, self._folder, self._progress = seconds, journal, folder, progress
        self._prepared: dict[str, list[bytes]] = {}
        self._references: dict[tuple[str, Form], npt.NDArray[np.float32]] = {}
        self._before: Server | None = None

    def __enter__(self) -> Search:
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            self._before.stop()

    def best(self, stage: str, variants: Sequence[Variant], holder: Variant | None = None) -> Variant:
        """Return the best of `variants`, or the holder where none is clearly better.

        Everyone gets a short turn, the best third one twice as long, until one is left. The holder takes part in every
        turn. Who answers as many images a second is better if it answers sooner.

        Raises:
            ServerError: none can be served.
        """
        left, turn, seconds = list(variants), 1, self._seconds
        # An order, not a secret.
        order = random.Random(stage)  # noqa: S311
        while left and (holder is not None or len(left) > 1):
            field = [*left, *([holder] if holder is not None else [])]
            trials = [self._trial(stage, turn, seconds, one) for one in order.sample(field, len(field))]
            held = next((one for one in trials if one.variant == holder and not one.error), None)
            good = self._ranked([one for one in trials if not one.error], held)
            if not good:
                raise ServerError(f"none of {len(field)} ways to serve it works; the first says: {trials[0].error}")
            rivals = [one for one in good if one.variant != holder]
            if holder is not None and len(rivals) <= 1:
                return rivals[0].variant if rivals and self._beats(rivals[0], held) else holder
            left = [one.variant for one in rivals[: math.ceil(len(rivals) / _KEPT)]]
            turn, seconds = turn + 1, 2 * seconds
        return left[0] if left or holder is None else holder

    def _ranked(self, trials: Sequence[Trial], held: Trial | None) -> list[Trial]:
        """Return them from the best on: who beats the holder first; of those that are as good, who answers soonest."""
        ranked = sorted(trials, key=self._merit, reverse=True)
        near = [one for one in ranked if 0 < self._merit(ranked[0]) <= WORTH * self._merit(one)]
        ranked = [*sorted(near, key=self._p99_ms), *ranked[len(near) :]]
        return ranked if held is None else sorted(ranked, key=lambda one: not self._beats(one, held))

    def _beats(self, rival: Trial, held: Trial | None) -> bool:
        if held is None:
            return True
        gain, before = self._merit(rival), self._merit(held)
        if min(gain, before) <= 0:
            return gain > before + (WORTH - 1) * abs(before)
        return preferable(gain / before, self._p99_ms(rival), self._p99_ms(held))

    def _p99_ms(self, trial: Trial) -> float:
        return self._objective.best(trial.points).p99_ms

    def _merit(self, trial: Trial) -> float:
        return trial.merit(self._objective)

    def _trial(self, stage: str, turn: int, seconds: float, variant: Variant) -> Trial:
        if (before := self._journal.find(stage, turn, seconds, variant)) is not None:
            return before
        self._progress(f"{stage}, turn {turn}: {variant}")
        trial = Trial(stage=stage, turn=turn, seconds=seconds, variant=variant)
        # Twice: a server that dies once need not be the variant's fault.
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
        """Return what a trial has found out."""
        artefacts = self._artefacts[variant.artefacts]
        before, reference = self._yardstick(), self._reference(artefacts, variant.form)
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        write_variant(artefacts, variant, self._folder, trial=True)
        with served(self._folder) as server:
            found = self._answers(server, self._objective.model)
            difference = float(np.abs(found - reference).max())
            # Also where a NaN came out.
            if not difference <= _TOLERANCE:
                return {"error": f"answers otherwise than its artefacts as exported: by {difference:.1e}"}
            # In this order what changes steadily in between hits both alike.
            first, *halves, last = (
                self._loads(one, self._objective.clients, seconds / 2) for one in (before, server, server, before)
            )
        return {"points": _means(halves), "beside": _means([first, last])}

    def _yardstick(self) -> Server:
        """Return the server of the repository as it was, started anew where it is away."""
        if self._before is not None:
            try:
                self._before.check()
            except ServerError as error:
                _log.debug("started anew: %s", error)
                self._before.stop()
            else:
                return self._before
        self._before = None
        server = served(self._artefacts[AS_IS].path)
        self._before = server.__enter__()
        return server

    def _reference(self, artefacts: Artefacts, form: Form) -> npt.NDArray[np.float32]:
        """Return what they answer as they were exported; export has checked chain and fused graph each on its own."""
        asked = (artefacts.name, form)
        if asked not in self._references:
            with ExitStack() as stack:
                own = artefacts.name == AS_IS
                server = self._yardstick() if own else stack.enter_context(served(artefacts.path))
                model = "ensemble_fused" if form == "fused" else self._objective.model
                self._references[asked] = self._answers(server, model)
        return self._references[asked]

    def _answers(self, server: Server, model: str) -> npt.NDArray[np.float32]:
        return answers(server.urls.grpc, self._requests(model))

    def _requests(self, model: str) -> list[bytes]:
        """Return the images as this model takes them, prepared once."""
        if model not in self._prepared:
            spec = self._artefacts[AS_IS].ensemble.image
            self._prepared[model] = requests_of(self._images, spec, model)
        return self._prepared[model]

    def final(self, after: Path, turns: int, seconds: float) -> list[Final]:
        """Measure a repository and the one that it was made from: both are served, and asked by turns.

        Besides the objective's loads a single client is measured.
        """
        clients = sorted({1, *self._objective.clients})
        finals = []
        order = random.Random(0)  # noqa: S311 (an order, not a secret)
        self._progress("at the end: starting the servers of before and after")
        with served(after) as second:
            servers: dict[Side, Server] = {"before": self._yardstick(), "after": second}
            for turn in range(1, turns + 1):
                for side in order.sample(list(servers), len(servers)):
                    self._progress(f"at the end, turn {turn} of {turns}: {side}")
                    finals.append(Final(side=side, turn=turn, points=self._loads(servers[side], clients, seconds)))
        return finals

    def _loads(self, server: Server, clients: Sequence[int], seconds: float) -> tuple[Point, ...]:
        """Return what a server makes of each load, after a warm-up with the heaviest that is not counted."""
        url, requests = server.urls.grpc, self._requests(self._objective.model)
        closed_loop(url, requests, max(clients), min(_WARM_UP_S, seconds))
        return tuple(closed_loop(url, requests, one, seconds) for one in clients)


def _means(turns: Sequence[Sequence[Point]]) -> tuple[Point, ...]:
    return tuple(mean_of(points) for points in zip(*turns, strict=True))


def served(repository: Path) -> Server:
    """Return a server for `repository` on free ports, to be used in a `with` block."""
    return Server(repository, ServerSettings(http_port=0, grpc_port=0, metrics_port=0))
