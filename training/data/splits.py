"""Dividing images into training, validation and test: by class, and never through a patient."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from plurum.errors import DataError
from plurum.run import Split

__all__ = ["SHARES", "check_patients", "check_splits", "draw_split", "split_from_word", "stratified_splits"]

# Of the images of each class.
SHARES: dict[Split, float] = {"train": 0.64, "validation": 0.16, "test": 0.2}
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
    """Return the split of each image, such that every class is in every split, in `shares` as nearly as possible.

    All images of a patient go the same way, whatever their classes; an image without a patient (an empty string)
    goes alone. Groups are shuffled, then placed from the largest to the smallest, each where most is missing.

    Args:
        labels: `[images]`, indices into `classes`.
        patients: One per image.
        classes: Their names, for messages.
        seed: What the shuffling draws from.
        shares: Of the images of each class, adding up to 1.

    Raises:
        DataError: a class has too few images or patients to be in every split.
    """
    groups: dict[str | int, list[int]] = defaultdict(list)
    for row, patient in enumerate(patients):
        groups[patient or row].append(row)
    # A patient with several classes counts for the one that most of the images show.
    strata: dict[int, list[list[int]]] = defaultdict(list)
    for rows in groups.values():
        strata[Counter(labels[rows].tolist()).most_common(1)[0][0]].append(rows)
    splits: list[Split] = ["train"] * len(labels)
    rng = np.random.default_rng(seed)
    for _, stratum in sorted(strata.items()):
        order = rng.permutation(len(stratum))
        for rows, split in _placed(sorted((stratum[i] for i in order), key=len, reverse=True), shares):
            for row in rows:
                splits[row] = split
    check_splits(labels, patients, splits, classes, shares)
    return tuple(splits)


def draw_split(
    labels: npt.NDArray[np.int64],
    patients: Sequence[str],
    splits: Sequence[Split],
    classes: Sequence[str],
    seed: int,
    missing: Split = "validation",
) -> tuple[Split, ...]:
    """Return `splits` with a fifth of each class's training images put into the split that is missing.

    Raises:
        DataError: a class has too few images or patients to be in every split.
    """
    # Else a class that has no training image would be said to have none for the missing split.
    check_splits(labels, patients, splits, classes, [split for split in SHARES if split != missing])
    result = list(splits)
    rows = np.flatnonzero(np.asarray(splits) == "train")
    shares: dict[Split, float] = {"train": 0.8, missing: 0.2}
    drawn = stratified_splits(labels[rows], [patients[row] for row in rows], classes, seed, shares)
    for row, split in zip(rows, drawn, strict=True):
        result[row] = split
    return tuple(result)


def split_from_word(word: str) -> Split | None:
    """Return the split that a folder or a cell means: `val`, `Valid` and `validation` are one; None for other words."""
    return _WORDS.get(word.strip().lower())


def check_patients(patients: Sequence[str], splits: Sequence[Split]) -> None:
    """Make sure that no patient is in two splits.

    Raises:
        DataError: some are; the first is named, the others counted.
    """
    where: dict[str, dict[Split, None]] = defaultdict(dict)
    for patient, split in zip(patients, splits, strict=True):
        if patient:
            where[patient][split] = None
    divided = {patient: list(found) for patient, found in where.items() if len(found) > 1}
    if divided:
        first, found = next(iter(divided.items()))
        more = f", and {_counted(len(divided) - 1, 'patient')} more" if len(divided) > 1 else ""
        raise DataError(
            f"patient {first!r} is in {' and '.join(found)}{more}: what a model learnt of a patient would be "
            f"counted as skill; give all images of a patient the same split"
        )


def check_splits(
    labels: npt.NDArray[np.int64],
    patients: Sequence[str],
    splits: Sequence[Split],
    classes: Sequence[str],
    wanted: Iterable[Split] = tuple(SHARES),
) -> None:
    """Make sure that every class is in every split that is `wanted`.

    Raises:
        DataError: one is not; it is named with its count.
    """
    where, wanted = np.asarray(splits), tuple(wanted)
    for index, name in enumerate(classes):
        rows = np.flatnonzero(labels == index)
        missing = [split for split in wanted if not (where[rows] == split).any()]
        if missing:
            known = {patients[row] for row in rows} - {""}
            of = f" of {_counted(len(known), 'patient')}" if known else ""
            raise DataError(
                f"class {name!r} has {_counted(len(rows), 'image')}{of}, and none for {' and '.join(missing)}: "
                f"at least {len(wanted)} {'patients' if known else 'images'} are needed, one for "
                f"each of {', '.join(wanted)}"
            )


def _placed(groups: list[list[int]], shares: Mapping[Split, float]) -> list[tuple[list[int], Split]]:
    """Return where each group of one class goes; no split stays empty where there are three groups."""
    total = sum(map(len, groups))
    missing = {split: share * total for split, share in shares.items()}
    empty = list(shares)
    placed: list[tuple[list[int], Split]] = []
    for left, rows in zip(range(len(groups), 0, -1), groups, strict=True):
        split = max(empty if left <= len(empty) else shares, key=missing.__getitem__)
        missing[split] -= len(rows)
        if split in empty:
            empty.remove(split)
        placed.append((rows, split))
    return placed


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number:,} {noun}s"
