"""Stacking: a multinomial logistic regression on what the members answer. scikit-learn.

Legend: members are probabilities `[images, members, classes]`, float64; labels and groups are `[images]`, int64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from plurum.errors import DataError, needs_extra
from plurum.training.statistics.folds import FOLDS
from plurum.voting import stacked_vote, stacking_features

__all__ = ["Fold", "Stack", "cross_fitted", "fitted_stack", "out_of_fold"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Stack:
    """A fitted regression.

    Attributes:
        coefficients: `[classes, members * classes]`, on log-probabilities, the first member's classes first.
        intercepts: `[classes]`.
    """

    coefficients: Floats
    intercepts: Floats


@dataclass(frozen=True)
class Fold:
    """A regression that has not seen some images.

    Attributes:
        rows: Indices of those.
        stack: Fitted to all others.
    """

    rows: Ints
    stack: Stack


def fitted_stack(members: Floats, labels: Ints, l2: float) -> Stack:
    """Return the regression with the lowest NLL plus `l2 / 2` times the sum of its squared coefficients.

    Args:
        members: What it sees, as `plurum.voting.stacking_features` shows it.
        labels: Every class among them.
        l2: > 0; one more image in the data makes it count for less.
    """
    with needs_extra("training"):
        from sklearn.linear_model import LogisticRegression
    model = LogisticRegression(C=1 / l2, max_iter=10_000).fit(stacking_features(members), labels)
    if members.shape[2] > 2:
        return Stack(model.coef_, model.intercept_)
    # For two classes scikit-learn has the log-odds of the second: half of them for it, half against the first.
    sides = np.array([[-0.5], [0.5]])
    return Stack(sides * model.coef_, sides[:, 0] * model.intercept_)


def cross_fitted(
    members: Floats, labels: Ints, groups: Ints, classes: Sequence[str], *, l2: float, seed: int
) -> tuple[Fold, ...]:
    """Return regressions by whose answers to their own `rows` the vote can be judged: all images, each once.

    No patient's images are on both sides. There are `FOLDS` folds, or as many as the rarest class has patients.

    Raises:
        DataError: a class has too few patients (or images, where none is known) to be in two folds.
    """
    with needs_extra("training"):
        from sklearn.model_selection import StratifiedGroupKFold
    patients = [len(np.unique(groups[labels == index])) for index in range(len(classes))]
    folds = min(FOLDS, *patients)
    parts: list[tuple[Ints, Ints]] = []
    if folds > 1:
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        parts = list(splitter.split(members[:, 0], labels, groups))
    # Patients with images of several classes can leave a fold without one of them.
    if not parts or any(len(np.unique(labels[rows])) < len(classes) for rows, _ in parts):
        rarest = int(np.argmin(patients))
        raise DataError(
            f"--mode stack needs validation images of every class from several patients, and class "
            f"{classes[rarest]!r} has {patients[rarest]}; fit a soft vote, or add labelled images"
        )
    return tuple(Fold(left_out, fitted_stack(members[rows], labels[rows], l2)) for rows, left_out in parts)


def out_of_fold(members: Floats, folds: Sequence[Fold]) -> Floats:
    """Return the answers `[images, classes]` of each image's own fold, to which it is new."""
    answers = np.empty((len(members), members.shape[2]))
    for fold in folds:
        answers[fold.rows] = stacked_vote(members[fold.rows], fold.stack.coefficients, fold.stack.intercepts)
    return answers
