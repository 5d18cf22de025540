"""The verdict on a batch: vote, decision, prediction set, outlier test and review."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from .rules import DecisionPoint, VotingRule
from .votes import MODES, entropy, mutual_information, soft_vote, spread, temper, with_prior

__all__ = [
    "REVIEW_CONFIDENCE",
    "REVIEW_OUTLIER",
    "REVIEW_REASONS",
    "REVIEW_SET",
    "Verdict",
    "decide",
    "decide_at",
    "decide_groups",
    "decide_members",
    "needs_review_at",
    "pool_groups",
    "prediction_sets",
]

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Reasons = npt.NDArray[np.uint8]

# Reasons for review: the confidence, or the operating point instead; several classes in the prediction set; an outlier.
REVIEW_REASONS = ("confidence", "set", "outlier")
# Their bits.
REVIEW_CONFIDENCE, REVIEW_SET, REVIEW_OUTLIER = 1, 2, 4


@dataclass(frozen=True)
class Verdict:
    """Predictions of the ensemble for a batch.

    Attributes:
        probabilities: Probabilities of the vote, `[batch, classes]`; rows sum to 1.
        label: Index of the predicted class, the decision at the operating point, int64 `[batch]`.
        entropy: Predictive entropy of `probabilities`, `[batch]`, 0 to log(classes).
        disagreement: Mutual information between prediction and member, `[batch]`; 0 if all members agree.
        std: Standard deviation over members with the weights of the vote, `[batch, classes]`.
        member_probabilities: Probabilities of the members, `[batch, members, classes]`.
        prediction_set: Classes in the prediction set, `[batch, classes]`; always includes the predicted class.
        review: True if the prediction needs review, `[batch]`.
        outlier: P-value of the outlier test, `[batch]`; 1 without a test.
        review_reason: Sum of the reasons for review, uint8 `[batch]`: `REVIEW_CONFIDENCE`, `REVIEW_SET` and
            `REVIEW_OUTLIER`; 0 if the prediction needs none.
    """

    probabilities: Floats
    label: npt.NDArray[np.int64]
    entropy: Floats
    disagreement: Floats
    std: Floats
    member_probabilities: Floats
    prediction_set: Bools
    review: Bools
    outlier: Floats
    review_reason: Reasons


def decide_at(probabilities: Floats, point: DecisionPoint | None) -> npt.NDArray[np.int64]:
    """Return the index of the decision for `probabilities` `[batch, classes]`, int64 `[batch]`.

    Two classes: the positive class from its threshold on. Several classes: the decision with the lowest expected cost.
    Without a point: the most probable class. Ties go to the class with the lower index.
    """
    if point is None:
        return np.asarray(probabilities.argmax(axis=-1))
    if point.positive is None or point.threshold is None:
        return np.asarray(_expected_costs(probabilities, point).argmin(axis=-1))
    is_positive = probabilities[..., point.positive] >= point.threshold
    return np.where(is_positive, point.positive, 1 - point.positive)


def needs_review_at(probabilities: Floats, point: DecisionPoint) -> Bools | None:
    """Return the mask of `probabilities` `[batch, classes]` that need review at the point, `[batch]`, true for NaN.

    None if confidence and prediction set decide on reviews, not the point.
    """
    if point.positive is not None:
        positive = probabilities[..., point.positive]
        if point.review_interval is None:
            return np.asarray(np.isnan(positive))
        low, high = point.review_interval
        return np.asarray(~((positive < low) | (positive > high)))
    if point.review_cost is None:
        return None
    return np.asarray(~(_expected_costs(probabilities, point).min(axis=-1) <= point.review_cost))


def prediction_sets(probabilities: Floats, quantiles: npt.ArrayLike, label: npt.ArrayLike | None = None) -> Bools:
    """Return the conformal prediction sets, `[batch, classes]`.

    A class is in the set if `1 - probability` is at most its quantile (class-conditional split conformal prediction,
    Vovk 2012). The predicted class is always in the set, so no set is empty; this can only increase coverage.

    Args:
        probabilities: Probabilities of the vote, `[batch, classes]`.
        quantiles: Quantiles, one per class.
        label: Predicted classes, `[batch]`; None takes the most probable ones.
    """
    inside = 1.0 - probabilities <= np.asarray(quantiles, dtype=np.float64)
    winner = probabilities.argmax(axis=-1) if label is None else np.asarray(label)
    np.put_along_axis(inside, winner[..., None], values=True, axis=-1)
    return np.asarray(inside)


def pool_groups(
    rule: Literal["mean", "max", "majority"], counts: npt.ArrayLike, sums: Floats, highest: Floats, wins: Floats
) -> Floats:
    """Return one row of probabilities per group of images, such as a patient's, `[groups, classes]`, summing to 1.

    `mean` averages the probabilities of a group's images. `max` takes the highest of each class, divided by their sum.
    `majority` is the fraction of images predicted as a class; ties go to the class with the higher mean.

    Args:
        rule: Rule that combines the images of a group.
        counts: Number of images, `[groups]`, at least 1.
        sums: Sums of the images' probabilities, `[groups, classes]`.
        highest: Highest probabilities, `[groups, classes]`.
        wins: Numbers of images predicted as each class, `[groups, classes]`.
    """
    if rule == "max":
        return np.asarray(highest / highest.sum(axis=1, keepdims=True))
    images = np.asarray(counts, dtype=np.float64)[:, None]
    mean = np.asarray(sums / images)
    if rule == "mean":
        return mean
    # Small enough to only break ties, as fractions differ by at least 1 / images.
    return np.asarray((wins / images + 1e-9 * mean) / (1 + 1e-9))


def decide_groups(
    rule: Literal["mean", "max", "majority"], pooled: Floats, point: DecisionPoint | None
) -> npt.NDArray[np.int64]:
    """Return the index of the decision for each group, int64 `[groups]`, from the result of `pool_groups`.

    `majority` counts the decisions for images, in which the operating point is already contained.
    """
    return decide_at(pooled, None if rule == "majority" else point)


def decide_members(members: Floats, rule: VotingRule) -> npt.NDArray[np.int64]:
    """Return the index of each member's own decision, int64 `[batch, members]`.

    Without an operating point, it is the member's most probable class. With one, the member's probabilities are
    corrected like the vote's, and decided at the point.
    """
    if rule.point is None:
        return np.asarray(members.argmax(axis=-1))
    return decide_at(with_prior(temper(members, rule.temperature), rule.prior_ratio), rule.point)


def decide(members: Floats, rule: VotingRule, novelty: npt.ArrayLike | None = None) -> Verdict:
    """Return the verdict on member probabilities `[batch, members, classes]`.

    A vote of probabilities is tempered, then corrected for class frequencies; the decision, prediction sets and review
    use the result. The operating point decides; without one, the most probable class is the label. Ties of a hard vote
    go to the class with the higher soft vote. Remaining ties, and those of other votes, go to the class with the lower
    index.

    A prediction needs review if a member returns NaN, if the image is an outlier, or by the operating point: inside its
    interval, or above its review cost. Without a point, a prediction also needs review if its confidence, the label's
    probability, is below the threshold, or if the classes of its prediction set are several.

    Args:
        members: Probabilities of the members.
        rule: Parameters of the vote.
        novelty: Novelty of each image by member, `[batch, members]`; None tests no outliers.
    """
    mean, mode = soft_vote(members, rule.weights), MODES[rule.mode]
    probabilities = mode.vote(members, mean, rule)
    if mode.has_probabilities:
        probabilities = with_prior(temper(probabilities, rule.temperature), rule.prior_ratio)
        label = decide_at(probabilities, rule.point)
    else:
        # Sums of weights differ by rounding, so compare with a tolerance.
        tied = probabilities >= probabilities.max(axis=-1, keepdims=True) - 1e-9
        label = np.where(tied, mean, -1.0).argmax(axis=-1)
    inside = _sets(probabilities, label, rule)
    p_values, reasons = np.ones(len(members)), _review_reasons(probabilities, label, inside, rule)
    # A hard vote would count a member's NaN as a vote.
    reasons |= REVIEW_CONFIDENCE * np.isnan(members).any(axis=(1, 2)).astype(np.uint8)
    if rule.outliers is not None and novelty is not None:
        p_values, is_outlier = rule.outliers.test(novelty)
        reasons |= REVIEW_OUTLIER * is_outlier.astype(np.uint8)
    return Verdict(
        probabilities=probabilities,
        label=label,
        entropy=entropy(probabilities),
        disagreement=mutual_information(members, rule.weights),
        std=spread(members, rule.weights),
        member_probabilities=members,
        prediction_set=inside,
        review=reasons != 0,
        outlier=p_values,
        review_reason=reasons,
    )


def _sets(probabilities: Floats, label: npt.NDArray[np.int64], rule: VotingRule) -> Bools:
    """Return the prediction sets, `[batch, classes]`; without quantiles, they hold only the label."""
    if rule.quantiles is None:
        inside = np.zeros(probabilities.shape, dtype=np.bool_)
    else:
        inside = prediction_sets(probabilities, rule.quantiles, None if rule.point is None else label)
    np.put_along_axis(inside, label[:, None], values=True, axis=-1)
    return inside


def _review_reasons(probabilities: Floats, label: npt.NDArray[np.int64], inside: Bools, rule: VotingRule) -> Reasons:
    """Return the reasons for review that follow from the vote, uint8 `[batch]`."""
    if rule.point is not None and (review := needs_review_at(probabilities, rule.point)) is not None:
        return np.asarray(REVIEW_CONFIDENCE * review.astype(np.uint8))
    # Not `confidence <`, so that NaN needs review.
    confidence = np.take_along_axis(probabilities, label[:, None], axis=-1)[:, 0]
    is_unsure = (~(confidence >= rule.review_threshold)).astype(np.uint8)
    has_several = (inside.sum(axis=-1) > 1).astype(np.uint8)
    return np.asarray(REVIEW_CONFIDENCE * is_unsure | REVIEW_SET * has_several)


def _expected_costs(probabilities: Floats, point: DecisionPoint) -> Floats:
    """Return the expected cost of each decision, `[batch, classes]`."""
    return np.asarray(probabilities @ np.asarray(point.costs, dtype=np.float64))
