"""Sets, operating point and review at a site: what its images can't show stays."""

from __future__ import annotations

import numpy as np
import pytest

from plurum.spec import Conformal, OperatingPoint, Review
from plurum.training.calibration.correction import Correction
from plurum.training.calibration.site_rule import SiteRule, decide_probabilities, fit_site_rule
from plurum.training.fitting.points import LabelledScores
from plurum.training.statistics.calibration import conformal_quantiles

CLASSES = ("CE", "LAA")
SAME = Correction(1.0, (0.0, 0.0))
SETS = Conformal(alpha=0.1, quantiles=(0.41, 0.42))
SENSITIVITY = OperatingPoint(
    criterion="sensitivity", value=0.9, confidence=0.95, positive="CE", threshold=0.3, review_interval=(0.2, 0.6)
)


def site(ce: int, laa: int, seed: int = 0, images: int = 1) -> LabelledScores:
    """Draw probabilities of CE for patients of both classes, each with so many images."""
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], [ce * images, laa * images])
    positive = 1 / (1 + np.exp(-rng.normal(np.where(labels == 0, 2.0, -2.0), 1.5)))
    groups = np.repeat(np.arange(ce + laa), images)
    return LabelledScores(np.stack([positive, 1 - positive], axis=1), labels, groups, CLASSES)


def test_sets_of_a_class_with_few_patients_stay() -> None:
    scores = site(25, 19)
    found = fit_site_rule(SiteRule(SETS, Review(risk=0.01), None), scores, SAME)
    expected = conformal_quantiles(scores.probabilities, scores.labels, scores.groups, 0.1)
    assert found.conformal is not None
    assert found.conformal.quantiles[0] == pytest.approx(expected[0], abs=1e-4)
    assert found.conformal.quantiles[1] == 0.42
    assert "prediction sets: no promise for class LAA: 19 of 20 patients; the old sets stay" in found.lines
    assert fit_site_rule(SiteRule(None, Review(), None), scores, SAME).conformal is None


def test_patients_are_counted_not_images() -> None:
    found = fit_site_rule(SiteRule(SETS, Review(risk=0.01), None), site(25, 19, images=4), SAME)
    assert found.conformal is not None
    assert found.conformal.quantiles[1] == 0.42


def test_a_point_that_the_images_can_not_show_keeps_its_decisions() -> None:
    scores, correction = site(15, 15), Correction(0.7, (0.5, -0.5))
    found = fit_site_rule(SiteRule(SETS, Review(risk=0.1), SENSITIVITY), scores, correction)
    assert found.point is not None
    assert found.point.threshold != SENSITIVITY.threshold
    old = np.array([[one, 1 - one] for one in np.linspace(0.01, 0.99, 99)])
    before = decide_probabilities(old, SiteRule(None, Review(), SENSITIVITY), CLASSES).label
    after = decide_probabilities(correction.apply(old), SiteRule(None, Review(), found.point), CLASSES).label
    # The image at the threshold itself may go either way.
    assert (before != after).sum() <= 1
    assert any("can't show sensitivity 0.9 at 95% confidence; the old decisions stay" in line for line in found.lines)


def test_a_point_that_the_images_show_is_fitted() -> None:
    scores = site(100, 60)
    found = fit_site_rule(SiteRule(SETS, Review(risk=0.1), SENSITIVITY), scores, SAME)
    assert found.point is not None
    assert found.point.threshold != SENSITIVITY.threshold
    decided = scores.probabilities[:, 0] >= (found.point.threshold or 0)
    assert decided[scores.labels == 0].mean() > 0.9


def test_a_point_by_cost_stays() -> None:
    point = OperatingPoint(
        criterion="costs", costs=((0, 9), (1, 0)), review_cost=0.5, positive="CE", threshold=0.1, review_interval=None
    )
    assert fit_site_rule(SiteRule(SETS, Review(), point), site(15, 15), SAME).point == point


@pytest.mark.parametrize("point", [None, SENSITIVITY])
def test_few_images_send_no_fewer_predictions_to_review(point: OperatingPoint | None) -> None:
    old = SiteRule(None, Review(threshold=0.9, risk=0.05), point)
    for seed in range(10):
        scores = site(15, 15, seed)
        found = fit_site_rule(old, scores, SAME)
        before, after = (decide_probabilities(scores.probabilities, one, CLASSES).review for one in (old, found))
        assert (after >= before).all()
        assert any("limits may only become stricter" in line for line in found.lines)


def test_many_images_without_errors_send_fewer_predictions_to_review() -> None:
    labels = np.repeat([0, 1], 400)
    positive = np.where(labels == 0, 0.85, 0.15) + np.random.default_rng(0).uniform(-0.05, 0.05, 800)
    scores = LabelledScores(np.stack([positive, 1 - positive], axis=1), labels, np.arange(800), CLASSES)
    found = fit_site_rule(SiteRule(None, Review(threshold=0.9, risk=0.01), None), scores, SAME)
    assert found.review.threshold == 0
