"""Calibration, against brute force, simulations and cases computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from plurum.predictions.arrays import Floats, Ints
from plurum.predictions.scores import compute_losses
from plurum.run import number_patients
from plurum.training.statistics.calibration import (
    conformal_quantiles,
    fit_cautious_temperature,
    fit_temperature,
    review_threshold,
    tempered_losses,
)
from plurum.training.statistics.scoring import compute_scores
from plurum.voting import prediction_sets, softmax, temper


def test_groups_are_patients_and_lone_images() -> None:
    assert number_patients(["a", "", "b", "a", ""]).tolist() == [0, 1, 2, 0, 3]
    assert number_patients([]).dtype == np.int64


@pytest.mark.parametrize("planted", [0.4, 1.0, 2.5])
def test_a_planted_temperature_is_found(planted: float) -> None:
    rng = np.random.default_rng(1)
    true = softmax(rng.normal(scale=1.5, size=(20_000, 3)))
    labels = (rng.random((20_000, 1)) > true.cumsum(axis=1)).sum(axis=1)
    # Calibrated only at the simulated temperature.
    assert fit_temperature(temper(true, 1 / planted), labels) == pytest.approx(planted, rel=0.05)


def test_without_errors_the_temperature_is_1() -> None:
    right = np.tile([[0.6, 0.4], [0.3, 0.7]], (50, 1))
    assert fit_temperature(right, np.tile([0, 1], 50)) == 1.0
    assert fit_temperature(right, np.append(np.tile([0, 1], 49), [1, 1])) < 1.0


def test_a_cautious_temperature_is_that_with_one_patient_more() -> None:
    """The additional patient has every prediction once per class, and the weight of any other patient."""
    right, labels = np.tile([[0.9, 0.1], [0.2, 0.8]], (10, 1)), np.tile([0, 1], 10)
    groups = np.arange(20) // 2
    more = np.repeat(right, 2, axis=0), np.tile([0, 1], 20)
    # Ten patients, so the additional images together weigh a tenth of the 400.
    expected = fit_temperature(
        np.concatenate([np.repeat(right, 20, axis=0), more[0]]), np.concatenate([np.repeat(labels, 20), more[1]])
    )
    assert 0.1 < expected < 1
    assert fit_cautious_temperature(right, labels, groups) == pytest.approx(expected, abs=1e-4)
    copies = fit_cautious_temperature(np.repeat(right, 5, axis=0), np.repeat(labels, 5), np.repeat(groups, 5))
    assert copies == pytest.approx(expected, abs=1e-4)


def test_quantiles_of_a_hand_computed_case() -> None:
    # Nine images of class 0 with scores 0.1 … 0.9; rank ceil(10 · 0.8) = 8. Two of class 1: too few for 0.2.
    probabilities = np.array([[1 - s / 10, s / 10] for s in range(1, 10)] + [[0.5, 0.5], [0.1, 0.9]])
    labels = np.array([0] * 9 + [1, 1])
    assert conformal_quantiles(probabilities, labels, np.arange(11), 0.2) == pytest.approx((0.8, 1.0))
    # ceil(3 · 0.6) = 2: the larger of two.
    assert conformal_quantiles(probabilities, labels, np.arange(11), 0.4)[1] == pytest.approx(0.5)


def test_a_class_without_images_is_in_every_set() -> None:
    assert conformal_quantiles(np.array([[0.9, 0.1]] * 20), np.zeros(20, np.int64), np.arange(20), 0.1)[1] == 1.0


def test_a_patient_counts_once_however_many_images_there_are() -> None:
    # Three patients: with alpha 0.25 the sum of shares must reach 0.75, which takes all of them.
    scores = np.array([0.1] * 50 + [0.2, 0.7])
    probabilities = np.stack([1 - scores, scores], axis=1)
    labels, groups = np.zeros(52, np.int64), np.array([0] * 50 + [1, 2])
    assert conformal_quantiles(probabilities, labels, groups, 0.25)[0] == pytest.approx(0.7)
    assert conformal_quantiles(probabilities, labels, groups, 0.5)[0] == pytest.approx(0.2)
    assert conformal_quantiles(probabilities, labels, np.arange(52), 0.25)[0] == pytest.approx(0.1)


@pytest.mark.parametrize("per_patient", [1, 5])
def test_sets_cover_new_images_of_each_class(per_patient: int) -> None:
    """Simulated over many draws, with similar images of a patient and different numbers of images."""
    rng = np.random.default_rng(0)

    def drawn(patients: int) -> tuple[Floats, Ints, Ints]:
        groups = np.repeat(np.arange(patients), rng.integers(1, per_patient + 1, patients))
        labels = rng.integers(0, 2, patients)[groups]
        evidence = (rng.normal(size=patients) * (per_patient > 1))[groups] + rng.normal(size=len(groups))
        first = 1 / (1 + np.exp(-(evidence + 1.0 - 2.0 * labels)))
        return np.stack([first, 1 - first], axis=1), labels, groups

    covered: list[list[float]] = [[], []]
    for _ in range(150):
        quantiles = conformal_quantiles(*drawn(40), alpha=0.2)
        probabilities, labels, groups = drawn(400)
        # The first image of each patient.
        _, first = np.unique(groups, return_index=True)
        inside = (1 - probabilities <= np.array(quantiles))[first, labels[first]]
        for index in (0, 1):
            covered[index].append(float(inside[labels[first] == index].mean()))
    for shares in covered:
        assert 0.79 < np.mean(shares) < 0.9
    # A served set may only add the predicted class.
    assert (prediction_sets(probabilities, quantiles).sum(axis=1) >= 1).all()


def test_coverage_is_in_its_binomial_band_over_200_draws() -> None:
    """39 images of a class and alpha 0.2: a new one is covered with a probability of ceil(40 · 0.8) / 40, exactly.

    How often, over 200 fits and a new image each, is then binomial; the coverage of one fit is Beta(32, 8).
    """
    rng = np.random.default_rng(0)
    labels, new = np.repeat([0, 1], 39), np.repeat([0, 1], 500)

    def drawn(truth: Ints) -> Floats:
        first = 1 / (1 + np.exp(-(rng.normal(size=len(truth)) + 1.0 - 2.0 * truth)))
        return np.stack([first, 1 - first], axis=1)

    inside = np.array(
        [
            (1 - drawn(new) <= np.array(conformal_quantiles(drawn(labels), labels, np.arange(78), 0.2)))[
                np.arange(1000), new
            ]
            for _ in range(200)
        ]
    )
    low, high = stats.binom.interval(0.999, 200, 0.8)
    for index in (0, 1):
        of_class = inside[:, new == index]
        assert low <= of_class[:, 0].sum() <= high
        assert of_class.mean() == pytest.approx(0.8, abs=3.3 * stats.beta.std(32, 8) / np.sqrt(200))


def test_weighed_answers_count_as_many_images() -> None:
    """An integer weight equals that many copies."""
    rng = np.random.default_rng(0)
    confidence, wrong, weights = rng.random(60), rng.random(60) < 0.2, rng.integers(1, 5, 60)
    for risk in (0.0, 0.1, 0.2):
        copies = review_threshold(np.repeat(confidence, weights), np.repeat(wrong, weights), risk)
        assert review_threshold(confidence, wrong, risk, weights.astype(np.float64)) == copies


def test_votes_are_compared_at_their_best_temperature_even_where_never_wrong() -> None:
    right = np.tile([[0.6, 0.4], [0.3, 0.7]], (50, 1))
    labels = np.tile([0, 1], 50)
    assert fit_temperature(right, labels) == 1.0
    np.testing.assert_allclose(tempered_losses(right, labels), compute_losses(temper(right, 0.1), labels), rtol=1e-3)


def test_review_threshold_of_a_hand_computed_case() -> None:
    confidence = np.array([0.5, 0.6, 0.7, 0.8, 0.9, 0.95])
    wrong = np.array([True, False, True, False, False, False])
    assert review_threshold(confidence, wrong, 0.0) == 0.8
    assert review_threshold(confidence, wrong, 0.2) == 0.6
    assert review_threshold(confidence, wrong, 0.34) == 0.0
    assert review_threshold(confidence, np.zeros(6, bool), 0.0) == 0.0
    assert review_threshold(confidence, np.arange(6) == 5, 0.1) == 1.0


def test_answers_of_one_confidence_stay_or_go_together() -> None:
    confidence = np.array([0.6, 0.8, 0.8, 0.8, 0.9, 0.9])
    wrong = np.array([True, True, False, False, False, False])
    assert review_threshold(confidence, wrong, 0.0) == 0.9
    assert review_threshold(confidence, wrong, 0.2) == 0.8


def test_scores_of_a_hand_computed_case() -> None:
    probabilities, labels = np.array([[0.5, 0.5], [0.25, 0.75], [1.0, 0.0]]), np.array([1, 1, 0])
    scores = compute_scores(probabilities, labels)
    assert scores.accuracy == pytest.approx(2 / 3)
    assert scores.nll == pytest.approx(-(np.log(0.5) + np.log(0.75)) / 3)
    assert compute_scores(probabilities, labels, np.array([1, 1, 0])).accuracy == 1.0
    assert 700 < compute_scores(np.array([[1.0, 0.0]]), np.array([1])).nll < 709
