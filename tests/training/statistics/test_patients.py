"""Predictions per patient, against cases computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from plurum.training.statistics.patients import effective_patients, group_by_patient, sampling_weights
from tests.model_repository.triton_recorder import loaded

NAMES = ["b", "a", "", "b", "b", "torn", "torn", "a"]
LABELS = np.array([1, 0, 1, 1, 1, 0, 1, 0])
PROBABILITIES = np.array([[0.9, 0.1], [0.6, 0.4], [0.5, 0.5], [0.4, 0.6], [0.4, 0.6], [1, 0], [1, 0], [0.2, 0.8]])


def test_images_are_grouped_by_patient() -> None:
    patients = group_by_patient(NAMES, LABELS)
    assert patients is not None
    assert patients.names == ("a", "b")
    assert patients.torn == ("torn",)
    assert patients.labels.tolist() == [0, 1]
    assert [patients.names[owner] for owner in patients.owner] == [NAMES[row] for row in patients.rows]
    assert sorted(patients.rows) == [0, 1, 3, 4, 7]


def test_mean_max_and_majority() -> None:
    patients = group_by_patient(NAMES, LABELS)
    assert patients is not None
    winners = PROBABILITIES.argmax(axis=1)
    mean = patients.probabilities(PROBABILITIES, winners, "mean")
    np.testing.assert_allclose(mean, [[0.4, 0.6], [1.7 / 3, 1.3 / 3]])
    highest = patients.probabilities(PROBABILITIES, winners, "max")
    np.testing.assert_allclose(highest, [[0.6 / 1.4, 0.8 / 1.4], [0.9 / 1.5, 0.6 / 1.5]])
    majority = patients.probabilities(PROBABILITIES, winners, "majority")
    np.testing.assert_allclose(majority, [[0.5, 0.5], [1 / 3, 2 / 3]], atol=1e-6)
    # One image for each class: the higher mean decides.
    assert majority.argmax(axis=1).tolist() == [1, 1]
    for rows in (mean, highest, majority):
        np.testing.assert_allclose(rows.sum(axis=1), 1)


@pytest.mark.parametrize("names", [[""] * 3, []])
def test_without_patient_names_there_are_no_patients(names: list[str]) -> None:
    assert group_by_patient(names, np.zeros(len(names), dtype=np.int64)) is None


def test_patients_with_several_labels_are_left_out() -> None:
    patients = group_by_patient(["a", "a"], np.array([0, 1]))
    assert patients is not None
    assert patients.names == ()
    assert patients.torn == ("a",)


def test_weights_are_the_inverse_of_known_probabilities() -> None:
    weights = sampling_weights(np.array([1.0, 0.02, np.nan]))
    np.testing.assert_allclose(weights, [1, 50, 0])
    for wrong in (0.0, -0.1, 1.1, np.inf):
        with pytest.raises(ValueError, match="expected numbers above 0 to 1"):
            sampling_weights(np.array([0.5, wrong]))


def test_effective_patients_by_hand() -> None:
    assert effective_patients(np.ones(6), np.arange(6)) == 6
    # Two patients with weights 3 and 1.
    assert effective_patients(np.array([1.0, 2.0, 1.0]), np.array([0, 0, 1])) == pytest.approx(16 / 10)
    assert effective_patients(np.zeros(2), np.arange(2)) == 0


def test_effective_patients_predict_the_variance_of_a_weighted_mean() -> None:
    random = np.random.default_rng(0)
    weights = sampling_weights(random.choice([1.0, 0.25, 0.1], 200))
    values = random.normal(size=(4000, 200))
    means = values @ weights / weights.sum()
    # The standard error of this variance is 2.2 %.
    assert 1 / means.var() == pytest.approx(effective_patients(weights, np.arange(200)), rel=0.09)


@pytest.mark.parametrize("images_each", [1, 4])
def test_weights_undo_the_bias_of_what_persons_see(images_each: int) -> None:
    """Label what needs review and what a server draws; the true accuracy of each simulated study is known."""
    audit, rate, patients = loaded("voter/audit.py"), 0.1, 1000
    owner = np.repeat(np.arange(patients), images_each)
    pixels = np.zeros((len(owner), 1, 1, 3), np.uint8)
    weighted, unweighted = [], []
    for study in range(100):
        random = np.random.default_rng(study)
        # The images of a patient are similarly hard.
        confidence = np.clip(random.beta(6, 1, patients)[owner] + random.normal(0, 0.05, len(owner)), 0, 1)
        is_correct, review = random.random(len(owner)) < confidence, confidence < 0.8
        drawn = audit.AuditDraw(rate, random.bytes(32)).draw(pixels, [f"patient {one}" for one in owner])[:, 0]
        labelled = review | drawn
        weights = sampling_weights(np.where(review, 1.0, rate)[labelled])
        weighted.append(np.average(is_correct[labelled], weights=weights) - is_correct.mean())
        unweighted.append(is_correct[labelled].mean() - is_correct.mean())
    error = np.std(weighted, ddof=1) / np.sqrt(len(weighted))
    assert abs(np.mean(weighted)) < 4 * error < 0.01
    assert np.mean(unweighted) < -0.1
