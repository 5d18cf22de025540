"""Find the ensembles of architectures that are worth their cost: compare every vote with the best cheaper alternative.

Votes are fitted on validation images, by the same code as `plurum fit --select all`, and scored on test images. The
alternative that a vote must beat is chosen on validation images too. A vote is worth its cost if, on the same bootstrap
draws, its accuracy or NLL is significantly better (95 % interval excludes 0) and neither is significantly worse.

Legend: predictions are probabilities `[images, members, classes]`, float64; labels and groups are `[images]`, int64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from plurum.benchmarks.compare.comparison import SHOWN_METRICS, Vote
from plurum.predictions.arrays import Floats
from plurum.predictions.scores import compute_losses
from plurum.settings.fitting import FitSettings
from plurum.training.fitting.votes import FittedVote, ValidationPredictions, fit_vote
from plurum.training.statistics.bootstrap import Bootstrap, mean_interval, percentile_interval
from plurum.training.statistics.metrics import LabelledPredictions, Scorer
from plurum.training.statistics.results import Estimate
from plurum.training.statistics.wording import significant_change

__all__ = ["metrics_of", "subsets_of", "votes_of"]


@dataclass(frozen=True)
class _Candidate:
    """A vote of members, by index: its validation NLL, and for each test image 1 if it is right, and the NLL, nats."""

    members: tuple[int, ...]
    vote: FittedVote
    validation_nll: float
    right: Floats
    losses: Floats
    latency_ms: float


def subsets_of(members: int, largest: int) -> list[tuple[int, ...]]:
    """Return all sets of 1 to `largest` out of `members` members, small sets first."""
    return [one for size in range(1, min(members, largest) + 1) for one in combinations(range(members), size)]


def votes_of(
    names: Sequence[str],
    latencies_ms: Sequence[float],
    validation: ValidationPredictions,
    test: ValidationPredictions,
    largest: int,
    settings: FitSettings,
    progress: Callable[[int, str], None] = lambda _count, _note: None,
) -> tuple[Vote, ...]:
    """Return the votes of all sets of 2 to `largest` members, in ascending order of latency.

    Args:
        names: Names of the members.
        latencies_ms: Latency of one image, by member, ms.
        validation: Predictions that votes are fitted on, and alternatives chosen by.
        test: Predictions that votes are scored on.
        largest: Largest number of members of a vote.
        settings: `draws` and `seed` of the bootstraps.
        progress: Receives the number 1 and the name of each vote that is done.
    """
    bootstrap = Bootstrap(test.groups, settings.draws, settings.seed)
    candidates = []
    for members in subsets_of(len(names), largest):
        candidates.append(_candidate(members, latencies_ms, validation, test, settings))
        progress(1, " + ".join(names[index] for index in members))
    votes = [_vote(one, candidates, names, bootstrap) for one in candidates if len(one.members) > 1]
    return tuple(sorted(votes, key=lambda vote: vote.latency_ms))


def metrics_of(answers: LabelledPredictions, bootstrap: Bootstrap) -> dict[str, Estimate]:
    """Return the shown metrics of answers to the images of the bootstrap's groups, with 95 % intervals."""
    scorer = Scorer(answers)
    plain = scorer(np.ones((len(answers.labels), 1), dtype=np.float32)).overall
    drawn = [scorer(counts).overall for counts in bootstrap.blocks()]
    return {
        name: _figure(plain[name][0], *percentile_interval(np.concatenate([part[name] for part in drawn])))
        for name in SHOWN_METRICS
    }


def _candidate(
    members: tuple[int, ...],
    latencies_ms: Sequence[float],
    validation: ValidationPredictions,
    test: ValidationPredictions,
    settings: FitSettings,
) -> _Candidate:
    rows = np.array(members, dtype=np.int64)
    vote = fit_vote(validation.of(rows), settings)
    fitted = vote.verdict(validation.predictions[:, rows]).probabilities
    verdict = vote.verdict(test.predictions[:, rows])
    return _Candidate(
        members=members,
        vote=vote,
        validation_nll=float(compute_losses(fitted, validation.labels).mean()),
        right=(verdict.label == test.labels).astype(np.float64),
        losses=compute_losses(verdict.probabilities, test.labels),
        latency_ms=sum(latencies_ms[index] for index in members),
    )


def _vote(one: _Candidate, candidates: Sequence[_Candidate], names: Sequence[str], bootstrap: Bootstrap) -> Vote:
    cheaper = [other for other in candidates if other.latency_ms < one.latency_ms]
    beside = min(cheaper, key=lambda other: other.validation_nll)
    gained = _mean(one.right - beside.right, bootstrap)
    change = _mean(one.losses - beside.losses, bootstrap)
    return Vote(
        members=tuple(names[index] for index in one.members),
        weights=one.vote.rule.weights,
        temperature=one.vote.rule.temperature,
        accuracy=_mean(one.right, bootstrap),
        nll=_mean(one.losses, bootstrap),
        latency_ms=one.latency_ms,
        beside=tuple(names[index] for index in beside.members),
        accuracy_gained=gained,
        nll_change=change,
        verdict=_verdict(gained, change),
    )


def _verdict(gained: Estimate, change: Estimate) -> Literal["worth its cost", "no better", "worse"]:
    said = {significant_change(gained, "higher"), significant_change(change, "lower")}
    if "better" in said and "worse" not in said:
        return "worth its cost"
    return "worse" if "worse" in said and "better" not in said else "no better"


def _mean(values: Floats, bootstrap: Bootstrap) -> Estimate:
    return _figure(float(values.mean()), *mean_interval(values, bootstrap))


def _figure(*numbers: float) -> Estimate:
    value, low, high = (None if np.isnan(number) else float(number) for number in numbers)
    return Estimate(value=value, low=low, high=high)
