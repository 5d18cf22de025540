"""Splits: every class in every split, no patient in two."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plurum.errors import DataError
from plurum.run import Split
from plurum.training.data.splits import (
    SHARES,
    check_patients,
    check_splits,
    draw_split,
    present_splits,
    set_aside,
    stratified_splits,
)

CLASSES = ("CE", "LAA")


def test_shares_are_kept_within_each_class() -> None:
    labels = np.repeat([0, 1], [1000, 50])
    splits = np.array(stratified_splits(labels, [""] * 1050, CLASSES, seed=0))
    for index, size in ((0, 1000), (1, 50)):
        for split, share in SHARES.items():
            assert abs((splits[labels == index] == split).sum() - share * size) < 1, (index, split)


def test_the_seed_decides_and_the_same_seed_decides_the_same() -> None:
    labels = np.repeat([0, 1], 40)
    one, again, other = (stratified_splits(labels, [""] * 80, CLASSES, seed) for seed in (0, 0, 1))
    assert one == again
    assert one != other


@given(
    patients=st.lists(st.tuples(st.integers(1, 30), st.integers(0, 1)), min_size=6, max_size=40).filter(
        lambda drawn: min(sum(label == index for _, label in drawn) for index in (0, 1)) >= 3
    ),
    seed=st.integers(0, 1000),
)
def test_no_patient_is_divided_and_no_split_is_without_a_class(patients: list[tuple[int, int]], seed: int) -> None:
    labels = np.array([label for count, label in patients for _ in range(count)])
    names = [f"patient {number}" for number, (count, _) in enumerate(patients) for _ in range(count)]
    splits = stratified_splits(labels, names, CLASSES, seed)
    seen = defaultdict(set)
    for name, split in zip(names, splits, strict=True):
        seen[name].add(split)
    assert all(len(where) == 1 for where in seen.values())
    assert {(label, split) for label, split in zip(labels, splits, strict=True)} == {
        (label, split) for label in (0, 1) for split in SHARES
    }


def test_shares_are_of_images_however_many_a_patient_has() -> None:
    sizes = np.random.default_rng(0).integers(1, 30, 60)
    names = [f"patient {number}" for number, size in enumerate(sizes) for _ in range(size)]
    labels = np.repeat(np.arange(60) % 2, sizes)
    splits = np.array(stratified_splits(labels, names, CLASSES, seed=0))
    for index in (0, 1):
        for split, share in SHARES.items():
            assert (splits[labels == index] == split).mean() == pytest.approx(share, abs=0.03)


def test_a_patient_with_two_classes_is_in_one_split() -> None:
    labels = np.array([0, 1] * 10)
    names = [f"patient {row // 2}" for row in range(20)]
    splits = stratified_splits(labels, names, CLASSES, seed=3)
    assert all(splits[row] == splits[row + 1] for row in range(0, 20, 2))


@pytest.mark.parametrize("count", [1, 2])
def test_a_class_with_too_few_images_is_named_with_its_count(count: int) -> None:
    labels = np.repeat([0, 1], [10, count])
    with pytest.raises(DataError, match=rf"class 'LAA' has {count} images?, and none for .*at least 3 images"):
        stratified_splits(labels, [""] * len(labels), CLASSES, seed=0)


def test_many_images_of_two_patients_are_too_few() -> None:
    labels = np.repeat([0, 1], [10, 100])
    names = [""] * 10 + ["a"] * 50 + ["b"] * 50
    with pytest.raises(DataError, match=r"class 'LAA' has 100 images of 2 patients.*at least 3 patients"):
        stratified_splits(labels, names, CLASSES, seed=0)


def test_given_splits_are_checked_the_same() -> None:
    with pytest.raises(DataError, match=r"class 'LAA' has 3 images, and none for test;"):
        check_splits(
            np.array([0, 0, 0, 1, 1, 1]),
            [""] * 6,
            ["train", "validation", "test", "train", "validation", "train"],
            CLASSES,
        )


def test_validation_is_a_fifth_of_train_and_test_stays() -> None:
    labels = np.tile(np.repeat([0, 1], [400, 50]), 2)
    given: list[Split] = ["train" if row < 450 else "test" for row in range(900)]
    splits = np.array(draw_split(labels, [""] * 900, given, CLASSES, seed=0))
    assert (splits[450:] == "test").all()
    assert [(splits[:400] == "validation").sum(), (splits[400:450] == "validation").sum()] == [80, 10]
    assert draw_split(labels, [""] * 900, given, CLASSES, seed=1) != tuple(splits)


def test_validation_never_divides_a_patient() -> None:
    labels = np.repeat([0, 1, 0, 1], 30)
    names = [f"patient {row // 3}" for row in range(120)]
    given: list[Split] = ["train" if row < 60 else "test" for row in range(120)]
    check_patients(names, draw_split(labels, names, given, CLASSES, seed=0))


def test_two_training_patients_of_a_class_are_enough_and_one_is_not() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1])
    given: list[Split] = ["train", "train", "test"] * 2
    assert sorted(draw_split(labels, ["a", "b", "c", "d", "e", "f"], given, CLASSES, seed=0)) == [
        *["test"] * 2,
        *["train"] * 2,
        *["validation"] * 2,
    ]
    with pytest.raises(
        DataError, match=r"2 images of 1 patient, and none for .*at least 2 patients, .* train, validation"
    ):
        draw_split(labels, ["a", "a", "c", "d", "e", "f"], given, CLASSES, seed=0)


def test_patients_in_two_splits_are_named_and_counted() -> None:
    check_patients(["", "", "a", "a"], ["train", "test", "test", "test"])
    with pytest.raises(DataError, match=r"patient 'a' is in test and validation, and 1 patient more, .*same split"):
        check_patients(["a", "b", "a", "b"], ["test", "train", "validation", "test"])


def test_a_class_with_only_test_images_is_named_with_their_number() -> None:
    given: list[Split] = ["train", "train", "test", "test", "test"]
    with pytest.raises(DataError, match=r"class 'LAA' has 2 images, and none for train; .* each of train, test"):
        draw_split(np.array([0, 0, 0, 1, 1]), [""] * 5, given, CLASSES, seed=0)


def test_patients_are_set_aside_whole_and_in_halves() -> None:
    labels = np.repeat([0, 1], 200)
    patients = [f"p{index // 4}" for index in range(400)]
    drawn = stratified_splits(labels, patients, CLASSES, 0)
    splits = set_aside(labels, patients, drawn, CLASSES, 0, 0.5)
    check_patients(patients, splits)
    before, after = Counter(drawn), Counter(splits)
    assert after["validation"] == before["validation"]
    assert after["test"] == before["test"]
    assert after["calibration"] == pytest.approx(before["train"] / 4, abs=4)
    assert after["certification"] == pytest.approx(before["train"] / 4, abs=4)
    assert present_splits(splits) == ("train", "validation", "test", "calibration", "certification")
    assert present_splits(drawn) == ("train", "validation", "test")
    for label in (0, 1):
        assert {split for split, one in zip(splits, labels, strict=True) if one == label} == set(splits)
    with pytest.raises(DataError, match=r"--certification: expected data without the split calibration and certif"):
        set_aside(labels, patients, splits, CLASSES, 0, 0.5)
