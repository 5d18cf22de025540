"""Folds: equal images and those of a patient stay together, and every class is in every fold."""

from __future__ import annotations

import numpy as np
import pytest

from plurum.errors import DataError
from plurum.run import Split, Table
from plurum.training.data.folds import draw_folds, merge_splits

CLASSES = ("CE", "LAA")


def table_of(patients: list[str], splits: tuple[Split, ...] | None = None) -> Table:
    number = len(patients)
    train: tuple[Split, ...] = ("train",)
    return Table(
        sources=tuple(map(str, range(number))),
        labels=np.arange(number) % 2,
        patients=tuple(patients),
        splits=splits or train * number,
    )


def test_calibration_images_validate_and_validation_images_are_learnt() -> None:
    assert merge_splits(("train", "validation", "calibration", "test", "certification")) == (
        "train",
        "train",
        "validation",
        "test",
        "certification",
    )
    with pytest.raises(DataError, match=r"--folds: expected calibration images, .* got none. Set some aside: --certif"):
        merge_splits(("train", "validation", "test"))


@pytest.mark.parametrize("seed", range(20))
def test_what_belongs_together_is_in_one_fold(seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Chains of patients who share some pictures, and pictures without a patient.
    patients = [f"p{number}" if number < 40 else "" for number in rng.integers(0, 50, 120)]
    equal = [f"image {number}" for number in rng.integers(0, 400, 120)]
    equal[:6] = ["a", "a", "b", "b", "c", "c"]
    patients[:6] = ["x", "y", "y", "z", "z", ""]
    train: tuple[Split, ...] = ("train",)
    test: tuple[Split, ...] = ("test",)
    splits = train * 100 + test * 20
    table = table_of(patients, splits)
    folds = draw_folds(table, equal, CLASSES, 3, seed)
    assert len(set(folds[:6].tolist())) == 1
    for keys in (patients, equal):
        for key in set(keys[:100]) - {""}:
            assert len({folds[row] for row in range(100) if keys[row] == key}) == 1, key
    assert folds[100:].tolist() == [0] * 20
    assert {(label, fold) for label, fold in zip(table.labels[:100].tolist(), folds[:100].tolist(), strict=True)} == {
        (label, fold) for label in (0, 1) for fold in (1, 2, 3)
    }


def test_folds_are_even_in_each_class_and_follow_the_seed() -> None:
    table, equal = table_of([""] * 200), [str(row) for row in range(200)]
    folds = draw_folds(table, equal, CLASSES, 5, 0)
    for label in (0, 1):
        assert np.bincount(folds[table.labels == label])[1:].tolist() == [20] * 5
    assert (folds == draw_folds(table, equal, CLASSES, 5, 0)).all()
    assert (folds != draw_folds(table, equal, CLASSES, 5, 1)).any()


def test_a_class_of_too_few_patients_is_named() -> None:
    table = table_of([f"p{row % 20}" if row % 2 else "p1" for row in range(40)])
    with pytest.raises(DataError, match=r"--folds: .* of class 'CE' for each of 3 folds, got them for 1. Use fewer"):
        draw_folds(table, [str(row) for row in range(40)], CLASSES, 3, 0)
