"""Stacking: a multinomial logistic regression on the members' probabilities, with scikit-learn.

Legend: members are probabilities `[images, members, classes]`, float64; labels and groups are `[images]`, int64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from plurum.errors import DataError, needs_extra
from plurum.predictions.arrays import Floats, Ints
from plurum.training.statistics.folds import FOLDS
from plurum.voting import stacked_vote, stacking_features

__all__ = ["StackingFold", "StackingRegression", "cross_fit", "fit_stack", "predict_out_of_fold"]


@dataclass(frozen=True)
class StackingRegression:
    """Fitted regression of a stacked vote.

    Attributes:
        coefficients: Coefficients of log-probabilities, `[classes, members * classes]`, the first member's first.
        intercepts: Intercepts, `[classes]`.
    """

    coefficients: Floats
    intercepts: Floats


@dataclass(frozen=True)
class StackingFold:
    """Regression fitted without some of the images.

    Attributes:
        rows: Indices of the images left out.
        stack: Regression fitted to all other images.
    """

    rows: Ints
    stack: StackingRegression


def fit_stack(members: Floats, labels: Ints, l2: float) -> StackingRegression:
    """Return the regression with the lowest NLL plus `l2 / 2` times the sum of its squared coefficients.

    Args:
        members: Probabilities of the members, converted by `plurum.voting.stacking_features`.
        labels: True classes; every class occurs.
        l2: Strength of the penalty, > 0; its effect decreases with the number of images.
    """
    with needs_extra("training"):
        from sklearn.linear_model import LogisticRegression
    model = LogisticRegression(C=1 / l2, max_iter=10_000).fit(stacking_features(members), labels)
    if members.shape[2] > 2:
        return StackingRegression(model.coef_, model.intercept_)
    # For two classes scikit-learn fits the log-odds of the second; split them evenly between both classes.
    sides = np.array([[-0.5], [0.5]])
    return StackingRegression(sides * model.coef_, sides[:, 0] * model.intercept_)


def cross_fit(
    members: Floats, labels: Ints, groups: Ints, classes: Sequence[str], *, l2: float, seed: int
) -> tuple[StackingFold, ...]:
    """Return cross-fitted regressions; each image is in the `rows` of one fold, whose regression was fitted without it.

    No patient is on both sides. There are `FOLDS` folds, or as many as the rarest class has patients.

    Raises:
        DataError: a class has too few patients (or images, if no patient is known) for two folds.
    """
    with needs_extra("training"):
        from sklearn.model_selection import StratifiedGroupKFold
    patients = [len(np.unique(groups[labels == index])) for index in range(len(classes))]
    folds = min(FOLDS, *patients)
    parts: list[tuple[Ints, Ints]] = []
    if folds > 1:
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        parts = list(splitter.split(members[:, 0], labels, groups))
    # With patients of several classes, a fold can lack a class.
    if not parts or any(len(np.unique(labels[rows])) < len(classes) for rows, _ in parts):
        rarest = int(np.argmin(patients))
        raise DataError(
            f"--mode: stack needs validation images of at least 2 patients in each class, got {patients[rarest]} in "
            f"class {classes[rarest]!r}. Fit a soft vote, or add labelled images"
        )
    return tuple(StackingFold(left_out, fit_stack(members[rows], labels[rows], l2)) for rows, left_out in parts)


def predict_out_of_fold(members: Floats, folds: Sequence[StackingFold]) -> Floats:
    """Return each image's probabilities, `[images, classes]`, by the regression that was fitted without it."""
    predictions = np.empty((len(members), members.shape[2]))
    for fold in folds:
        predictions[fold.rows] = stacked_vote(members[fold.rows], fold.stack.coefficients, fold.stack.intercepts)
    return predictions
