"""Which members stay: what each adds to the vote, and leaving out those that spoil it.

Legend: weights are `[members]`, each ≥ 0, together 1; a member with 0 is left out; labels are `[images]`, int64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from plurum.training.fitting.weights import equal_weights
from plurum.training.statistics.bootstrap import Bootstrap, mean_interval
from plurum.training.statistics.calibration import cautious_temperature, tempered_losses
from plurum.training.statistics.folds import patient_folds
from plurum.training.statistics.judgement import Figure
from plurum.training.statistics.scoring import losses_of
from plurum.voting import temper

__all__ = ["Selection", "backward_selection", "contributions_of"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
# From weights to the probabilities of the vote that has them, `[images, classes]`.
Vote = Callable[[Floats], Floats]
# Nats per image: by less than this, nobody's answers are better.
_NEGLIGIBLE = 1e-3
# How often patients are halved: one halving alone would leave it to luck who is in which half.
_HALVINGS = 5


@dataclass(frozen=True)
class Selection:
    """Who is in the vote.

    Attributes:
        weights: Those of the members that were compared; 0 for one that was left out.
        contributions: One per member: the NLL that the vote would have more without it, nats per image; of one that
            was left out, when it was. None where it is alone.
    """

    weights: Floats
    contributions: tuple[Figure | None, ...]


def contributions_of(vote: Vote, labels: Ints, weights: Floats, bootstrap: Bootstrap) -> dict[int, Figure]:
    """Return, for each member in the vote, the NLL that the vote would have more without it, in nats per image.

    Leave-one-out, each vote at the temperature that suits it best, with 95 % intervals by a paired bootstrap over
    patients: both votes are scored on the same draws. Nothing for a member that is alone.
    """
    return _contributions(vote(weights), _votes_without(vote, weights), labels, bootstrap)


def backward_selection(vote: Vote, labels: Ints, members: int, bootstrap: Bootstrap) -> Selection:
    """Leave out, one by one, the members without which an equal vote is better beyond chance, the worst first.

    Backward elimination: all members are looked at anew after each that leaves, since one can spoil the vote in which
    another is of use. Whoever merely adds nothing stays, and so does who costs less than 0.001 nats.

    Of many members alike, one looks harmful by chance; so an interval below 0 is not enough. Leaving out the worst must
    also save NLL, its whole interval above 0, where who is the worst, and how sure each vote is, was found out from
    other patients than those it is judged by: one half of them, and then the other.

    Args:
        vote: The answers of a vote, by its weights.
        labels: The truth.
        members: How many there are.
        bootstrap: Of the images that are answered.
    """
    weights = equal_weights(members)
    contributions: list[Figure | None] = [None] * members
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
        if not harmful or mean_interval(_saved_unseen(whole, without, labels, bootstrap), bootstrap)[0] <= 0:
            return Selection(weights, tuple(contributions))
        weights[min(harmful, key=harmful.__getitem__)] = 0.0
        weights = np.where(weights > 0, 1 / np.count_nonzero(weights), 0.0)


def _votes_without(vote: Vote, weights: Floats) -> dict[int, Floats]:
    """Return what is answered without each member of the vote; nothing where it is alone."""
    members = np.flatnonzero(weights).tolist()
    answers = {}
    for member in members if len(members) > 1 else ():
        rest = weights.copy()
        rest[member] = 0.0
        answers[member] = vote(rest / rest.sum())
    return answers


def _contributions(
    whole: Floats, without: Mapping[int, Floats], labels: Ints, bootstrap: Bootstrap
) -> dict[int, Figure]:
    losses = tempered_losses(whole, labels)
    found = {}
    for member, answers in without.items():
        more = tempered_losses(answers, labels) - losses
        low, high = mean_interval(more, bootstrap)
        found[member] = Figure(value=float(more.mean()), low=low, high=high)
    return found


def _saved_unseen(whole: Floats, without: Mapping[int, Floats], labels: Ints, bootstrap: Bootstrap) -> Floats:
    """Return the NLL that each image saves where the member is left out that is the worst by other patients' images."""
    saved = np.zeros(len(labels))
    for halving in range(_HALVINGS):
        for rows, unseen in patient_folds(labels, bootstrap.groups, bootstrap.seed + halving, folds=2):

            def losses(answers: Floats, rows: Ints = rows, unseen: Ints = unseen) -> Floats:
                temperature = cautious_temperature(answers[rows], labels[rows], bootstrap.groups[rows])
                return losses_of(temper(answers[unseen], temperature), labels[unseen])

            left = {member: tempered_losses(rest[rows], labels[rows]).mean() for member, rest in without.items()}
            worst = min(left, key=left.__getitem__)
            saved[unseen] += (losses(whole) - losses(without[worst])) / _HALVINGS
    return saved
