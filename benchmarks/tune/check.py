"""Find out in a minute or two whether tuning a repository is worth it: `plurum tune REPO --check`.

The repository is served beside at most two alternatives: in its other form, and on its other backend. All of them get
the same load, in turns.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from plurum.benchmarks.tools.load import closed_loop, requests_of
from plurum.benchmarks.tools.servers import server_of
from plurum.benchmarks.tools.turns import in_turns
from plurum.benchmarks.tune.repository import Artefacts, read_artefacts, write_variant
from plurum.benchmarks.tune.result import Final, Gain, Objective, gain_of
from plurum.benchmarks.tune.search import WORTH
from plurum.benchmarks.tune.space import alternatives
from plurum.benchmarks.tune.tuning import available_backends, images_to_send, objective_of
from plurum.benchmarks.tune.variant import AS_IS, Variant
from plurum.serving import usable_cores
from plurum.settings.benchmarks import TuneSettings
from plurum.spec import Metadata

__all__ = ["Alternative", "TuneCheck", "check_tuning"]

_WARM_UP_S = 2.0


class Alternative(Metadata):
    """Another way to serve a repository.

    Attributes:
        variant: Way to serve it.
        gain: Ratio of its images per second to those of the repository as it is.
    """

    variant: Variant
    gain: Gain


class TuneCheck(Metadata):
    """Result of a check.

    Attributes:
        repository: Repository, as the user named it.
        objective: Load.
        alternatives: Alternatives that were measured.
        is_worth: True if one of them has significantly more images per second.
    """

    repository: str
    objective: Objective
    alternatives: tuple[Alternative, ...]
    is_worth: bool

    def __str__(self) -> str:
        found = "; ".join(f"{one.variant}: {one.gain}" for one in self.alternatives)
        if self.is_worth:
            return f"worth it: {found}"
        return f"not worth it: {found or 'there is nothing else to try without a run'}"


def check_tuning(
    repository: Path, settings: TuneSettings, progress: Callable[[str], None] = lambda _: None
) -> TuneCheck:
    """Compare `repository` with other ways to serve it, in short turns.

    Tuning is worth it if an alternative serves over 2 % more images per second, and the 95 % interval excludes 1.

    Args:
        repository: Repository as export writes it.
        settings: Load, images, and length and number of the turns.
        progress: Receives one line about each step.

    Raises:
        RepositoryError: The repository cannot be tuned.
        ServerError: The repository, or an alternative, cannot be served.
    """
    own, cores = read_artefacts(AS_IS, repository), usable_cores()
    objective = objective_of(settings, cores)
    others = alternatives(own, cores, available_backends())
    gains = _gains(own, others, objective, settings, progress) if others else []
    measured = tuple(Alternative(variant=one, gain=gain) for one, gain in zip(others, gains, strict=True))
    is_worth = any(gain.ratio > WORTH and (gain.low or 0) > 1 for gain in gains)
    return TuneCheck(repository=str(repository), objective=objective, alternatives=measured, is_worth=is_worth)


def _gains(
    own: Artefacts, others: list[Variant], objective: Objective, settings: TuneSettings, progress: Callable[[str], None]
) -> list[Gain]:
    """Return the gain of each alternative."""
    requests = requests_of(images_to_send(own, settings), own.ensemble.image, objective.model)
    finals: dict[str, list[Final]] = {str(one): [] for one in others}
    with ExitStack() as stack, tempfile.TemporaryDirectory(prefix="plurum_tune_") as folder:
        progress("starting the server of the repository as it is")
        urls = {"": stack.enter_context(server_of(own.path)).urls.grpc}
        for number, one in enumerate(others):
            progress(f"starting the server of: {one}")
            served = Path(folder, str(number))
            served.mkdir()
            write_variant(own, one, served, trial=True)
            urls[str(one)] = stack.enter_context(server_of(served)).urls.grpc
        for url in urls.values():
            closed_loop(url, requests, max(objective.clients), min(_WARM_UP_S, settings.seconds))
        for turn, name in in_turns(list(urls), settings.turns):
            progress(f"turn {turn} of {settings.turns}: {name or 'as it is'}")
            points = tuple(closed_loop(urls[name], requests, load, settings.seconds) for load in objective.clients)
            for each in [name] if name else finals:
                finals[each].append(Final(side="after" if name else "before", turn=turn, points=points))
        stack.close()
    return [gain_of(turns, objective) for turns in finals.values()]
