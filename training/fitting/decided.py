"""Figures of the decisions at an operating point: of all images, of those without review, and of patients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from plurum.figures import PointScores
from plurum.predictions.arrays import Floats, Ints
from plurum.run import number_patients
from plurum.spec import OperatingPoint, PatientRule
from plurum.training.statistics.bootstrap import Bootstrap, mean_interval
from plurum.training.statistics.decisions import DecisionFigures, decision_figures
from plurum.training.statistics.patients import group_by_patient
from plurum.training.statistics.results import Estimate
from plurum.voting import DecisionPoint, Verdict, decide_groups

__all__ = ["DecidedSplit", "PointScores", "score_point"]


@dataclass(frozen=True)
class DecidedSplit:
    """Verdict on the labelled images of one split.

    Attributes:
        verdict: Verdict of the vote.
        labels: True classes, `[images]`.
        patients: Patient of each image; an empty string if unknown.
        weights: Weight of each image, `[images]`; None if each is 1.
    """

    verdict: Verdict
    labels: Ints
    patients: Sequence[str]
    weights: Floats | None


def score_point(
    split: DecidedSplit, metadata: OperatingPoint, point: DecisionPoint, rule: PatientRule | None, seed: int, draws: int
) -> PointScores:
    """Return the figures of the decisions for the images of one split.

    Args:
        split: Verdict on the images.
        metadata: Operating point as stored.
        point: The same point with indices.
        rule: Rule that combines the predictions for a patient's images; None if no patient is known.
        seed: Random seed of the bootstrap.
        draws: Number of bootstrap resamples of patients.
    """
    bootstrap = Bootstrap(number_patients(split.patients), draws, seed)
    costs = _costs(split, metadata, bootstrap)
    if point.positive is None:
        return PointScores(cost=costs[0], usual_cost=costs[1])
    is_positive, decided = split.labels == point.positive, split.verdict.label == point.positive
    review = split.verdict.review
    return PointScores(
        images=decision_figures(is_positive, decided, np.ones_like(review), bootstrap, split.weights),
        unreviewed=decision_figures(is_positive, decided, ~review, bootstrap, split.weights),
        patients=None if rule is None else _score_patients(split, point, rule, seed, draws),
        cost=costs[0],
        usual_cost=costs[1],
    )


def _score_patients(
    split: DecidedSplit, point: DecisionPoint, rule: PatientRule, seed: int, draws: int
) -> DecisionFigures | None:
    patients = group_by_patient(split.patients, split.labels)
    if patients is None or not patients.names:
        return None
    pooled = patients.probabilities(split.verdict.probabilities, split.verdict.label, rule)
    decided = decide_groups(rule, pooled, point) == point.positive
    bootstrap = Bootstrap(np.arange(len(decided)), draws, seed)
    return decision_figures(patients.labels == point.positive, decided, np.ones_like(decided), bootstrap)


def _costs(
    split: DecidedSplit, metadata: OperatingPoint, bootstrap: Bootstrap
) -> tuple[Estimate | None, Estimate | None]:
    if metadata.costs is None:
        return None, None
    matrix = np.asarray(metadata.costs)
    at_point, usual = split.verdict.label, split.verdict.probabilities.argmax(axis=-1)

    def figure(decided: Ints) -> Estimate:
        costs = matrix[split.labels, decided]
        low, high = mean_interval(costs, bootstrap, weights=split.weights)
        return Estimate(value=float(np.average(costs, weights=split.weights)), low=low, high=high)

    return figure(at_point), figure(usual)
