"""Votes and uncertainty from the members' probabilities, and the ways to vote."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .rules import VotingRule

__all__ = [
    "MODES",
    "VotingMode",
    "entropy",
    "hard_vote",
    "mutual_information",
    "soft_vote",
    "softmax",
    "spread",
    "stacked_vote",
    "stacking_features",
    "temper",
    "with_prior",
]

Floats = npt.NDArray[np.float64]

# The smallest positive normal float64: log of it is finite, and adding it to a probability changes nothing.
_TINY = float(np.finfo(np.float64).tiny)
_LOGIT_LIMIT = 1e30
# Lower limit of the probabilities for stacking; smaller ones depend on float32 rounding more than on the image.
_STACKED_FLOOR = 1e-6


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
