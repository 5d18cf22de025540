"""From the answers to a patient's images to one answer for the patient, as `plurum fit` and `evaluate` make it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from plurum.client.connection.predictions import Answer, Failure
from plurum.spec import PatientRule
from plurum.voting import pool_groups

__all__ = ["PatientAnswer", "PatientPool", "patients_from_answers"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PatientAnswer:
    """What a patient's images say together.

    Attributes:
        patient: Whose they are.
        label: The winning class; empty where no image has an answer.
        confidence: Its probability, 0 to 1; NaN likewise.
        probabilities: By class, together 1; empty likewise.
        images: How many have an answer.
        review: How many of those a person should look at.
        failed: How many have none.
    """

    patient: str
    label: str
    confidence: float
    probabilities: dict[str, float]
    images: int
    review: int
    failed: int

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as what JSON can hold: null for a confidence that is none."""
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
    """Adds up answers as they come, and forgets them: memory grows with patients, not with images.

    Attributes:
        classes: Names, in the order of the probabilities.
        rule: How the answers to a patient's images become one; see `plurum.voting.pool_groups`.
    """

    classes: Sequence[str]
    rule: PatientRule = "mean"
    _patients: dict[str, _Sums] = field(default_factory=dict)

    def add(
        self, patient: str, label: str | None, probabilities: Sequence[float] = (), *, review: bool = False
    ) -> None:
        """Add the answer to one image; without a patient's name it is left out.

        Args:
            patient: Whose it is.
            label: The winning class; None for an image without an answer.
            probabilities: By class.
            review: Whether a person should look at it.
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
        # A server that keeps its config to itself has classes of other names than its labels.
        winner = self.classes.index(label) if label in self.classes else int(np.argmax(probabilities))
        one.wins[winner] += 1

    def answers(self) -> list[PatientAnswer]:
        """Return one answer per patient, by name."""
        return [self._answer(name, one) for name, one in sorted(self._patients.items())]

    def _answer(self, patient: str, one: _Sums) -> PatientAnswer:
        if not one.images:
            return PatientAnswer(patient, "", float("nan"), {}, 0, 0, one.failed)
        (row,) = pool_groups(self.rule, [one.images], one.sums[None], one.highest[None], one.wins[None])
        winner = int(row.argmax())
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
    patients: Iterable[str], answers: Iterable[Answer], classes: Sequence[str], rule: PatientRule = "mean"
) -> list[PatientAnswer]:
    """Return one answer per patient, by name.

    Args:
        patients: Whose image it is, one per answer; images with an empty name are left out.
        answers: What `predict` or `stream` gave.
        classes: As the server names them.
        rule: How the answers to a patient's images become one: `mean` averages probabilities, `max` takes each class's
            highest, `majority` counts winners.
    """
    pool = PatientPool(classes, rule)
    for patient, answer in zip(patients, answers, strict=True):
        if isinstance(answer, Failure):
            pool.add(patient, None)
        else:
            pool.add(patient, answer.label, list(answer.probabilities.values()), review=answer.review)
    return pool.answers()
