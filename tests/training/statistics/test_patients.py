"""Predictions per patient, against cases computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from plurum.training.statistics.patients import group_by_patient

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
