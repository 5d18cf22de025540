"""Select members: measure each member's contribution to the vote, and leave out harmful members.

Legend: weights are `[members]`, each ≥ 0, with a sum of 1; a member with 0 is left out; labels are `[images]`, int64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from plurum.predictions.arrays import Floats, Ints
from plurum.predictions.scores import compute_losses
from plurum.training.fitting.weights import equal_weights
from plurum.training.statistics.bootstrap import Bootstrap, mean_interval
from plurum.training.statistics.calibration import fit_cautious_temperature, tempered_losses
from plurum.training.statistics.folds import patient_folds
from plurum.training.statistics.results import Estimate
from plurum.voting import temper

__all__ = ["Selection", "measure_contributions", "select_backward"]

# Function from weights to the probabilities of the vote with these weights, `[images, classes]`.
Vote = Callable[[Floats], Floats]
# Smallest relevant difference of NLL, in nats per image.
_NEGLIGIBLE = 1e-3
# Number of random divisions of the patients into halves; a single one would depend on chance.
_HALVINGS = 5


@dataclass(frozen=True)
class Selection:
    """Result of a member selection.

    Attributes:
        weights: Weights of the members in the vote; 0 for members left out.
        contributions: Increase of the vote's NLL without each member, in nats per image; for a member left out, as
            computed then. None for a single member.
    """

    weights: Floats
    contributions: tuple[Estimate | None, ...]


def measure_contributions(vote: Vote, labels: Ints, weights: Floats, bootstrap: Bootstrap) -> dict[int, Estimate]:
    """Return the increase of the vote's NLL without each member, in nats per image, by index.

    Leave-one-out, each vote at its best temperature, with 95 % intervals of a paired bootstrap over patients: both
    votes are scored on the same draws. A single member has no contribution.
    """
    return _contributions(vote(weights), _votes_without(vote, weights), labels, bootstrap)


def select_backward(vote: Vote, labels: Ints, members: int, bootstrap: Bootstrap) -> Selection:
    """Remove, one by one, the members without which an equal vote is significantly better, the worst first.

    Backward elimination: contributions are computed again after each removal, because they depend on the other members.
    Members without an effect stay, and so do members that cost less than 0.001 nats.

    Among many similar members, one looks harmful by chance, so an interval below 0 is not enough. A removal must also
    save NLL on unseen patients, with an interval above 0: one half of the patients chooses the worst member and the
    temperatures, and the other half scores the vote; then the halves change roles.

    Args:
        vote: Function from weights to the vote's probabilities.
        labels: True classes, `[images]`.
        members: Number of members.
        bootstrap: Bootstrap over these images.
    """
    weights = equal_weights(members)
    contributions: list[Estimate | None] = [None] * members
    while True:
        whole, without = vote(weights), _votes_without(vote, weights)
        found = _contributions(whole, without, labels, bootstrap)
        for member, figure in found.items():
            contributions[member] = figure
        harmful = {
            member: figure.value or 0.0
            for member, figure in found.items()
            if (figure.high or 0.0) < 0 and (figure.value or 0.0) <= -_NEGLIGIBLE
        }
        if (
            not harmful
            or mean_interval(_savings_on_unseen_patients(whole, without, labels, bootstrap), bootstrap)[0] <= 0
        ):
            return Selection(weights, tuple(contributions))
        weights[min(harmful, key=harmful.__getitem__)] = 0.0
        weights = np.where(weights > 0, 1 / np.count_nonzero(weights), 0.0)


def _votes_without(vote: Vote, weights: Floats) -> dict[int, Floats]:
    """Return the probabilities of the vote without each of its members, by index; nothing for a single member."""
    members = np.flatnonzero(weights).tolist()
    predictions = {}
    for member in members if len(members) > 1 else ():
        rest = weights.copy()
        rest[member] = 0.0
        predictions[member] = vote(rest / rest.sum())
    return predictions


def _contributions(
    whole: Floats, without: Mapping[int, Floats], labels: Ints, bootstrap: Bootstrap
) -> dict[int, Estimate]:
    losses = tempered_losses(whole, labels)
    found = {}
    for member, predictions in without.items():
        more = tempered_losses(predictions, labels) - losses
        low, high = mean_interval(more, bootstrap)
        found[member] = Estimate(value=float(more.mean()), low=low, high=high)
    return found


def _savings_on_unseen_patients(
    whole: Floats, without: Mapping[int, Floats], labels: Ints, bootstrap: Bootstrap
) -> Floats:
    """Return each image's saved NLL if the member that is worst by other patients' images is left out, `[images]`."""
    saved = np.zeros(len(labels))
    for halving in range(_HALVINGS):
        for rows, unseen in patient_folds(labels, bootstrap.groups, bootstrap.seed + halving, folds=2):

            def losses(predictions: Floats, rows: Ints = rows, unseen: Ints = unseen) -> Floats:
                temperature = fit_cautious_temperature(predictions[rows], labels[rows], bootstrap.groups[rows])
                return compute_losses(temper(predictions[unseen], temperature), labels[unseen])

            left = {member: tempered_losses(rest[rows], labels[rows]).mean() for member, rest in without.items()}
            worst = min(left, key=left.__getitem__)
            saved[unseen] += (losses(whole) - losses(without[worst])) / _HALVINGS
    return saved
