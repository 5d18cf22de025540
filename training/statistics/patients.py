"""Combine the predictions for a patient's images into one, and weigh images that were sampled unequally, with NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from plurum.predictions.arrays import Floats, Ints
from plurum.spec import PatientRule
from plurum.voting import pool_groups

__all__ = ["RULES", "Patients", "draw_equally", "effective_patients", "group_by_patient", "sampling_weights"]


RULES: tuple[PatientRule, ...] = ("mean", "max", "majority")


@dataclass(frozen=True)
class Patients:
    """Patients and their images, without images of unknown patients and without patients with several labels.

    Attributes:
        names: Names of the patients, `[patients]`, sorted.
        rows: Indices of their images into all images, `[their images]`.
        owner: Index into `names` of each of these images, `[their images]`.
        labels: True class of each patient, `[patients]`.
        torn: Names of patients left out because their images have different labels.
    """

    names: tuple[str, ...]
    rows: Ints
    owner: Ints
    labels: Ints
    torn: tuple[str, ...]

    def probabilities(self, images: Floats, winners: Ints, rule: PatientRule) -> Floats:
        """Return the probabilities per patient, `[patients, classes]`; see `plurum.voting.pool_groups`.

        Args:
            images: Probabilities of all images, `[images, classes]`.
            winners: Predicted classes of all images, `[images]`.
            rule: Rule that combines the predictions for a patient's images.
        """
        theirs = images[self.rows]
        sums, highest, wins = np.zeros((3, len(self.names), images.shape[1]))
        np.add.at(sums, self.owner, theirs)
        np.maximum.at(highest, self.owner, theirs)
        np.add.at(wins, (self.owner, winners[self.rows]), 1.0)
        return pool_groups(rule, np.bincount(self.owner, minlength=len(self.names)), sums, highest, wins)


def group_by_patient(patients: Sequence[str], labels: Ints) -> Patients | None:
    """Return the patients of the images, or None if none is known.

    Args:
        patients: Name of each image's patient; an empty string if unknown.
        labels: True classes, `[images]`.
    """
    known = np.array([bool(name) for name in patients], dtype=np.bool_)
    names, owner = np.unique(np.asarray(patients, dtype=np.str_)[known], return_inverse=True)
    if not len(names):
        return None
    rows = np.flatnonzero(known)
    lowest = np.full(len(names), np.iinfo(np.int64).max)
    highest = np.full(len(names), -1)
    np.minimum.at(lowest, owner, labels[rows])
    np.maximum.at(highest, owner, labels[rows])
    whole = lowest == highest
    kept = whole[owner]
    return Patients(
        names=tuple(names[whole].tolist()),
        rows=rows[kept],
        owner=(np.cumsum(whole) - 1)[owner[kept]],
        labels=lowest[whole],
        torn=tuple(names[~whole].tolist()),
    )


def sampling_weights(probabilities: Floats) -> Floats:
    """Return the weight of each image in estimates for all images, 1 / its sampling probability (Horvitz–Thompson).

    Labelled images are a biased sample where only predictions that need review, and audits, were labelled. Weighted
    means over them are unbiased in large samples. An image of unknown probability, such as one that a person chose,
    says nothing about others: its weight is 0.

    Args:
        probabilities: Probability with which each image was chosen, above 0 to 1; NaN if unknown, `[images]`.

    Raises:
        ValueError: a probability is out of range.
    """
    known = ~np.isnan(probabilities)
    if not ((probabilities[known] > 0) & (probabilities[known] <= 1)).all():
        raise ValueError("sampling probabilities: expected numbers above 0 to 1")
    return np.divide(1.0, probabilities, out=np.zeros(len(known)), where=known)


def effective_patients(weights: Floats, groups: Ints) -> float:
    """Return the number of patients of equal weight that would give estimates as certain (Kish 1965): (Σw)² / Σw².

    A patient's weight is the sum over its images. It is 0 without any weight.

    Args:
        weights: Weight of each image, `[images]`.
        groups: Number of each image's patient, `[images]`; see `number_patients`.
    """
    of_patients = np.bincount(groups, weights)
    squares = float((of_patients**2).sum())
    return float(of_patients.sum()) ** 2 / squares if squares else 0.0


def draw_equally(weights: Floats, seed: int) -> Ints:
    """Return the indices of images that are a sample without weights of what weighted images stand for.

    Each image is kept with a probability of its weight, divided by the largest (rejection sampling, von Neumann 1951).
    Tests that need independent images of equal weight are exact on these. Some weight / largest weight are kept.

    Args:
        weights: Weight of each image, `[images]`.
        seed: Random seed.
    """
    return np.flatnonzero(np.random.default_rng(seed).random(len(weights)) * weights.max() < weights)
