"""Which members stay: what each adds to the vote, and leaving out those that spoil it.

Legend: weights are `[members]`, each ≥ 0, together 1; a member with 0 is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from plurum.training.bootstrap import Bootstrap, mean_interval
from plurum.training.judgement import Figure
from plurum.training.weights import equal_weights

__all__ = ["Selection", "backward_selection", "contributions_of"]

Floats = npt.NDArray[np.float64]
# From weights to each image's NLL under the vote that has them, `[images]`.
Losses = Callable[[Floats], Floats]
# Nats per image: by less than this, nobody's answers are better.
_NEGLIGIBLE = 1e-3


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


def contributions_of(losses: Losses, weights: Floats, bootstrap: Bootstrap) -> dict[int, Figure]:
    """Return, for each member in the vote, the NLL that the vote would have more without it, in nats per image.

    Leave-one-out, with 95 % intervals by a paired bootstrap over patients: both votes are scored on the same draws.
    Nothing for a member that is alone.
    """
    members = np.flatnonzero(weights)
    if len(members) < 2:
        return {}
    whole = losses(weights)
    found = {}
    for member in members.tolist():
        rest = weights.copy()
        rest[member] = 0.0
        more = losses(rest / rest.sum()) - whole
        low, high = mean_interval(more, bootstrap)
        found[member] = Figure(value=float(more.mean()), low=low, high=high)
    return found


def backward_selection(losses: Losses, members: int, bootstrap: Bootstrap) -> Selection:
    """Leave out, one by one, the members without which an equal vote is better beyond chance, the worst first.

    Backward elimination: all members are looked at anew after each that leaves, since one can spoil the vote in which
    another is of use. Whoever merely adds nothing stays, and so does who costs less than 0.001 nats. Intervals are not
    widened for being many: of members that neither help nor harm, one in forty leaves by chance, which loses nothing.

    Args:
        losses: Of a vote, by its weights.
        members: How many there are.
        bootstrap: Of the images that `losses` are of.
    """
    weights = equal_weights(members)
    contributions: list[Figure | None] = [None] * members
    while True:
        found = contributions_of(losses, weights, bootstrap)
        for member, figure in found.items():
            contributions[member] = figure
        harmful = {
            member: figure.value or 0.0
            for member, figure in found.items()
            if (figure.high or 0.0) < 0 and (figure.value or 0.0) <= -_NEGLIGIBLE
        }
        if not harmful:
            return Selection(weights, tuple(contributions))
        weights[min(harmful, key=harmful.__getitem__)] = 0.0
        weights = np.where(weights > 0, 1 / np.count_nonzero(weights), 0.0)
