"""The fitted numbers, against brute force, planted answers, hand-computed cases and simulation."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from plurum.training.calibration import (
    conformal_quantiles,
    fitted_temperature,
    fitted_weights,
    groups_of,
    improvement_interval,
    review_threshold,
)
from plurum.training.scoring import losses_of, scores_of
from plurum.voting import prediction_sets, soft_vote, softmax, temper

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def simulated(images: int, skills: tuple[float, ...], seed: int = 0, classes: int = 3) -> tuple[Floats, Ints]:
    """Members `[images, members, classes]` that see the truth through noise of their own, and the truth."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images)
    logits = rng.normal(size=(images, len(skills), classes))
    for member, skill in enumerate(skills):
        logits[np.arange(images), member, labels] += skill
    return softmax(logits), labels


def nll(members: Floats, labels: Ints, weights: npt.ArrayLike) -> float:
    return float(losses_of(soft_vote(members, weights), labels).mean())


def served(members: Floats, labels: Ints, weights: npt.ArrayLike) -> float:
    vote = soft_vote(members, weights)
    return float(losses_of(temper(vote, fitted_temperature(vote, labels)), labels).mean())


def test_weights_are_the_best_of_the_whole_simplex() -> None:
    members, labels = simulated(300, (0.5, 1.5, 2.0))
    weights = fitted_weights(members, labels)
    assert weights.sum() == pytest.approx(1)
    steps = np.linspace(0, 1, 101)
    grid = [(a, b, 1 - a - b) for a in steps for b in steps if a + b <= 1]
    losses = [nll(members, labels, point) for point in grid]
    assert nll(members, labels, weights) <= min(losses)
    np.testing.assert_allclose(weights, grid[int(np.argmin(losses))], atol=0.011)


def test_weights_of_identical_members_stay_equal() -> None:
    members, labels = simulated(50, (1.0,))
    np.testing.assert_allclose(fitted_weights(np.repeat(members, 4, axis=1), labels), 0.25)


def test_weights_stay_equal_where_equal_ones_are_never_wrong() -> None:
    sure = np.array([[0.99, 0.01], [0.01, 0.99]] * 20)
    members = np.stack([sure, temper(sure, 4.0)], axis=1)
    np.testing.assert_array_equal(fitted_weights(members, np.array([0, 1] * 20)), 0.5)
    assert fitted_weights(members, np.array([0, 1] * 19 + [1, 1]))[0] > 0.6


def test_weights_leave_a_member_that_rules_the_truth_out() -> None:
    labels = np.array([0, 1, 0, 1])
    good = np.array([[0.9, 0.1], [0.2, 0.8]] * 2)
    weights = fitted_weights(np.stack([good, good[:, ::-1].round()], axis=1), labels)
    np.testing.assert_allclose(weights, [1, 0], atol=1e-6)
    both_wrong = np.stack([good[:, ::-1].round()] * 2, axis=1)
    np.testing.assert_allclose(fitted_weights(both_wrong, labels), [0.5, 0.5])


def test_the_interval_is_above_zero_for_a_real_difference_alone() -> None:
    members, labels = simulated(400, (0.0, 3.0))
    groups = np.arange(400)
    low, high = improvement_interval(members, labels, groups, fitted_weights(members, labels), draws=1000, seed=0)
    assert 0 < low < served(members, labels, (0.5, 0.5)) - served(members, labels, (0, 1)) < high
    taken = 0
    for seed in range(40):
        alike, labels = simulated(100, (1.0, 1.0, 1.0), seed=seed)
        weights = fitted_weights(alike, labels)
        taken += improvement_interval(alike, labels, np.arange(100), weights, draws=200, seed=0)[0] > 0
    assert taken <= 2


def test_the_interval_draws_patients_not_images() -> None:
    members, labels = simulated(20, (0.5, 1.5))
    weights = np.array([0.2, 0.8])
    copies = (np.repeat(members, 30, axis=0), np.repeat(labels, 30))
    by_patient = improvement_interval(*copies, np.repeat(np.arange(20), 30), weights, draws=500, seed=0)
    by_image = improvement_interval(*copies, np.arange(600), weights, draws=500, seed=0)
    np.testing.assert_allclose(
        by_patient, improvement_interval(members, labels, np.arange(20), weights, draws=500, seed=0), atol=2e-3
    )
    assert by_patient[1] - by_patient[0] > 3 * (by_image[1] - by_image[0])


def test_groups_are_patients_and_lone_images() -> None:
    assert groups_of(["a", "", "b", "a", ""]).tolist() == [0, 1, 2, 0, 3]


@pytest.mark.parametrize("planted", [0.4, 1.0, 2.5])
def test_a_planted_temperature_is_found(planted: float) -> None:
    rng = np.random.default_rng(1)
    true = softmax(rng.normal(scale=1.5, size=(20_000, 3)))
    labels = (rng.random((20_000, 1)) > true.cumsum(axis=1)).sum(axis=1)
    # As sure as they should be only after tempering by the planted temperature.
    assert fitted_temperature(temper(true, 1 / planted), labels) == pytest.approx(planted, rel=0.05)


def test_without_a_wrong_answer_there_is_nothing_to_fit_it_to() -> None:
    right = np.tile([[0.6, 0.4], [0.3, 0.7]], (50, 1))
    assert fitted_temperature(right, np.tile([0, 1], 50)) == 1.0
    assert fitted_temperature(right, np.append(np.tile([0, 1], 49), [1, 1])) < 1.0


def test_a_surer_member_is_not_a_better_one() -> None:
    """A sharper copy of a member has a lower NLL, and deserves no more of a say."""
    members, labels = simulated(300, (3.0,))
    both = np.concatenate([members, temper(members, 0.7)], axis=1)
    weights = fitted_weights(both, labels)
    low, high = improvement_interval(both, labels, np.arange(300), weights, draws=500, seed=0)
    assert low < 0 < high or abs(high) < 1e-3


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
    """Over many draws; images of a patient are alike, and some patients have more of them."""
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
        # One image per patient: the first of each.
        _, first = np.unique(groups, return_index=True)
        inside = (1 - probabilities <= np.array(quantiles))[first, labels[first]]
        for index in (0, 1):
            covered[index].append(float(inside[labels[first] == index].mean()))
    for shares in covered:
        assert 0.79 < np.mean(shares) < 0.9
    # What is served may only add the winner.
    assert (prediction_sets(probabilities, quantiles).sum(axis=1) >= 1).all()


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
    scores = scores_of(probabilities, labels)
    assert scores.accuracy == pytest.approx(2 / 3)
    assert scores.nll == pytest.approx(-(np.log(0.5) + np.log(0.75)) / 3)
    assert scores_of(probabilities, labels, np.array([1, 1, 0])).accuracy == 1.0
    assert 700 < scores_of(np.array([[1.0, 0.0]]), np.array([1])).nll < 709
