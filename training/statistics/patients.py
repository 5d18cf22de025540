"""Combine the predictions for a patient's images into one prediction, with NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from plurum.predictions.arrays import Floats, Ints
from plurum.spec import PatientRule
from plurum.voting import pool_groups

__all__ = ["RULES", "Patients", "group_by_patient"]


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
