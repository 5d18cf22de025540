"""Choose the operating point of a vote, and its review interval.

Legend: probabilities are `[images, classes]`; labels and groups are `[images]`, int64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from plurum.errors import SettingsError
from plurum.predictions.arrays import Bools, Floats, Ints
from plurum.promises.risk_control import count_required_patients, smallest_promise
from plurum.sentences import percent_text
from plurum.settings.fitting import Criterion, FitSettings
from plurum.spec import OperatingPoint
from plurum.training.fitting.costs import Costs, read_costs
from plurum.training.statistics.bootstrap import Bootstrap
from plurum.training.statistics.calibration import review_threshold
from plurum.training.statistics.decisions import DecisionFigures, decision_figures
from plurum.training.statistics.operating_points import Promise, accepted_below, limit_of_class, midpoint_below

__all__ = [
    "CONFIDENCE",
    "LabelledScores",
    "check_point_options",
    "costs_of",
    "figures_of_scores",
    "fit_point",
    "fit_review_interval",
]

# Confidence of a point for which none is requested.
CONFIDENCE = 0.95
# Fitted limits equal the value of some validation image. This margin keeps that image outside the review interval if
# another program sums in another order.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class LabelledScores:
    """Probabilities of a vote for labelled images.

    Attributes:
        probabilities: Calibrated probabilities.
        labels: True classes.
        groups: Patients of the images.
        classes: Class names.
        weights: Weight of each image, `[images]`; None if each is 1.
    """

    probabilities: Floats
    labels: Ints
    groups: Ints
    classes: Sequence[str]
    weights: Floats | None = None


def check_point_options(settings: FitSettings, classes: Sequence[str]) -> None:
    """Check the options of the operating point against the classes.

    Raises:
        SettingsError: an option does not fit the classes.
    """
    criterion, positive = settings.criterion, settings.positive
    if criterion is None:
        return
    if positive is not None and positive not in classes:
        raise SettingsError(f"--positive: unknown class {positive!r}; available: {', '.join(classes)}.")
    if len(classes) != 2 and criterion != "costs":
        raise SettingsError(
            f"--{criterion}: expected two classes, got {len(classes)}. State what each decision costs: --costs CSV."
        )
    if len(classes) != 2 and positive is not None:
        raise SettingsError(f"--positive: expected two classes, got {len(classes)}. Leave it out.")
    if len(classes) == 2 and positive is None:
        raise SettingsError(f"--costs: expected --positive with it, one of {', '.join(classes)}, got none. Add it.")


def costs_of(settings: FitSettings, classes: Sequence[str]) -> Costs:
    """Return the costs of the settings.

    Raises:
        SettingsError: the file is invalid, or its review cost contradicts `--risk`.
    """
    costs = read_costs(Path(settings.costs or ""), classes)
    has_risk = settings.risk != FitSettings.model_fields["risk"].default
    if costs.review is not None and (has_risk or settings.risk_by_class):
        raise SettingsError(
            f"{'--risk' if has_risk else '--risk-by-class'}: can't be combined with the cost of a review in "
            f"{settings.costs}, which decides on reviews. Leave one of them out."
        )
    return costs


def fit_point(known: LabelledScores, settings: FitSettings, costs: Costs | None) -> OperatingPoint | None:
    """Return the operating point that the settings request, without a review interval; None if they request none.

    Raises:
        SettingsError: the point is not reachable: there are too few patients, or its decisions are no better than
            chance.
    """
    criterion = settings.criterion
    if criterion is None:
        return None
    if settings.positive is None:
        if costs is None:
            raise ValueError("expected costs")
        return OperatingPoint(criterion=criterion, costs=costs.matrix, review_cost=costs.review)
    positive = known.classes.index(settings.positive)
    if costs is not None:
        threshold = _threshold_of_costs(costs, positive)
        return OperatingPoint(
            criterion=criterion,
            costs=costs.matrix,
            review_cost=costs.review,
            positive=settings.positive,
            threshold=threshold,
        )
    value = float(getattr(settings, criterion))
    confidence = settings.confidence or CONFIDENCE
    threshold = _proven_threshold(known, criterion, positive, value, confidence)
    point = OperatingPoint(
        criterion=criterion, value=value, confidence=confidence, positive=settings.positive, threshold=threshold
    )
    _check_better_than_chance(known, point, settings)
    return point


def fit_review_interval(known: LabelledScores, point: OperatingPoint, settings: FitSettings) -> OperatingPoint:
    """Return the point of two classes with its review interval.

    With a review cost, the interval is where both decisions are expected to cost more. Otherwise each end is chosen for
    `--risk`: at most that fraction of the decisions beyond it is wrong. With `--confidence`, this holds for new
    patients, unless the images are weighted; else it is the rate among validation images.
    """
    if point.positive is None or point.threshold is None:
        return point
    positive, threshold = known.classes.index(point.positive), point.threshold
    if point.costs is not None and point.review_cost is not None:
        interval = _interval_of_costs(point.costs, point.review_cost, positive, threshold)
        return point.model_copy(update={"review_interval": interval})
    scores, is_positive = known.probabilities[:, positive], known.labels == positive
    decided = scores >= threshold
    # The distance to the certain decision on each side: the review is beyond it.
    low = _review_limit(known, ~decided, scores, is_positive, settings)
    high = _review_limit(known, decided, 1 - scores, ~is_positive, settings)
    ends = min(low, threshold), max(1 - high, threshold)
    # Decisions on both sides of the threshold may all be good enough.
    interval = None if ends[0] == threshold == ends[1] else ends
    return point.model_copy(update={"review_interval": interval})


def _review_limit(known: LabelledScores, side: Bools, scores: Floats, wrong: Bools, settings: FitSettings) -> float:
    """Return the score up to which the decisions of one side need no review, 0 to 1; 1 if none does."""
    if not side.any():
        return 1.0
    if settings.confidence is not None and known.weights is None:
        promise = Promise(settings.estimated_risk, settings.confidence)
        found = accepted_below(scores[side], wrong[side], known.groups[side], promise)
        return 0.0 if found is None else min(found, 1.0)
    weights = None if known.weights is None else known.weights[side]
    confidence = review_threshold(1 - scores[side], wrong[side], settings.estimated_risk, weights)
    return 0.0 if confidence == 1 else min(1 - confidence + _ROUNDING, 1.0)


def _proven_threshold(
    known: LabelledScores, criterion: Criterion, positive: int, value: float, confidence: float
) -> float:
    scores, is_positive = known.probabilities[:, positive], known.labels == positive
    promise = Promise(1 - value, confidence)
    if criterion == "npv":
        found = accepted_below(scores, is_positive, known.groups, promise)
        if found is None:
            raise SettingsError(
                f"--npv: not reachable with these members: no threshold has an NPV of {value:g} at {confidence:.0%} "
                f"confidence on {_patients(known.groups)} validation patients. Request less, or add patients."
            )
        return min(found, 1.0)
    rows = is_positive if criterion == "sensitivity" else ~is_positive
    ranked = scores if criterion == "sensitivity" else -scores
    found = limit_of_class(ranked[rows], known.groups[rows], promise)
    if found is None:
        _refuse_few(criterion, value, confidence, _patients(known.groups[rows]))
        raise ValueError("expected enough patients")
    if criterion == "sensitivity":
        return midpoint_below(found, scores)
    return min(1 - midpoint_below(1 + found, 1 - scores), 1.0)


def _refuse_few(criterion: Criterion, value: float, confidence: float, patients: int) -> None:
    least, reachable = count_required_patients(1 - value, confidence), 1 - smallest_promise(patients, confidence)
    whom = "patients" if criterion == "sensitivity" else "patients of the other class"
    raise SettingsError(
        f"--{criterion}: not reachable with these validation images: {value:g} at {confidence:.0%} confidence needs at "
        f"least {least} {whom}, got {patients}, which allow at most {reachable:.3f}. Request less, or add patients."
    )


def _check_better_than_chance(known: LabelledScores, point: OperatingPoint, settings: FitSettings) -> None:
    """Refuse a point that finds no more of a class than the same number of decisions by chance would."""
    figures = figures_of_scores(known, point, settings)
    fixed, other = (
        ("specificity", "sensitivity") if point.criterion != "sensitivity" else ("sensitivity", "specificity")
    )
    figure = getattr(figures, other)
    # Youden's J of decisions by chance is 0.
    if (getattr(figures, fixed).value or 0.0) + (figure.low or 0.0) > 1:
        return
    raise SettingsError(
        f"--{point.criterion}: not reachable with these members: at {point.value:g} {point.criterion} {other} is "
        f"{percent_text(figure)}, no better than chance. Request less, or train better members."
    )


def figures_of_scores(known: LabelledScores, point: OperatingPoint, settings: FitSettings) -> DecisionFigures:
    """Return the figures of a point of two classes over all images."""
    positive = known.classes.index(point.positive or "")
    decided = known.probabilities[:, positive] >= (point.threshold or 0.0)
    bootstrap = Bootstrap(known.groups, settings.draws, settings.seed)
    everything = np.ones(len(decided), dtype=np.bool_)
    return decision_figures(known.labels == positive, decided, everything, bootstrap, known.weights)


def _threshold_of_costs(costs: Costs, positive: int) -> float:
    """Return the probability of the positive class at which both decisions have the same expected cost."""
    missed, false_alarm = _extra_costs(costs.matrix, positive)
    if missed <= 0 or false_alarm <= 0:
        raise SettingsError(
            "--costs: expected a wrong decision to cost more than the correct one for both classes, so that there is "
            "something to decide. Correct the costs."
        )
    return false_alarm / (false_alarm + missed)


def _extra_costs(matrix: Sequence[Sequence[float]], positive: int) -> tuple[float, float]:
    """Return what a missed positive and a false alarm cost more than the correct decision."""
    negative = 1 - positive
    return (
        matrix[positive][negative] - matrix[positive][positive],
        matrix[negative][positive] - matrix[negative][negative],
    )


def _interval_of_costs(
    matrix: Sequence[Sequence[float]], review_cost: float, positive: int, threshold: float
) -> tuple[float, float] | None:
    """Return the probabilities of the positive class at which both decisions are expected to cost more."""
    negative = 1 - positive
    least, most = matrix[negative][negative], matrix[positive][negative]
    low = (review_cost - least) / (most - least) if most > least else 0.0
    least, most = matrix[positive][positive], matrix[negative][positive]
    high = (most - review_cost) / (most - least) if most > least else 1.0
    ends = max(low, 0.0), min(high, 1.0)
    return ends if ends[0] <= threshold <= ends[1] else None


def _patients(groups: Ints) -> int:
    return len(np.unique(groups))
