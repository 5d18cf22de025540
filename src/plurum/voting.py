"""Votes and uncertainty from the members' probabilities. NumPy only.

This is the only place where votes and uncertainty are computed. Training's fit, the voter inside Triton (export copies
this file beside the voter) and the tests all use it.

Shapes: `[batch, members, classes]` for members, `[batch, classes]` for their vote. All arithmetic is float64;
entropies are in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = [
    "MODES",
    "DecisionPoint",
    "Verdict",
    "VotingMode",
    "VotingRule",
    "decide",
    "decide_at",
    "decide_groups",
    "decide_members",
    "entropy",
    "hard_vote",
    "mutual_information",
    "needs_review_at",
    "point_from_ensemble",
    "pool_groups",
    "prediction_sets",
    "rule_from_ensemble",
    "soft_vote",
    "softmax",
    "spread",
    "stacked_vote",
    "stacking_features",
    "temper",
    "with_prior",
]

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

# The smallest positive normal float64: log of it is finite, and adding it to a probability changes nothing.
_TINY = float(np.finfo(np.float64).tiny)
_LOGIT_LIMIT = 1e30
# Lower limit of the probabilities for stacking; smaller ones depend on float32 rounding more than on the image.
_STACKED_FLOOR = 1e-6


@dataclass(frozen=True)
class DecisionPoint:
    """Operating point: the rule that turns probabilities into the decision, the label.

    Two classes have `positive` and `threshold`, several have `costs`.

    Attributes:
        positive: Index of the positive class; None for several classes.
        threshold: Probability of the positive class from which the decision is positive; None for several classes.
        review_interval: Lowest and highest probability of the positive class at which a decision needs review; None
            reviews none. Only for two classes.
        costs: Cost of each decision, `[true class][decided class]`, of which the lowest expected cost decides; None for
            two classes.
        review_cost: Cost of a review; a decision whose expected cost is higher needs review. None reviews by confidence
            and prediction set. Only for several classes.
    """

    positive: int | None = None
    threshold: float | None = None
    review_interval: tuple[float, float] | None = None
    costs: tuple[tuple[float, ...], ...] | None = None
    review_cost: float | None = None


@dataclass(frozen=True)
class VotingRule:
    """Parameters that turn member probabilities into a verdict.

    Attributes:
        weights: Weights of the members, each ≥ 0, which sum to 1. A stacked vote uses them only for disagreement and
            spread.
        mode: Voting mode, see `MODES`.
        temperature: Temperature applied to the vote's probabilities (Rahaman & Thiery, arXiv 2007.08792); > 0, 1 for
            hard votes.
        quantiles: Largest `1 - probability` at which a class stays in the prediction set, one per class; None keeps
            only the predicted class.
        review_threshold: Confidence below which a prediction needs review, 0 to 1.
        coefficients: Stacking coefficients, `[classes][members * classes]`, the first member's classes first; None
            for other modes.
        intercepts: Stacking intercepts, one per class; None for other modes.
        prior_ratio: Ratio of each class's fraction in production to its fraction in the fitting data, > 0; None if
            they are equal, and for hard votes.
        point: Operating point; None decides for the most probable class.
    """

    weights: tuple[float, ...]
    mode: str = "soft"
    temperature: float = 1.0
    quantiles: tuple[float, ...] | None = None
    review_threshold: float = 0.0
    coefficients: tuple[tuple[float, ...], ...] | None = None
    intercepts: tuple[float, ...] | None = None
    prior_ratio: tuple[float, ...] | None = None
    point: DecisionPoint | None = None


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
    """

    probabilities: Floats
    label: npt.NDArray[np.int64]
    entropy: Floats
    disagreement: Floats
    std: Floats
    member_probabilities: Floats
    prediction_set: Bools
    review: Bools


def rule_from_ensemble(ensemble: Mapping[str, Any]) -> VotingRule:
    """Return the voting rule of a parsed `ensemble.json`."""
    voting, conformal = ensemble["voting"], ensemble["conformal"]
    # Older files lack these keys.
    coefficients, intercepts, ratio = (voting.get(key) for key in ("coefficients", "intercepts", "prior_ratio"))
    return VotingRule(
        weights=tuple(voting["weights"]),
        mode=voting["mode"],
        temperature=voting["temperature"],
        quantiles=None if conformal is None else tuple(conformal["quantiles"]),
        review_threshold=ensemble["review"]["threshold"],
        coefficients=None if coefficients is None else tuple(map(tuple, coefficients)),
        intercepts=None if intercepts is None else tuple(intercepts),
        prior_ratio=None if ratio is None else tuple(ratio),
        point=point_from_ensemble(ensemble),
    )


