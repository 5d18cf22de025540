"""From the answers to a patient's images to one answer for the patient. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from plurum.spec import PatientRule
from plurum.voting import pool_groups

__all__ = ["RULES", "Patients", "patients_of"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

RULES: tuple[PatientRule, ...] = ("mean", "max", "majority")


@dataclass(frozen=True)
class Patients:
    """Whose images they are; images without a patient are left out, and so are patients whose images' labels differ.

    Attributes:
        names: `[patients]`, sorted.
        rows: `[images of theirs]`, indices into all images.
        owner: `[images of theirs]`, indices into `names`.
        labels: `[patients]`, the true classes.
        torn: Those left out because their images have different labels.
    """

    names: tuple[str, ...]
    rows: Ints
    owner: Ints
    labels: Ints
    torn: tuple[str, ...]

    def probabilities(self, images: Floats, winners: Ints, rule: PatientRule) -> Floats:
        """Return one row per patient, `[patients, classes]`, each summing to 1; see `plurum.voting.pool_groups`.

        Args:
            images: Probabilities `[images, classes]` of all images.
            winners: `[images]`, their answers.
            rule: How they become one.
        """
        theirs = images[self.rows]
        sums, highest, wins = np.zeros((3, len(self.names), images.shape[1]))
        np.add.at(sums, self.owner, theirs)
        np.maximum.at(highest, self.owner, theirs)
        np.add.at(wins, (self.owner, winners[self.rows]), 1.0)
        return pool_groups(rule, np.bincount(self.owner, minlength=len(self.names)), sums, highest, wins)


def patients_of(patients: Sequence[str], labels: Ints) -> Patients | None:
    """Return whose the images are, with one patient's name per image (empty where none is known); None without any."""
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
