"""One answer per patient, by hand, and as training makes it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from plurum.client import Failure, PatientPool, Prediction, patients_from_answers
from plurum.spec import PatientRule
from plurum.training.statistics.patients import group_by_patient
from tests.client.samples import prediction

CLASSES = ("CE", "LAA")


def answer(share: float, *, review: bool = False) -> Prediction:
    return prediction("CE" if share >= 0.5 else "LAA", max(share, 1 - share), review=review)


ANSWERS: list[Prediction | Failure] = [
    answer(0.9),
    answer(0.4, review=True),
    answer(0.4),
    answer(0.7),
    Failure(4, "x", "no image"),
]
PATIENTS = ["bob", "bob", "bob", "ann", "bob"]


@pytest.mark.parametrize(
    ("rule", "label", "confidence"), [("mean", "CE", 1.7 / 3), ("max", "CE", 0.9 / 1.5), ("majority", "LAA", 2 / 3)]
)
def test_images_of_a_patient_are_pooled(rule: PatientRule, label: str, confidence: float) -> None:
    ann, bob = patients_from_answers(PATIENTS, ANSWERS, CLASSES, rule)
    assert (ann.patient, ann.label, ann.images, ann.review, ann.failed) == ("ann", "CE", 1, 0, 0)
    assert (bob.patient, bob.label, bob.images, bob.review, bob.failed) == ("bob", label, 3, 1, 1)
    assert bob.confidence == pytest.approx(confidence, abs=1e-6)
    assert sum(bob.probabilities.values()) == pytest.approx(1)


@pytest.mark.parametrize("rule", ["mean", "max", "majority"])
def test_pooling_equals_that_of_training(rule: PatientRule) -> None:
    draws = np.random.default_rng(0)
    shares, names = draws.random(200), [f"p{number}" for number in draws.integers(0, 20, 200)]
    images = np.stack([shares, 1 - shares], axis=1)
    theirs = group_by_patient(names, np.zeros(200, dtype=np.int64))
    assert theirs is not None
    expected = theirs.probabilities(images, images.argmax(axis=1), rule)
    ours = patients_from_answers(names, [answer(share) for share in shares], CLASSES, rule)
    assert [one.patient for one in ours] == list(theirs.names)
    np.testing.assert_allclose([list(one.probabilities.values()) for one in ours], expected)


def test_images_without_a_patient_are_ignored() -> None:
    (cid,) = patients_from_answers(["", "cid"], [ANSWERS[0], ANSWERS[4]], CLASSES)
    assert (cid.patient, cid.label, cid.images, cid.failed) == ("cid", "", 0, 1)
    assert math.isnan(cid.confidence)
    assert cid.to_dict()["confidence"] is None


def test_numbered_classes_are_pooled() -> None:
    pool = PatientPool(("0", "1"), "majority")
    pool.add("ann", "LAA", [0.2, 0.8])
    assert pool.answers()[0].label == "1"


def test_number_of_patients_must_match_the_answers() -> None:
    with pytest.raises(ValueError, match="longer than"):
        patients_from_answers(["ann"], ANSWERS[:2], CLASSES)