def point_from_ensemble(ensemble: Mapping[str, Any]) -> DecisionPoint | None:
    """Return the operating point of a parsed `ensemble.json`; None if it has none."""
    point = ensemble.get("operating_point")
    if point is None:
        return None
    interval, costs, positive = point["review_interval"], point["costs"], point["positive"]
    if positive is None:
        return DecisionPoint(costs=tuple(map(tuple, costs)), review_cost=point["review_cost"])
    return DecisionPoint(
        positive=ensemble["classes"].index(positive),
        threshold=point["threshold"],
        review_interval=None if interval is None else tuple(interval),
    )


def softmax(logits: npt.ArrayLike) -> Floats:
    """Return probabilities over the last axis of `logits`; ±infinity is replaced by ±1e30.

    NaN stays NaN, so that a failed member does not look like an uncertain one.
    """
    bounded = np.clip(np.asarray(logits, dtype=np.float64), -_LOGIT_LIMIT, _LOGIT_LIMIT)
    shifted = np.exp(bounded - bounded.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def soft_vote(members: Floats, weights: npt.ArrayLike) -> Floats:
    """Return the weighted mean `[batch, classes]` of member probabilities `[batch, members, classes]`."""
    return np.asarray(np.einsum("bmc,m->bc", members, np.asarray(weights, dtype=np.float64)))


def hard_vote(members: Floats, weights: npt.ArrayLike) -> Floats:
    """Return each class's fraction of the weighted votes, `[batch, classes]`.

    A member votes for its most probable class; if two are equally probable, for the one with the lower index.
    """
    votes = np.zeros_like(members)
    np.put_along_axis(votes, members.argmax(axis=-1)[..., None], 1.0, axis=-1)
    return soft_vote(votes, weights)


def stacking_features(members: Floats) -> Floats:
    """Return the features for stacking, log-probabilities `[batch, members * classes]`.

    Probabilities below 1e-6 are raised to 1e-6.

    Args:
        members: Probabilities of the members, `[batch, members, classes]`.
    """
    return np.asarray(np.log(np.maximum(members, _STACKED_FLOOR)).reshape(len(members), -1))


def stacked_vote(members: Floats, coefficients: npt.ArrayLike, intercepts: npt.ArrayLike) -> Floats:
    """Return the prediction of a multinomial logistic regression on log-probabilities, `[batch, classes]`.

    Stacked generalisation (Wolpert 1992; Ting & Witten 1999).

    Args:
        members: Probabilities of the members, `[batch, members, classes]`.
        coefficients: Coefficients `[classes, members * classes]`, the first member's classes first.
        intercepts: Intercepts `[classes]`.
    """
    logits = stacking_features(members) @ np.asarray(coefficients, dtype=np.float64).T
    return softmax(logits + np.asarray(intercepts, dtype=np.float64))


def temper(probabilities: Floats, temperature: float) -> Floats:
    """Return `probabilities ** (1 / temperature)`, normalised over the last axis: softer above 1, sharper below."""
    if temperature == 1.0:
        return probabilities
    return softmax(np.log(np.maximum(probabilities, _TINY)) / temperature)


def with_prior(probabilities: Floats, ratio: npt.ArrayLike | None) -> Floats:
    """Return `probabilities` `[batch, classes]` corrected for classes that are `ratio` times as frequent.

    Bayes' rule for a change of class frequencies alone (Saerens, Latinne & Decaestecker 2002, 2.2).
    """
    if ratio is None:
        return probabilities
    weighted = probabilities * np.asarray(ratio, dtype=np.float64)
    return np.asarray(weighted / weighted.sum(axis=-1, keepdims=True))


def entropy(probabilities: Floats) -> Floats:
    """Return the Shannon entropy over the last axis, in nats, 0 to log(classes)."""
    plogp = probabilities * np.log(np.maximum(probabilities, _TINY))
    # Rounding can give -0.0 or -1e-17 for a certain prediction.
    return np.asarray(np.maximum(-plogp.sum(axis=-1), 0.0))


def mutual_information(members: Floats, weights: npt.ArrayLike) -> Floats:
    """Return the mutual information `[batch]` between prediction and member, in nats.

    Entropy of the mean minus the mean of the entropies, a measure of the members' disagreement (Houlsby et al., arXiv
    1112.5745; Gal 2016, 3.3.1). 0 for identical members, at most log(members).
    """
    expected = entropy(members) @ np.asarray(weights, dtype=np.float64)
    return np.maximum(entropy(soft_vote(members, weights)) - expected, 0.0)


def spread(members: Floats, weights: npt.ArrayLike) -> Floats:
    """Return the weighted standard deviation over members, `[batch, classes]`, 0 to 0.5."""
    deviation = members - soft_vote(members, weights)[:, None, :]
    return np.sqrt(soft_vote(np.square(deviation), weights))


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


class VotingMode(NamedTuple):
    """A way to combine the members' probabilities; `plurum.export.graphs.fused` has its form in ONNX.

    Attributes:
        vote: Function of the members' probabilities `[batch, members, classes]`, their soft vote and the rule; returns
            `[batch, classes]`.
        has_probabilities: True if the vote has probabilities, which a temperature and class frequencies correct. Other
            votes count, and ties go to the class with the higher soft vote.
        has_weights: True if weights are fitted for it; otherwise they are equal.
        parameters: Names of fitted parameters of the rule that no other mode has.
    """

    vote: Callable[[Floats, Floats, VotingRule], Floats]
    has_probabilities: bool = True
    has_weights: bool = False
    parameters: tuple[str, ...] = ()


MODES: dict[str, VotingMode] = {
    "soft": VotingMode(lambda _, mean, __: mean, has_weights=True),
    "hard": VotingMode(lambda members, _, rule: hard_vote(members, rule.weights), has_probabilities=False),
    "stack": VotingMode(
        lambda members, _, rule: stacked_vote(members, rule.coefficients or (), rule.intercepts or ()),
        parameters=("coefficients", "intercepts"),
    ),
}


def decide_members(members: Floats, rule: VotingRule) -> npt.NDArray[np.int64]:
    """Return the index of each member's own decision, int64 `[batch, members]`.

    Without an operating point, it is the member's most probable class. With one, the member's probabilities are
    corrected like the vote's, and decided at the point.
    """
    if rule.point is None:
        return np.asarray(members.argmax(axis=-1))
    return decide_at(with_prior(temper(members, rule.temperature), rule.prior_ratio), rule.point)


def decide(members: Floats, rule: VotingRule) -> Verdict:
    """Return the verdict on member probabilities `[batch, members, classes]`.

    A vote of probabilities is tempered, then corrected for class frequencies; the decision, prediction sets and review
    use the result. The operating point decides; without one, the most probable class is the label. Ties of a hard vote
    go to the class with the higher soft vote. Remaining ties, and those of other votes, go to the class with the lower
    index.

    A prediction needs review if a member returns NaN, or by the operating point: inside its interval, or above its
    review cost. Without either, a prediction needs review if its confidence, the label's probability, is below the
    threshold, or if the classes of its prediction set are several.
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
    return Verdict(
        probabilities=probabilities,
        label=label,
        entropy=entropy(probabilities),
        disagreement=mutual_information(members, rule.weights),
        std=spread(members, rule.weights),
        member_probabilities=members,
        prediction_set=inside,
        # A hard vote would count a member's NaN as a vote.
        review=_needs_review(probabilities, label, inside, rule) | np.isnan(members).any(axis=(1, 2)),
    )


def _sets(probabilities: Floats, label: npt.NDArray[np.int64], rule: VotingRule) -> Bools:
    """Return the prediction sets, `[batch, classes]`; without quantiles, they hold only the label."""
    if rule.quantiles is None:
        inside = np.zeros(probabilities.shape, dtype=np.bool_)
    else:
        inside = prediction_sets(probabilities, rule.quantiles, None if rule.point is None else label)
    np.put_along_axis(inside, label[:, None], values=True, axis=-1)
    return inside


def _needs_review(probabilities: Floats, label: npt.NDArray[np.int64], inside: Bools, rule: VotingRule) -> Bools:
    """Return the mask of predictions that need review, `[batch]`."""
    if rule.point is not None and (review := needs_review_at(probabilities, rule.point)) is not None:
        return review
    # Not `confidence <`, so that NaN needs review.
    confidence = np.take_along_axis(probabilities, label[:, None], axis=-1)[:, 0]
    return np.asarray(~(confidence >= rule.review_threshold) | (inside.sum(axis=-1) > 1))


def _expected_costs(probabilities: Floats, point: DecisionPoint) -> Floats:
    """Return the expected cost of each decision, `[batch, classes]`."""
    return np.asarray(probabilities @ np.asarray(point.costs, dtype=np.float64))
