"""Promises on the review risk of new patients: p-values, bounds, and tests of configurations in a fixed order.

The unit is the patient. A patient's loss is the fraction of the patient's unreviewed predictions that are wrong; a
patient without an unreviewed prediction has none. The review risk is the mean loss of patients like these. Images of
one patient err together, so a bound that counts images promises too much.

Configurations are tested in an order that was fixed before their losses were seen, until the first failure (Learn then
Test, Angelopoulos et al., arXiv 2110.01052, fixed-sequence testing). The last one that passed may be served: with the
stated confidence, its risk is at most the stated one.

Legend: losses are `[patients]`, 0 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from plurum.predictions.arrays import Bools, Floats, Ints

__all__ = [
    "SequenceResult",
    "count_required_patients",
    "p_values",
    "patient_losses",
    "risk_bound",
    "risk_p_value",
    "smallest_promise",
    "try_in_order",
]

# More errors than any promise on a rare error allows for; a larger search would not end for risks near 0.
_MOST_PATIENTS = 10_000_000


def patient_losses(wrong: Bools, unreviewed: Bools, groups: Ints) -> Floats:
    """Return the losses of the patients with at least one unreviewed prediction, in the order of their groups.

    Args:
        wrong: Mask of wrong predictions, `[images]`.
        unreviewed: Mask of predictions without review, `[images]`.
        groups: Group of each image, `[images]`, from 0; images of one patient share a group.
    """
    answers = np.bincount(groups, unreviewed)
    errors = np.bincount(groups, wrong & unreviewed)
    return np.asarray(errors[answers > 0] / answers[answers > 0])


def p_values(sums: Floats, patients: Ints, is_binary: Bools, risk: float) -> Floats:
    """Return the p-values of the hypotheses that the mean loss of new patients is above `risk`, one per configuration.

    Each is the binomial probability of at most as many errors where all losses are 0 or 1, and Hoeffding–Bentkus's
    p-value elsewhere (Bates et al., arXiv 2101.02703, and arXiv 2110.01052, proposition 1).

    Args:
        sums: Sum of the patients' losses, `[configurations]`.
        patients: Number of these patients, above 0, `[configurations]`.
        is_binary: Mask of configurations in which all losses are 0 or 1.
        risk: Target risk, between 0 and 1.
    """
    from scipy.special import rel_entr
    from scipy.stats import binom

    exact = binom.cdf(np.rint(sums), patients, risk)
    # Rounding must not turn a sum of exactly 2 into 3 errors.
    bentkus = np.e * binom.cdf(np.ceil(sums - 1e-9), patients, risk)
    mean = np.minimum(sums / patients, risk)
    # The exponent has the Kullback–Leibler divergence of two Bernoulli distributions.
    hoeffding = np.exp(-patients * (rel_entr(mean, risk) + rel_entr(1 - mean, 1 - risk)))
    return np.asarray(np.where(is_binary, exact, np.minimum(np.minimum(bentkus, hoeffding), 1.0)))


def risk_p_value(losses: Floats, risk: float) -> float:
    """Return the p-value of the hypothesis that the mean loss of new patients is above `risk`; 1 without patients."""
    if not len(losses):
        return 1.0
    if risk <= 0 or risk >= 1:
        return 1.0 if risk <= 0 else 0.0
    is_binary = np.isin(losses, (0.0, 1.0)).all()
    return float(p_values(losses.sum(keepdims=True), np.array([len(losses)]), np.array([is_binary]), risk)[0])


def risk_bound(losses: Floats, confidence: float) -> float:
    """Return the upper bound of the mean loss of new patients: the smallest risk that these losses do not reject.

    For losses of 0 and 1, it is the upper limit of Clopper and Pearson. It is 1 without patients. It holds only for a
    configuration that was chosen without these losses.
    """
    from scipy.optimize import brentq

    failure = 1 - confidence
    if not len(losses) or risk_p_value(losses, 1 - 1e-12) > failure:
        return 1.0
    lowest = max(float(losses.mean()), 1e-12)
    return float(brentq(lambda risk: risk_p_value(losses, risk) - failure, lowest, 1 - 1e-12, xtol=1e-12))


def smallest_promise(patients: int, confidence: float) -> float:
    """Return the smallest risk that this number of patients can promise, if none of them has an error."""
    return 1.0 if patients < 1 else -math.expm1(math.log1p(-confidence) / patients)


def count_required_patients(risk: float, confidence: float, errors: int = 0) -> int:
    """Return the number of unreviewed patients that a promise needs, if so many of them have an error."""
    from scipy.stats import binom

    low, high = errors, max(1, errors)
    while binom.cdf(errors, high, risk) > 1 - confidence:
        low, high = high, 2 * high
        if high > _MOST_PATIENTS:
            return high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if binom.cdf(errors, middle, risk) > 1 - confidence else (low, middle)
    return high


@dataclass(frozen=True)
class SequenceResult:
    """Result of tests in a fixed order.

    Attributes:
        start: Index of the first configuration with enough patients for a pass; None if none has.
        passed: Index of the last configuration that passed; None if none did.
        p_values: P-values of the tested configurations, from `start` on; the last may be of the first failure.
    """

    start: int | None
    passed: int | None
    p_values: tuple[float, ...]


def try_in_order(losses: Sequence[Sequence[Floats]], risks: Sequence[float], confidence: float) -> SequenceResult:
    """Test configurations in their order, the strictest first, until the first failure.

    A configuration passes if all its promises do, so that they hold together: its p-value is the largest of theirs. The
    first that is tested is the strictest in which the number of patients could pass without an error.

    Args:
        losses: For each configuration, the losses of each promise.
        risks: Target risk of each promise.
        confidence: Probability with which all promises hold.
    """
    needed = [count_required_patients(risk, confidence) for risk in risks]
    start = next(
        (
            index
            for index, configuration in enumerate(losses)
            if all(len(one) >= number for one, number in zip(configuration, needed, strict=True))
        ),
        None,
    )
    passed, p_values = None, []
    for index in range(len(losses) if start is None else start, len(losses)):
        p_values.append(max(risk_p_value(one, risk) for one, risk in zip(losses[index], risks, strict=True)))
        if p_values[-1] > 1 - confidence:
            break
        passed = index
    return SequenceResult(start, passed, tuple(p_values))
