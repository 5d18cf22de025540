"""Fitting the weights of a soft vote to labels, and whether they are worth it. NumPy and SciPy.

Legend: members are probabilities `[images, members, classes]`, float64; labels are `[images]`, int64; weights are
`[members]`, each ≥ 0, together 1.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from plurum.errors import needs_extra
from plurum.training.statistics.bootstrap import Bootstrap, mean_interval
from plurum.training.statistics.calibration import cautious_temperature, tempered_losses
from plurum.training.statistics.folds import patient_folds
from plurum.training.statistics.scoring import losses_of
from plurum.voting import soft_vote, softmax, temper

__all__ = ["equal_weights", "fitted_weights", "greedy_weights", "improvement_interval", "soft_losses"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
# From members and labels to weights.
Fitter = Callable[[Floats, Ints], Floats]

_MAX_ADDED = 50
# Who has less of a say costs as much to serve as any other.
_LEAST = 0.01
_LOG_TEMPERATURES = (float(np.log(0.1)), float(np.log(10.0)))
# Above float64's smallest, so that slopes of members that rule the truth out stay finite.
_SMALLEST = 1e-12


def equal_weights(members: int) -> Floats:
    """Return what each of so many members has in a vote of equals."""
    return np.full(members, 1 / members)


def soft_losses(members: Floats, labels: Ints, weights: Floats) -> Floats:
    """Return each image's NLL `[images]` under the soft vote, at the temperature that suits it best, in nats."""
    return tempered_losses(soft_vote(members, weights), labels)


def fitted_weights(members: Floats, labels: Ints) -> Floats:
    """Return the weights `[members]`, on the simplex, of the soft vote that has the lowest NLL once it is tempered.

    Weights and temperature are looked for together (sequential quadratic programming): without the temperature, the
    surest members would win. It starts from equal weights and from the best member alone, and keeps equal ones where
    others are no better, and where equal ones answer all images right: only members' sureness could then tell them
    apart, which the temperature is there to mend. A weight below 0.01 becomes 0.
    """
    with needs_extra("training"):
        from scipy.optimize import minimize

    number = members.shape[1]
    equal = equal_weights(number)
    if number == 1 or (soft_vote(members, equal).argmax(axis=-1) == labels).all():
        return equal
    singles = [soft_losses(members, labels, single).mean() for single in np.eye(number)]
    best, lowest = equal, float(soft_losses(members, labels, equal).mean())
    for start in (equal, np.eye(number)[int(np.argmin(singles))]):
        found = minimize(
            _tempered_nll,
            np.append(start, 0.0),
            args=(members, labels),
            jac=True,
            method="SLSQP",
            bounds=[(0.0, 1.0)] * number + [_LOG_TEMPERATURES],
            constraints={
                "type": "eq",
                "fun": lambda x: x[:-1].sum() - 1,
                "jac": lambda x: np.append(x[:-1] * 0 + 1, 0),
            },
            options={"maxiter": 200, "ftol": 1e-9},
        )
        weights = np.where(found.x[:-1] < _LEAST, 0.0, found.x[:-1])
        weights /= weights.sum()
        loss = float(soft_losses(members, labels, weights).mean())
        if loss < lowest - 1e-9:
            best, lowest = weights, loss
    return np.asarray(best)


def _tempered_nll(point: Floats, members: Floats, labels: Ints) -> tuple[float, Floats]:
    """Return mean NLL and gradient at `[weights, log(temperature)]`."""
    weights, temperature = point[:-1], np.exp(point[-1])
    vote = np.maximum(soft_vote(members, weights), _SMALLEST)
    logits = np.log(vote) / temperature
    probabilities = softmax(logits)
    rows = np.arange(len(labels))
    loss = -np.log(np.maximum(probabilities[rows, labels], _SMALLEST)).mean()
    off = probabilities
    off[rows, labels] -= 1
    by_weight = np.einsum("bmc,bc->m", members, off / (vote * temperature))
    return float(loss), np.append(by_weight, -(off * logits).sum()) / len(labels)


def greedy_weights(members: Floats, labels: Ints) -> Floats:
    """Return how often greedy selection takes each member, over all it takes; 0 for one it never takes.

    Ensemble selection (Caruana, Niculescu-Mizil, Crew & Ksikes 2004): it begins with as many of the best members as
    are best together (sorted initialisation, 2.2), then adds the member, one it has already or not (with replacement,
    2.1), whose vote lowers the NLL most, until none does. Each vote is scored at its own temperature.
    """
    number = members.shape[1]

    def loss(counts: Ints) -> float:
        return float(soft_losses(members, labels, counts / counts.sum()).mean())

    one_more = np.eye(number, dtype=np.int64)
    ranked = sorted(range(number), key=lambda member: loss(one_more[member]))
    beginnings = np.cumsum(one_more[ranked], axis=0)
    losses = [loss(counts) for counts in beginnings]
    counts, lowest = beginnings[int(np.argmin(losses))], min(losses)
    for _ in range(_MAX_ADDED):
        losses = [loss(counts + added) for added in one_more]
        # Less than rounding could make of it is nothing gained.
        if min(losses) >= lowest - 1e-9:
            break
        counts, lowest = counts + one_more[int(np.argmin(losses))], min(losses)
    return np.asarray(counts / counts.sum())


def improvement_interval(members: Floats, labels: Ints, fit: Fitter, bootstrap: Bootstrap) -> tuple[float, float]:
    """Return the 95 % interval of the NLL that the weights of `fit` save against equal ones, in nats per image.

    No image is judged by weights that were fitted to it: they are fitted in five folds by patient, and so is the
    temperature of each of the two votes, without which the weights of the surest member would win, since an average is
    less sure than its parts. A paired bootstrap over the same patients: both are scored on the same draws (Efron &
    Tibshirani 1993, 16). Nothing is saved where there is a single patient.
    """
    saved = np.zeros(len(labels))
    for rows, unseen in patient_folds(labels, bootstrap.groups, bootstrap.seed):

        def losses(weights: Floats, rows: Ints = rows, unseen: Ints = unseen) -> Floats:
            temperature = cautious_temperature(soft_vote(members[rows], weights), labels[rows], bootstrap.groups[rows])
            return losses_of(temper(soft_vote(members[unseen], weights), temperature), labels[unseen])

        saved[unseen] = losses(equal_weights(members.shape[1])) - losses(fit(members[rows], labels[rows]))
    return mean_interval(saved, bootstrap)
