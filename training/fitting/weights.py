"""Fit the weights of a soft vote to labels, and measure their benefit, with NumPy and SciPy.

Legend: members are probabilities `[images, members, classes]`, float64; labels are `[images]`, int64; weights are
`[members]`, each ≥ 0, with a sum of 1.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from plurum.errors import needs_extra
from plurum.predictions.arrays import Floats, Ints
from plurum.predictions.scores import compute_losses
from plurum.training.statistics.bootstrap import Bootstrap, mean_interval
from plurum.training.statistics.calibration import fit_cautious_temperature, tempered_losses
from plurum.training.statistics.folds import patient_folds
from plurum.voting import soft_vote, softmax, temper

__all__ = ["equal_weights", "fit_weights", "greedy_weights", "improvement_interval", "soft_losses"]

# Function from members and labels to weights.
Fitter = Callable[[Floats, Ints], Floats]

_MAX_ADDED = 50
# Smaller weights become 0, because a member costs the same to serve at any weight.
_LEAST = 0.01
_LOG_TEMPERATURES = (float(np.log(0.1)), float(np.log(10.0)))
# Smallest probability in the loss, so that gradients stay finite for members with a probability of 0.
_SMALLEST = 1e-12


def equal_weights(members: int) -> Floats:
    """Return equal weights for `members` members."""
    return np.full(members, 1 / members)


def soft_losses(members: Floats, labels: Ints, weights: Floats) -> Floats:
    """Return each image's NLL of the soft vote, `[images]`, in nats, at the best temperature."""
    return tempered_losses(soft_vote(members, weights), labels)


def fit_weights(members: Floats, labels: Ints) -> Floats:
    """Return the weights `[members]` of the soft vote with the lowest NLL at its best temperature.

    Weights and temperature are optimised together by sequential quadratic programming; without the temperature, the
    most confident members would win. The search starts from equal weights and from the best member alone. Weights stay
    equal if no others are better, or if the equal vote makes no error: then only confidence would tell members apart,
    which the temperature corrects. Weights below 0.01 become 0.
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
    """Return the mean NLL and its gradient at `[weights, log(temperature)]`."""
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
    """Return weights by greedy selection: how often each member is added, divided by all additions.

    Ensemble selection (Caruana, Niculescu-Mizil, Crew & Ksikes 2004). It starts with the best number of top members
    (sorted initialisation, 2.2). Then it repeatedly adds the member that lowers the NLL most, also if selected before
    (with replacement, 2.1), until no addition helps. Each vote is scored at its best temperature.
    """
    number = members.shape[1]

    def loss(counts: Ints) -> float:
        return float(soft_losses(members, labels, counts / counts.sum()).mean())

    one_more = np.eye(number, dtype=np.int64)
    ranked = sorted(range(number), key=lambda member: loss(one_more[member]))
    starts = np.cumsum(one_more[ranked], axis=0)
    losses = [loss(counts) for counts in starts]
    counts, lowest = starts[int(np.argmin(losses))], min(losses)
    for _ in range(_MAX_ADDED):
        losses = [loss(counts + added) for added in one_more]
        # Ignore gains within rounding.
        if min(losses) >= lowest - 1e-9:
            break
        counts, lowest = counts + one_more[int(np.argmin(losses))], min(losses)
    return np.asarray(counts / counts.sum())


def improvement_interval(members: Floats, labels: Ints, fit: Fitter, bootstrap: Bootstrap) -> tuple[float, float]:
    """Return the 95 % interval of the NLL that the weights of `fit` save against equal weights, in nats per image.

    Cross-validation in five folds by patient: no image is scored with weights or temperatures that were fitted to it.
    Both votes have a temperature; without it the most confident member would win, as averages are less confident. The
    bootstrap over patients is paired (Efron & Tibshirani 1993, 16). With a single patient, the interval is 0 to 0.
    """
    saved = np.zeros(len(labels))
    for rows, unseen in patient_folds(labels, bootstrap.groups, bootstrap.seed):

        def losses(weights: Floats, rows: Ints = rows, unseen: Ints = unseen) -> Floats:
            temperature = fit_cautious_temperature(
                soft_vote(members[rows], weights), labels[rows], bootstrap.groups[rows]
            )
            return compute_losses(temper(soft_vote(members[unseen], weights), temperature), labels[unseen])

        saved[unseen] = losses(equal_weights(members.shape[1])) - losses(fit(members[rows], labels[rows]))
    return mean_interval(saved, bootstrap)
