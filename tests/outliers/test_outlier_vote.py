from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from plurum.spec import OutlierRule
from plurum.voting import OutlierTest, VotingRule, decide
from plurum.voting.outliers import outlier_test_from_ensemble
from tests.outliers.samples import outliers

REFERENCE = (-1.0, 0.0, 0.0, 2.0)
TEST = OutlierTest(0.3, (True,), (1.0,), REFERENCE, None, 4)


def scored(test: OutlierTest, *scores: float) -> list[float]:
    return [float(one) for one in test.test(np.array(scores)[:, None])[0]]


def test_a_p_value_counts_the_reference_scores_that_are_as_high() -> None:
    assert scored(TEST, -5, -1, -0.5, 0, 1, 2, 3) == [1, 1, 0.8, 0.8, 0.4, 0.4, 0.2]


def test_only_p_values_below_alpha_are_outliers() -> None:
    for alpha, expected in ((0.41, [False, True, True]), (0.4, [False, False, True]), (0.2, [False, False, False])):
        test = replace(TEST, alpha=alpha)
        assert test.test(np.array([[0.0], [1.0], [3.0]]))[1].tolist() == expected


def test_a_patient_counts_once_however_many_images_it_has() -> None:
    test = OutlierTest(0.3, (True,), (1.0,), REFERENCE, (0.5, 1.0, 0.5, 1.0), 3)
    assert scored(test, -5, 0, 1, 3) == [1, 0.875, 0.5, 0.25]
    thirds = OutlierTest(0.5, (True,), (1.0,), (0.0,) * 3 + (1.0,) * 3, (1 / 3,) * 6, 2)
    p_values, is_outlier = thirds.test(np.array([[0.5], [2.0]]))
    np.testing.assert_allclose(p_values, [2 / 3, 1 / 3])
    assert is_outlier.tolist() == [False, True]


def test_p_values_of_new_patients_are_uniform() -> None:
    """Of new patients like the reference, at most a fraction alpha is below alpha, also with several images each."""
    rng, alarms, alpha = np.random.default_rng(0), [], 0.1
    for _ in range(300):
        images = rng.integers(1, 6, 40)
        means = np.repeat(rng.normal(size=40), images)
        scores = means + rng.normal(size=len(means))
        order = np.argsort(scores)
        test = OutlierTest(
            alpha, (True,), (1.0,), tuple(scores[order]), tuple(np.repeat(1 / images, images)[order]), 40
        )
        fresh = rng.normal(size=100) + rng.normal(size=100)
        alarms.append(test.test(fresh[:, None])[1].mean())
    # ⌈0.1 · 41⌉ − 1 of 41 ranks, within the noise of 300 draws.
    assert 0.07 < np.mean(alarms) < alpha


def test_members_without_a_detector_are_left_out() -> None:
    test = OutlierTest(0.3, (True, False, True), (0.75, 0.0, 0.25), REFERENCE, None, 4)
    assert test.score([[1.0, np.nan, -1.0]]).tolist() == [0.5]


def test_nan_is_an_outlier_without_a_p_value() -> None:
    p_values, is_outlier = TEST.test(np.array([[np.nan], [0.0]]))
    assert np.isnan(p_values).tolist() == [True, False]
    assert is_outlier.tolist() == [True, False]


RULE = VotingRule((1.0,), quantiles=(0.7, 0.7), review_threshold=0.6, outliers=TEST)
MEMBERS = np.array([[[0.9, 0.1]], [[0.65, 0.35]], [[0.55, 0.45]], [[0.9, 0.1]]])


def test_a_verdict_tells_why_it_needs_review() -> None:
    verdict = decide(MEMBERS, RULE, [[0.0], [0.0], [3.0], [3.0]])
    assert verdict.review_reason.tolist() == [0, 2, 7, 4]
    assert verdict.review.tolist() == [False, True, True, True]
    assert verdict.outlier.tolist() == [0.8, 0.8, 0.2, 0.2]


def test_without_a_test_or_novelty_nothing_is_an_outlier() -> None:
    for verdict in (decide(MEMBERS, RULE), decide(MEMBERS, replace(RULE, outliers=None), [[3.0]] * 4)):
        assert verdict.outlier.tolist() == [1, 1, 1, 1]
        assert verdict.review_reason.tolist() == [0, 2, 3, 0]


def test_a_failed_member_needs_review_for_its_confidence() -> None:
    verdict = decide(np.array([[[np.nan, np.nan]]]), VotingRule((1.0,), mode="hard"))
    assert verdict.review_reason.tolist() == [1]


@pytest.mark.parametrize("counts", [None, [0.5, 1.0, 0.5, 1.0]])
def test_the_test_is_what_the_metadata_states(counts: list[float] | None) -> None:
    rule = OutlierRule.model_validate(outliers(counts=counts, patients=4 if counts is None else 3))
    test = outlier_test_from_ensemble({"outliers": rule.model_dump()})
    assert test is not None
    assert (test.alpha, test.detecting, test.weights, test.patients) == (0.3, (False, True), (0.0, 1.0), rule.patients)
    assert (test.reference, test.counts) == (rule.reference, rule.counts)
    assert outlier_test_from_ensemble({}) is None
