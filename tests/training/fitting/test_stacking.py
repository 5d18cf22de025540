"""Stacking, against scikit-learn and on noise."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from plurum.errors import DataError
from plurum.predictions.arrays import Floats, Ints
from plurum.predictions.scores import compute_losses
from plurum.training.fitting.stacking import cross_fit, fit_stack, predict_out_of_fold
from plurum.voting import softmax, stacked_vote, stacking_features


def simulated(images: int, members: int, classes: int, skill: float, seed: int = 0) -> tuple[Floats, Ints]:
    rng = np.random.default_rng(seed)
    labels = np.arange(images) % classes
    logits = rng.normal(size=(images, members, classes))
    logits[np.arange(images), :, labels] += skill
    return softmax(logits), labels


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("l2", [0.1, 10.0])
def test_stacking_equals_scikit_learns_regression(classes: int, l2: float) -> None:
    members, labels = simulated(200, 2, classes, 1.0)
    stack = fit_stack(members, labels, l2)
    assert stack.coefficients.shape == (classes, 2 * classes)
    assert stack.intercepts.shape == (classes,)
    model = LogisticRegression(C=1 / l2, max_iter=10_000).fit(stacking_features(members), labels)
    expected = model.predict_proba(stacking_features(members))
    np.testing.assert_allclose(stacked_vote(members, stack.coefficients, stack.intercepts), expected, atol=1e-9)


def test_each_image_is_predicted_once_by_a_fold_without_its_patient() -> None:
    members, labels = simulated(120, 2, 3, 1.0)
    groups = np.random.default_rng(1).integers(0, 40, 120)
    folds = cross_fit(members, labels, groups, "abc", l2=1.0, seed=0)
    assert sorted(np.concatenate([fold.rows for fold in folds]).tolist()) == list(range(120))
    predictions = predict_out_of_fold(members, folds)
    for fold in folds:
        others = np.setdiff1d(np.arange(120), fold.rows)
        assert not set(groups[fold.rows]) & set(groups[others])
        again = fit_stack(members[others], labels[others], 1.0)
        expected = stacked_vote(members[fold.rows], again.coefficients, again.intercepts)
        np.testing.assert_allclose(predictions[fold.rows], expected)


def test_out_of_fold_predictions_are_not_optimistic() -> None:
    """Random members: a regression that has seen the labels looks better than chance, an out-of-fold one does not."""
    members, labels = simulated(120, 4, 3, 0.0)
    stack = fit_stack(members, labels, 0.01)
    seen = compute_losses(stacked_vote(members, stack.coefficients, stack.intercepts), labels).mean()
    folds = cross_fit(members, labels, np.arange(120), "abc", l2=0.01, seed=0)
    unseen = compute_losses(predict_out_of_fold(members, folds), labels).mean()
    assert seen < np.log(3) < unseen


def test_stacking_corrects_errors_that_weights_can_not_correct() -> None:
    """Only a regression can use a member that always confuses a and b."""
    members, labels = simulated(300, 1, 3, 2.0)
    mixed_up = members[:, :, [1, 0, 2]]
    folds = cross_fit(mixed_up, labels, np.arange(300), "abc", l2=1.0, seed=0)
    assert (predict_out_of_fold(mixed_up, folds).argmax(axis=1) == labels).mean() > 0.8
    assert (mixed_up[:, 0].argmax(axis=1) == labels).mean() < 0.5


def test_too_few_patients_of_a_class_are_refused() -> None:
    members, _ = simulated(40, 2, 3, 1.0)
    labels = np.array([0, 1] * 19 + [2, 2])
    groups = np.append(np.arange(38), [38, 38])
    with pytest.raises(DataError, match=r"at least 2 patients in each class, got 1 in class .c.\. Fit a soft vote"):
        cross_fit(members, labels, groups, "abc", l2=1.0, seed=0)
    # Two patients suffice for two folds.
    assert len(cross_fit(members, labels, np.arange(40), "abc", l2=1.0, seed=0)) == 2
