"""Thresholds of a positive class that keep a promise about new patients, with NumPy and SciPy.

The unit is the patient: a patient's loss is the fraction of their images that are wrong, and the mean loss of patients
is bounded. Thresholds are tried in order, from the strictest, until the first at which the mean loss is not shown to be
at most the target (fixed-sequence testing, Angelopoulos et al., arXiv 2110.01052). The promise therefore holds for the
last that passed, although the same images chose it.

Legend: scores are `[images]`, float64; groups are `[images]`, int64: images of one patient share a group.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from plurum.predictions.arrays import Bools, Floats, Ints
from plurum.promises.risk_control import count_required_patients, p_values

__all__ = ["Promise", "accepted_below", "limit_of_class", "midpoint_below"]


@dataclass(frozen=True)
class Promise:
    """Upper limit of a mean loss of patients.

    Attributes:
        loss: Largest mean loss of patients, 0 to 1.
        confidence: Confidence with which it holds, 0 to 1.
    """

    loss: float
    confidence: float


def limit_of_class(scores: Floats, groups: Ints, promise: Promise) -> float | None:
    """Return the largest score from which on enough images of a class are found; None if there are too few patients.

    Args:
        scores: Scores of the images of the class.
        groups: Patients of these images.
        promise: Limit of the fraction of a patient's images with lower scores.
    """
    if not len(scores):
        return None
    order = np.argsort(scores, kind="stable")
    values, first = np.unique(scores[order], return_index=True)
    _, owner, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    missed = np.append(0.0, np.cumsum(1 / sizes[owner[order]]))[first]
    patients = np.full(len(values), len(sizes))
    passed = p_values(missed, patients, np.full(len(values), sizes.max() == 1), promise.loss) <= 1 - promise.confidence
    if not passed[0]:
        return None
    return float(values[-1] if passed.all() else values[passed.argmin() - 1])


def accepted_below(scores: Floats, wrong: Bools, groups: Ints, promise: Promise) -> float | None:
    """Return the highest limit below which few predictions are wrong; None if no limit keeps the promise.

    The loss of a patient is the fraction of wrong predictions among those of their images that are below the limit.
    The first limit tried has as many patients below it as keep the promise without an error, the second as many as
    keep it with one, and so on. The result is between two scores; infinity accepts all images.

    Args:
        scores: Scores of the images, the lowest accepted first.
        wrong: Mask of wrong predictions, `[images]`.
        groups: Patients of the images.
        promise: Limit of the mean loss of patients with an accepted image.
    """
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    sums, patients, single = _losses_of_first(wrong[order], groups[order])
    # Images of equal scores are accepted together.
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)) if len(ranked) else np.zeros(0, dtype=np.int64)
    ends = _steps(ends, patients, promise)
    passed = p_values(sums[ends], patients[ends], single[ends], promise.loss) <= 1 - promise.confidence
    if not len(ends) or not passed[0]:
        return None
    last = int(ends[-1] if passed.all() else ends[passed.argmin() - 1])
    return float("inf") if last == len(ranked) - 1 else float((ranked[last] + ranked[last + 1]) / 2)


def midpoint_below(limit: float, scores: Floats) -> float:
    """Return the middle between `limit` and the next lower score, so that rounding changes no decision."""
    lower = scores[scores < limit]
    return float((limit + lower.max()) / 2) if len(lower) else limit / 2


def _steps(ends: Ints, patients: Ints, promise: Promise) -> Ints:
    """Return the places of the limits to try; they depend on numbers of patients, not on errors."""
    steps: list[int] = []
    while len(beyond := ends[patients[ends] >= count_required_patients(promise.loss, promise.confidence, len(steps))]):
        steps.append(int(beyond[0]))
    # Equal scores, or many images of a patient, may reach several numbers at once.
    return np.unique(np.array([*steps, *(ends[-1:] if steps else ())], dtype=np.int64))


def _losses_of_first(wrong: Bools, groups: Ints) -> tuple[Floats, Ints, Bools]:
    """Return for the first 1, 2, … images: the sum of patients' losses, their number, if each has a single image."""
    counts: dict[int, list[int]] = {}
    sums, patients, single = np.zeros(len(wrong)), np.zeros(len(wrong), dtype=np.int64), np.ones(len(wrong), dtype=bool)
    total, is_single = 0.0, True
    for row, (is_wrong, group) in enumerate(zip(wrong.tolist(), groups.tolist(), strict=True)):
        errors, images = counts.setdefault(group, [0, 0])
        total += (errors + is_wrong) / (images + 1) - (errors / images if images else 0.0)
        counts[group] = [errors + is_wrong, images + 1]
        is_single = is_single and not images
        sums[row], patients[row], single[row] = total, len(counts), is_single
    return sums, patients, single
