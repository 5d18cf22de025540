"""From what the members say to one answer and how uncertain it is. NumPy only.

The one place where votes and uncertainty are computed: training's fit, the voter inside Triton (export copies
this file beside the voter) and the tests all use it.

Shapes: `[batch, members, classes]` for members, `[batch, classes]` for their vote. All arithmetic is float64;
entropies are in nats.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

__all__ = [
    "Verdict",
    "VotingRule",
    "decide",
    "entropy",
    "hard_vote",
    "mutual_information",
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
# What stacking sees of a smaller probability: how far below it lies says more about float32 than about the image.
_STACKED_FLOOR = 1e-6


@dataclass(frozen=True)
class VotingRule:
    """All the numbers that turn member probabilities into a verdict.

    Attributes:
        weights: One per member, each ≥ 0, together 1; where the vote is stacked, of disagreement and spread alone.
        mode: `soft` averages probabilities, `hard` counts votes, `stack` asks a logistic regression.
        temperature: Applied after averaging (Rahaman & Thiery, arXiv 2007.08792) or stacking; > 0, 1 for hard votes.
        quantiles: One per class: the largest `1 - probability` at which the class stays in the prediction set.
            None keeps the winner alone.
        review_threshold: A verdict whose winner has a smaller probability goes to a person; 0 to 1.
        coefficients: Of stacking, `[classes][members * classes]`, the first member's classes first; else None.
        intercepts: Of stacking, one per class; else None.
        prior_ratio: One per class, > 0: its share among the images to be served over that among those the vote was
            fitted on. None where both are alike. Hard votes have none.
    """

    weights: tuple[float, ...]
    mode: Literal["soft", "hard", "stack"] = "soft"
    temperature: float = 1.0
    quantiles: tuple[float, ...] | None = None
    review_threshold: float = 0.0
    coefficients: tuple[tuple[float, ...], ...] | None = None
    intercepts: tuple[float, ...] | None = None
    prior_ratio: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Verdict:
    """The ensemble's answers to a batch.

    Attributes:
        probabilities: `[batch, classes]`, rows sum to 1.
        label: `[batch]`, int64, the index of the winning class.
        entropy: `[batch]`, predictive entropy of `probabilities`, 0 to log(classes).
        disagreement: `[batch]`, mutual information between answer and member, 0 when all say the same.
        std: `[batch, classes]`, standard deviation over members, weighted as the vote is.
        member_probabilities: `[batch, members, classes]`.
        prediction_set: `[batch, classes]`, never empty: the winner is always in it.
        review: `[batch]`, True when a person should look.
    """

    probabilities: Floats
    label: npt.NDArray[np.int64]
    entropy: Floats
    disagreement: Floats
    std: Floats
    member_probabilities: Floats
    prediction_set: Bools
    review: Bools


def rule_from_ensemble(contract: Mapping[str, Any]) -> VotingRule:
    """Return the rule that a parsed `ensemble.json` states."""
    voting, conformal = contract["voting"], contract["conformal"]
    # Contracts from before these existed have none.
    coefficients, intercepts, ratio = (voting.get(key) for key in ("coefficients", "intercepts", "prior_ratio"))
    return VotingRule(
        weights=tuple(voting["weights"]),
        mode=voting["mode"],
        temperature=voting["temperature"],
        quantiles=None if conformal is None else tuple(conformal["quantiles"]),
        review_threshold=contract["review"]["threshold"],
        coefficients=None if coefficients is None else tuple(map(tuple, coefficients)),
        intercepts=None if intercepts is None else tuple(intercepts),
        prior_ratio=None if ratio is None else tuple(ratio),
    )


def softmax(logits: npt.ArrayLike) -> Floats:
    """Return probabilities over the last axis of `logits` of any shape; ±infinity is taken as ±1e30.

    NaN stays NaN: a member that computes nonsense must not look like one that is merely unsure.
    """
    bounded = np.clip(np.asarray(logits, dtype=np.float64), -_LOGIT_LIMIT, _LOGIT_LIMIT)
    shifted = np.exp(bounded - bounded.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def soft_vote(members: Floats, weights: npt.ArrayLike) -> Floats:
    """Return the weighted mean `[batch, classes]` of member probabilities `[batch, members, classes]`."""
    return np.asarray(np.einsum("bmc,m->bc", members, np.asarray(weights, dtype=np.float64)))


def hard_vote(members: Floats, weights: npt.ArrayLike) -> Floats:
    """Return each class's share of the weighted votes, `[batch, classes]`.

    A member votes for its most probable class; where two are equally probable, for the one with the lower index.
    """
    votes = np.zeros_like(members)
    np.put_along_axis(votes, members.argmax(axis=-1)[..., None], 1.0, axis=-1)
    return soft_vote(votes, weights)


def stacking_features(members: Floats) -> Floats:
    """Return what stacking sees of `[batch, members, classes]`: log-probabilities `[batch, members * classes]`.

    Probabilities below 1e-6 count as 1e-6.
    """
    return np.asarray(np.log(np.maximum(members, _STACKED_FLOOR)).reshape(len(members), -1))


def stacked_vote(members: Floats, coefficients: npt.ArrayLike, intercepts: npt.ArrayLike) -> Floats:
    """Return what a multinomial logistic regression makes of the members' log-probabilities, `[batch, classes]`.

    Stacked generalisation (Wolpert 1992; Ting & Witten 1999).

    Args:
        members: `[batch, members, classes]`.
        coefficients: `[classes, members * classes]`, the first member's classes first.
        intercepts: `[classes]`.
    """
    logits = stacking_features(members) @ np.asarray(coefficients, dtype=np.float64).T
    return softmax(logits + np.asarray(intercepts, dtype=np.float64))


def temper(probabilities: Floats, temperature: float) -> Floats:
    """Return `probabilities ** (1 / temperature)`, normalised over the last axis: softer above 1, sharper below."""
    if temperature == 1.0:
        return probabilities
    return softmax(np.log(np.maximum(probabilities, _TINY)) / temperature)


def with_prior(probabilities: Floats, ratio: npt.ArrayLike | None) -> Floats:
    """Return `probabilities` `[batch, classes]` as they are where classes are `ratio` times as frequent.

    Bayes' rule for classes that look as before and come in other shares (Saerens, Latinne & Decaestecker 2002, 2.2).
    """
    if ratio is None:
        return probabilities
    weighed = probabilities * np.asarray(ratio, dtype=np.float64)
    return np.asarray(weighed / weighed.sum(axis=-1, keepdims=True))


def entropy(probabilities: Floats) -> Floats:
    """Return the Shannon entropy over the last axis, in nats, 0 to log(classes)."""
    plogp = probabilities * np.log(np.maximum(probabilities, _TINY))
    # Rounding can leave -0.0 or -1e-17 behind for a certain answer.
    return np.asarray(np.maximum(-plogp.sum(axis=-1), 0.0))


def mutual_information(members: Floats, weights: npt.ArrayLike) -> Floats:
    """Return the mutual information `[batch]` between the answer and the member asked, in nats.

    Entropy of the mean less the mean of the entropies: "how much the members disagree" (Houlsby et al., arXiv
    1112.5745; Gal 2016, 3.3.1). 0 for identical members, at most log(members).
    """
    expected = entropy(members) @ np.asarray(weights, dtype=np.float64)
    return np.maximum(entropy(soft_vote(members, weights)) - expected, 0.0)


def spread(members: Floats, weights: npt.ArrayLike) -> Floats:
    """Return the weighted standard deviation over members, `[batch, classes]`, 0 to 0.5."""
    deviation = members - soft_vote(members, weights)[:, None, :]
    return np.sqrt(soft_vote(np.square(deviation), weights))


def prediction_sets(probabilities: Floats, quantiles: npt.ArrayLike) -> Bools:
    """Return which classes stay in the conformal prediction set, `[batch, classes]`.

    A class stays while `1 - probability` is at most its own quantile (class-conditional split conformal
    prediction, Vovk 2012). The winner always stays, so that no set is empty; coverage can only grow by that.
    """
    inside = 1.0 - probabilities <= np.asarray(quantiles, dtype=np.float64)
    np.put_along_axis(inside, probabilities.argmax(axis=-1)[..., None], values=True, axis=-1)
    return np.asarray(inside)


def pool_groups(
    rule: Literal["mean", "max", "majority"], counts: npt.ArrayLike, sums: Floats, highest: Floats, wins: Floats
) -> Floats:
    """Return one row of probabilities per group of images, such as a patient's, `[groups, classes]`, each summing to 1.

    `mean` averages the probabilities of a group's images; `max` takes each class's highest, over their sum; `majority`
    is the share of images that a class wins, and equal shares go to the class with the higher mean.

    Args:
        rule: How they become one.
        counts: `[groups]`, images of each, at least 1.
        sums: `[groups, classes]`, the images' probabilities added up.
        highest: `[groups, classes]`, the highest of each class.
        wins: `[groups, classes]`, how many images each class wins.
    """
    if rule == "max":
        return np.asarray(highest / highest.sum(axis=1, keepdims=True))
    images = np.asarray(counts, dtype=np.float64)[:, None]
    mean = np.asarray(sums / images)
    if rule == "mean":
        return mean
    # Too little to count for anything but between equals: shares differ by 1 / images at least.
    return np.asarray((wins / images + 1e-9 * mean) / (1 + 1e-9))


def decide(members: Floats, rule: VotingRule) -> Verdict:
    """Return the verdict on member probabilities `[batch, members, classes]`.

    A soft or stacked vote is tempered first, then corrected for the classes' shares; sets and review are by what comes
    of that. A hard vote's tie goes to the tied class with the higher soft vote; a tie left after that, and one of the
    others, to the class with the lower index. An answer goes to review when its winner's probability is below the
    rule's threshold, when more than one class is in its prediction set, or when a member answers NaN.
    """
    mean = soft_vote(members, rule.weights)
    if rule.mode == "hard":
        probabilities = hard_vote(members, rule.weights)
        # Sums of weights differ by rounding, so ties are looked for with a tolerance.
        tied = probabilities >= probabilities.max(axis=-1, keepdims=True) - 1e-9
        label = np.where(tied, mean, -1.0).argmax(axis=-1)
    else:
        vote = mean if rule.mode == "soft" else stacked_vote(members, rule.coefficients or (), rule.intercepts or ())
        probabilities = with_prior(temper(vote, rule.temperature), rule.prior_ratio)
        label = probabilities.argmax(axis=-1)
    winner = label[:, None]
    if rule.quantiles is None:
        inside = np.zeros(probabilities.shape, dtype=np.bool_)
    else:
        inside = prediction_sets(probabilities, rule.quantiles)
    np.put_along_axis(inside, winner, values=True, axis=-1)
    confidence = np.take_along_axis(probabilities, winner, axis=-1)[:, 0]
    return Verdict(
        probabilities=probabilities,
        label=label,
        entropy=entropy(probabilities),
        disagreement=mutual_information(members, rule.weights),
        std=spread(members, rule.weights),
        member_probabilities=members,
        prediction_set=inside,
        # Not `confidence <`: NaN is never sure of itself. A hard vote would count a member's NaN as a winner.
        review=~(confidence >= rule.review_threshold) | (inside.sum(axis=-1) > 1) | np.isnan(members).any(axis=(1, 2)),
    )
