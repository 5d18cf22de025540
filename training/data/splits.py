"""Divide images into training, validation and test, by class, with each patient in one split."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from plurum.errors import DataError
from plurum.run import Split

__all__ = [
    "HELD_OUT",
    "SHARES",
    "check_patients",
    "check_splits",
    "draw_split",
    "present_splits",
    "set_aside",
    "split_from_word",
    "spread_evenly",
    "stratified_splits",
]

# Fractions of the images of each class.
SHARES: dict[Split, float] = {"train": 0.64, "validation": 0.16, "test": 0.2}
# What promises are made from; only data that chose nothing else can hold them.
HELD_OUT: tuple[Split, ...] = ("calibration", "certification")
_Part = TypeVar("_Part", bound=Hashable)
_WORDS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}


def stratified_splits(
    labels: npt.NDArray[np.int64],
    patients: Sequence[str],
    classes: Sequence[str],
    seed: int,
    shares: Mapping[Split, float] = SHARES,
) -> tuple[Split, ...]:
    """Return a split for each image, such that every split has every class, as close to `shares` as possible.

    All images of a patient get the same split, also if their classes differ. An image without a patient (an empty
    string) is a group of its own. Groups are shuffled, then placed from the largest to the smallest, each into the
    split that lacks most images.

    Args:
        labels: Indices into `classes`, `[images]`.
        patients: Patient of each image.
        classes: Class names, for messages.
        seed: Random seed of the shuffling.
        shares: Fraction of each class's images per split; the sum is 1.

    Raises:
        DataError: a class has too few images or patients to be in every split.
    """
    splits = spread_evenly(labels, patients, seed, shares)
    check_splits(labels, patients, splits, classes, shares)
    return splits


def spread_evenly(
    labels: npt.NDArray[np.int64], patients: Sequence[str], seed: int, shares: Mapping[_Part, float]
) -> tuple[_Part, ...]:
    """Return a part for each image by class and patient, as `stratified_splits` does, but without checks."""
    groups: dict[str | int, list[int]] = defaultdict(list)
    for row, patient in enumerate(patients):
        groups[patient or row].append(row)
    # A patient with several classes counts as the class of most of the images.
    strata: dict[int, list[list[int]]] = defaultdict(list)
    for rows in groups.values():
        strata[Counter(labels[rows].tolist()).most_common(1)[0][0]].append(rows)
    parts: list[_Part] = [next(iter(shares))] * len(labels)
    rng = np.random.default_rng(seed)
    for _, stratum in sorted(strata.items()):
        order = rng.permutation(len(stratum))
        for rows, part in _place_groups(sorted((stratum[i] for i in order), key=len, reverse=True), shares):
            for row in rows:
                parts[row] = part
    return tuple(parts)


def draw_split(
    labels: npt.NDArray[np.int64],
    patients: Sequence[str],
    splits: Sequence[Split],
    classes: Sequence[str],
    seed: int,
    missing: Split = "validation",
) -> tuple[Split, ...]:
    """Return `splits` with a fifth of each class's training images moved to the missing split.

    Raises:
        DataError: a class has too few images or patients to be in every split.
    """
    # First, so that the message for a class without training images names the training split.
    check_splits(labels, patients, splits, classes, [split for split in SHARES if split != missing])
    result = list(splits)
    rows = np.flatnonzero(np.asarray(splits) == "train")
    shares: dict[Split, float] = {"train": 0.8, missing: 0.2}
    drawn = stratified_splits(labels[rows], [patients[row] for row in rows.tolist()], classes, seed, shares)
    for row, split in zip(rows.tolist(), drawn, strict=True):
        result[row] = split
    return tuple(result)


def set_aside(
    labels: npt.NDArray[np.int64],
    patients: Sequence[str],
    splits: Sequence[Split],
    classes: Sequence[str],
    seed: int,
    share: float,
) -> tuple[Split, ...]:
    """Return `splits` with a fraction of each class's training images moved to calibration and certification.

    Each of the two gets half of them; no patient is divided.

    Args:
        labels: Indices into `classes`, `[images]`.
        patients: Patient of each image.
        splits: Split of each image.
        classes: Class names, for messages.
        seed: Random seed of the drawing.
        share: Fraction to set aside, 0 to below 1.

    Raises:
        DataError: images are set aside already, or a class has too few images or patients.
    """
    if given := [split for split in HELD_OUT if split in splits]:
        raise DataError(
            f"--certification: expected data without the split {' and '.join(given)}, which they already set aside. "
            f"Leave the option out"
        )
    result = list(splits)
    rows = np.flatnonzero(np.asarray(splits) == "train")
    shares: dict[Split, float] = {"train": 1 - share, **dict.fromkeys(HELD_OUT, share / 2)}
    drawn = stratified_splits(labels[rows], [patients[row] for row in rows.tolist()], classes, seed, shares)
    for row, split in zip(rows.tolist(), drawn, strict=True):
        result[row] = split
    return tuple(result)


def present_splits(splits: Iterable[Split]) -> tuple[Split, ...]:
    """Return the splits of some data: training, validation and test, and those that are set aside."""
    found = set(splits)
    return (*SHARES, *(split for split in HELD_OUT if split in found))


def split_from_word(word: str) -> Split | None:
    """Return the split of a folder name or a cell, such as `val` or `Valid` for validation; None for other words."""
    return _WORDS.get(word.strip().lower())


def check_patients(patients: Sequence[str], splits: Sequence[Split]) -> None:
    """Check that no patient is in two splits.

    Raises:
        DataError: some patients are; the message names the first and counts the others.
    """
    where: dict[str, dict[Split, None]] = defaultdict(dict)
    for patient, split in zip(patients, splits, strict=True):
        if patient:
            where[patient][split] = None
    divided = {patient: list(found) for patient, found in where.items() if len(found) > 1}
    if divided:
        first, found = next(iter(divided.items()))
        more = f", and {_count_text(len(divided) - 1, 'patient')} more" if len(divided) > 1 else ""
        raise DataError(
            f"patient {first!r} is in {' and '.join(found)}{more}, which would inflate every score. Give all images "
            f"of a patient the same split"
        )


def check_splits(
    labels: npt.NDArray[np.int64],
    patients: Sequence[str],
    splits: Sequence[Split],
    classes: Sequence[str],
    required: Iterable[Split] = tuple(SHARES),
) -> None:
    """Check that every class is in every required split.

    Raises:
        DataError: a class is not; the message names it with its number of images.
    """
    where, required = np.asarray(splits), tuple(required)
    for index, name in enumerate(classes):
        rows = np.flatnonzero(labels == index)
        missing = [split for split in required if not (where[rows] == split).any()]
        if missing:
            known = {patients[row] for row in rows.tolist()} - {""}
            of = f" of {_count_text(len(known), 'patient')}" if known else ""
            raise DataError(
                f"class {name!r} has {_count_text(len(rows), 'image')}{of}, and none for {' and '.join(missing)}; "
                f"expected at least {len(required)} {'patients' if known else 'images'}, one for "
                f"each of {', '.join(required)}"
            )


def _place_groups(groups: list[list[int]], shares: Mapping[_Part, float]) -> list[tuple[list[int], _Part]]:
    """Return the part of each group of one class; with at least as many groups as parts, no part stays empty."""
    total = sum(map(len, groups))
    missing = {part: share * total for part, share in shares.items()}
    empty = list(shares)
    placed: list[tuple[list[int], _Part]] = []
    for left, rows in zip(range(len(groups), 0, -1), groups, strict=True):
        part = max(empty if left <= len(empty) else shares, key=missing.__getitem__)
        missing[part] -= len(rows)
        if part in empty:
            empty.remove(part)
        placed.append((rows, part))
    return placed


def _count_text(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number:,} {noun}s"
