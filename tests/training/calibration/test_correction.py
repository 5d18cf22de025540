"""Corrections of probabilities, against scikit-learn and the voting rule that applies them."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from plurum.predictions.arrays import Floats, Ints
from plurum.predictions.scores import compute_losses
from plurum.spec import Voting
from plurum.training.calibration.correction import Correction, fit_corrections
from plurum.training.calibration.site_rule import correct_voting
from plurum.voting import VotingRule, decide, softmax
from tests.training.calibration.drawn_answers import draw

WEAK = 1e-7


def fit_one(probabilities: Floats, labels: Ints, strength: float) -> Correction:
    return fit_corrections(probabilities, labels, np.ones((1, len(labels))), np.array([strength]))[0]


def test_two_classes_without_shrinkage_are_a_logistic_regression_on_log_odds() -> None:
    probabilities, labels = draw(400, 2)
    found = fit_one(probabilities, labels, WEAK)
    odds = np.log(probabilities[:, 1] / probabilities[:, 0])[:, None]
    expected = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(odds, labels)
    assert found.slope == pytest.approx(expected.coef_[0, 0], abs=1e-3)
    assert found.offsets[1] - found.offsets[0] == pytest.approx(expected.intercept_[0], abs=1e-3)
    np.testing.assert_allclose(found.apply(probabilities), expected.predict_proba(odds), atol=1e-3)


def test_a_correction_is_fitted_to_its_own_images_and_strength() -> None:
    probabilities, labels = draw(200, 3)
    masks = np.random.default_rng(1).uniform(size=(3, 200)) < 0.5
    strengths = np.array([0.5, 5.0, 50.0])
    together = fit_corrections(probabilities, labels, masks.astype(np.float64), strengths)
    for found, mask, strength in zip(together, masks, strengths, strict=True):
        alone = fit_one(probabilities[mask], labels[mask], float(strength))
        np.testing.assert_allclose([found.slope, *found.offsets], [alone.slope, *alone.offsets], atol=1e-3)
        losses = compute_losses(found.apply(probabilities[mask]), labels[mask])
        assert losses.mean() < compute_losses(probabilities[mask], labels[mask]).mean()


def test_the_stronger_the_shrinkage_the_smaller_the_change() -> None:
    probabilities, labels = draw(100, 3)
    changes = []
    for strength in (1.0, 10.0, 100.0, 1e7):
        found = fit_one(probabilities, labels, strength)
        changes.append(abs(found.slope - 1) + np.abs(found.offsets).sum())
    assert changes == sorted(changes, reverse=True)
    assert changes[-1] < 1e-4 < changes[0]


@pytest.mark.parametrize("ratio", [None, (1.3, 0.8, 0.9)])
def test_a_voting_rule_gives_the_corrected_probabilities(ratio: tuple[float, ...] | None) -> None:
    voting = Voting(weights=(0.3, 0.7), temperature=0.7, prior_ratio=ratio)
    correction = Correction(slope=0.6, offsets=(0.4, -0.1, -0.3))
    members = softmax(np.random.default_rng(0).normal(size=(50, 2, 3)))
    before = decide(members, VotingRule(voting.weights, temperature=0.7, prior_ratio=ratio)).probabilities
    new = correct_voting(voting, correction)
    assert new.weights == voting.weights
    after = decide(members, VotingRule(new.weights, temperature=new.temperature, prior_ratio=new.prior_ratio))
    np.testing.assert_allclose(after.probabilities, correction.apply(before), atol=1e-12)
    assert np.prod(new.prior_ratio or ()) == pytest.approx(1)


def test_certain_members_do_not_break_a_fit() -> None:
    probabilities = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.5, 0.5]])
    found = fit_one(probabilities, np.array([0, 1, 1, 0]), 8.0)
    assert np.isfinite([found.slope, *found.offsets]).all()
    assert np.isfinite(found.apply(probabilities)).all()
    assert found.slope < 1
