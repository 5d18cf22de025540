"""Pool the predictions of a patient's images into one for the patient, as `plurum fit` and `evaluate` do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from plurum.client.connection.predictions import Answer, Failure
from plurum.predictions.arrays import Floats
from plurum.spec import PatientRule
from plurum.voting import DecisionPoint, decide_groups, pool_groups

__all__ = ["PatientAnswer", "PatientPool", "patients_from_answers"]


@dataclass(frozen=True)
class PatientAnswer:
    """Pooled prediction for a patient.

    Attributes:
        patient: Name of the patient.
        label: Decided class; empty if no image has a prediction.
        confidence: Probability of the label, 0 to 1; NaN if no image has a prediction.
        probabilities: Probabilities by class, which sum to 1; empty if no image has a prediction.
        images: Number of images with a prediction.
        review: Number of images that need review.
        failed: Number of images without a prediction.
    """

    patient: str
    label: str
    confidence: float
    probabilities: dict[str, float]
    images: int
    review: int
    failed: int

    def to_dict(self) -> dict[str, Any]:
        """Return all attributes as JSON values; a confidence of NaN becomes null."""
        return asdict(self) | {"confidence": None if np.isnan(self.confidence) else self.confidence}


@dataclass
class _Sums:
    sums: Floats
    highest: Floats
    wins: Floats
    images: int = 0
    review: int = 0
    failed: int = 0


@dataclass
class PatientPool:
    """Pool of predictions by patient; memory grows with the number of patients, not of images.

    Attributes:
        classes: Class names, in the order of the probabilities.
        rule: Rule that pools a patient's predictions; see `plurum.voting.pool_groups`.
        point: Operating point that decides on the pooled probabilities, `Served.point`; None decides for the most
            probable class. Majorities count the images' labels instead.
    """

    classes: Sequence[str]
    rule: PatientRule = "mean"
    point: DecisionPoint | None = None
    _patients: dict[str, _Sums] = field(default_factory=dict)

    def add(
        self, patient: str, label: str | None, probabilities: Sequence[float] = (), *, review: bool = False
    ) -> None:
        """Add the prediction of one image; ignore it if the patient's name is empty.

        Args:
            patient: Name of the patient.
            label: Decided class; None for an image without a prediction.
            probabilities: Probabilities in the order of `classes`.
            review: True if the prediction needs review.
        """
        if not patient:
            return
        if patient not in self._patients:
            self._patients[patient] = _Sums(*np.zeros((3, len(self.classes))))
        one = self._patients[patient]
        if label is None:
            one.failed += 1
            return
        one.images += 1
        one.review += review
        one.sums += probabilities
        np.maximum(one.highest, probabilities, out=one.highest)
        # If the server hides its config, the class names are numbers, unlike the labels.
        winner = self.classes.index(label) if label in self.classes else int(np.argmax(probabilities))
        one.wins[winner] += 1

    def answers(self) -> list[PatientAnswer]:
        """Return one pooled prediction per patient, sorted by name."""
        return [self._answer(name, one) for name, one in sorted(self._patients.items())]

    def _answer(self, patient: str, one: _Sums) -> PatientAnswer:
        if not one.images:
            return PatientAnswer(patient, "", float("nan"), {}, 0, 0, one.failed)
        (row,) = pool_groups(self.rule, [one.images], one.sums[None], one.highest[None], one.wins[None])
        (winner,) = decide_groups(self.rule, row[None], self.point).tolist()
        return PatientAnswer(
            patient=patient,
            label=self.classes[winner],
            confidence=float(row[winner]),
            probabilities=dict(zip(self.classes, row.tolist(), strict=True)),
            images=one.images,
            review=one.review,
            failed=one.failed,
        )


def patients_from_answers(
    patients: Iterable[str],
    answers: Iterable[Answer],
    classes: Sequence[str],
    rule: PatientRule = "mean",
    point: DecisionPoint | None = None,
) -> list[PatientAnswer]:
    """Return one pooled prediction per patient, sorted by name.

    Args:
        patients: Patients' names, one per answer; images with an empty name are ignored.
        answers: Results of `predict` or `stream`.
        classes: Class names, as the server states them.
        rule: Rule that pools a patient's predictions: `mean` averages probabilities, `max` takes each class's highest
            probability, `majority` counts labels.
        point: Operating point that decides on the pooled probabilities, `Served.point`; None decides for the most
            probable class.
    """
    pool = PatientPool(classes, rule, point)
    for patient, answer in zip(patients, answers, strict=True):
        if isinstance(answer, Failure):
            pool.add(patient, None)
        else:
            pool.add(patient, answer.label, list(answer.probabilities.values()), review=answer.review)
    return pool.answers()
