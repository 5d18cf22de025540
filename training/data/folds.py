"""Divide training images into folds for cross-validation; equal images and those of a patient share one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from plurum.errors import DataError
from plurum.run import Split, Table
from plurum.training.data.splits import spread_evenly

__all__ = ["draw_folds", "merge_splits"]


def merge_splits(splits: Sequence[Split]) -> tuple[Split, ...]:
    """Return the splits of a training with folds: validation images are learnt, and calibration images validate.

    Raises:
        DataError: no image is set aside for calibration.
    """
    if "calibration" not in splits:
        raise DataError(
            "--folds: expected calibration images, which no member learns from, got none. Set some aside: "
            "--certification 0.2"
        )
    changed: dict[Split, Split] = {"validation": "train", "calibration": "validation"}
    return tuple(changed.get(split, split) for split in splits)


def draw_folds(
    table: Table, equal: Sequence[str], classes: Sequence[str], folds: int, seed: int
) -> npt.NDArray[np.int64]:
    """Return the fold of each training image, from 1, and 0 for other images, int64 `[images]`.

    Images of one patient get the same fold, and so do equal images, with all images of their patients. Each class is
    spread evenly over the folds, as `stratified_splits` does.

    Args:
        table: Labels, patients and splits.
        equal: Key of each image, such as a SHA-256; equal images have the same.
        classes: Class names, for messages.
        folds: Number of folds.
        seed: Random seed of the drawing.

    Raises:
        DataError: a class has fewer groups of images that belong together than there are folds.
    """
    rows = table.rows("train")
    groups = _join_groups([(table.patients[row], equal[row]) for row in rows])
    labels = table.labels[rows]
    shares = dict.fromkeys(range(1, folds + 1), 1 / folds)
    drawn = np.zeros(len(table.labels), dtype=np.int64)
    drawn[rows] = spread_evenly(labels, groups, seed, shares)
    for label, name in enumerate(classes):
        found = len(np.unique(drawn[rows[labels == label]]))
        if found < folds:
            raise DataError(
                f"--folds: expected patients or different images of class {name!r} for each of {folds} folds, got them "
                f"for {found}. Use fewer folds"
            )
    return drawn


def _join_groups(keys: Sequence[tuple[str, str]]) -> list[str]:
    """Return a group for each image, shared by images that are linked by a patient or by equal pixels."""
    parent: dict[tuple[str, str], tuple[str, str]] = {}

    def root(node: tuple[str, str]) -> tuple[str, str]:
        while (above := parent.setdefault(node, node)) != node:
            # Shorten the path, so that long chains stay cheap.
            parent[node] = parent[above]
            node = parent[node]
        return node

    for patient, pixels in keys:
        if patient:
            parent[root(("patient", patient))] = root(("pixels", pixels))
    return ["/".join(root(("pixels", pixels))) for _, pixels in keys]
