"""Weights of a soft vote, against brute force and simulations."""

from __future__ import annotations

import numpy as np
import pytest

from plurum.predictions.arrays import Floats, Ints
from plurum.training.fitting.weights import fit_weights, greedy_weights, improvement_interval, soft_losses
from plurum.training.statistics.bootstrap import Bootstrap
from plurum.voting import temper
from tests.training.fitting.simulated_members import resembling, simulated


def served(members: Floats, labels: Ints, *weights: float) -> float:
    return float(soft_losses(members, labels, np.array(weights)).mean())


def test_weights_are_the_best_of_the_whole_simplex() -> None:
    members, labels = simulated(300, (0.5, 1.5, 2.0))
    weights = fit_weights(members, labels)
    assert weights.sum() == pytest.approx(1)
    steps = np.linspace(0, 1, 41)
    grid = [(a, b, 1 - a - b) for a in steps for b in steps if a + b <= 1]
    losses = [served(members, labels, *point) for point in grid]
    assert served(members, labels, *weights) <= min(losses) + 1e-6
    np.testing.assert_allclose(weights, grid[int(np.argmin(losses))], atol=0.026)


def test_weights_of_identical_members_stay_equal() -> None:
    members, labels = simulated(50, (1.0,))
    np.testing.assert_allclose(fit_weights(np.repeat(members, 4, axis=1), labels), 0.25)


def test_weights_stay_equal_where_equal_ones_are_never_wrong() -> None:
    sure = np.array([[0.99, 0.01], [0.01, 0.99]] * 20)
    # Unconfident, and wrong on three images by a small margin.
    other = temper(sure, 4.0)
    other[:3] = other[:3, ::-1]
    members = np.stack([sure, other], axis=1)
    np.testing.assert_array_equal(fit_weights(members, np.array([0, 1] * 20)), 0.5)
    assert fit_weights(members, np.array([0, 1] * 19 + [1, 1]))[0] > 0.6


def test_weights_leave_a_member_that_rules_the_truth_out() -> None:
    labels = np.array([0, 1, 0, 1])
    good = np.array([[0.9, 0.1], [0.2, 0.8]] * 2)
    weights = fit_weights(np.stack([good, good[:, ::-1].round()], axis=1), labels)
    np.testing.assert_allclose(weights, [1, 0], atol=1e-6)
    both_wrong = np.stack([good[:, ::-1].round()] * 2, axis=1)
    np.testing.assert_allclose(fit_weights(both_wrong, labels), [0.5, 0.5])


def test_only_a_real_difference_has_an_interval_above_zero() -> None:
    members, labels = simulated(400, (0.0, 3.0))
    groups = np.arange(400)
    low, high = improvement_interval(members, labels, fit_weights, Bootstrap(groups, 1000, 0))
    assert 0 < low < served(members, labels, 0.5, 0.5) - served(members, labels, 0, 1) < high


@pytest.mark.parametrize(("images", "members", "classes", "draws"), [(100, 3, 3, 40), (60, 6, 2, 40), (300, 10, 3, 25)])
def test_weights_of_members_alike_are_hardly_ever_worth_it(images: int, members: int, classes: int, draws: int) -> None:
    """With any number of members, equal weights are rejected nominally one time in forty."""
    taken = 0
    for seed in range(draws):
        alike, labels = resembling(images, (1.5,) * members, classes, seed)
        taken += improvement_interval(alike, labels, fit_weights, Bootstrap(np.arange(images), 200, 0))[0] > 0
    assert taken <= 2


def test_weights_notice_a_member_that_was_hardly_trained() -> None:
    for seed in range(15):
        members, labels = resembling(300, (0.3, 1.5, 1.5, 1.5), 3, seed)
        assert improvement_interval(members, labels, fit_weights, Bootstrap(np.arange(300), 200, 0))[0] > 0


def test_weights_are_scored_on_patients_they_were_not_fitted_to() -> None:
    members, labels = simulated(90, (0.5, 1.5))
    patients = np.arange(90) // 3
    seen: list[set[int]] = []

    def fit(predictions: Floats, _: Ints) -> Floats:
        rows = [int(np.flatnonzero((members == one).all(axis=(1, 2)))[0]) for one in predictions]
        seen.append(set(patients[rows].tolist()))
        return np.array([0.2, 0.8])

    improvement_interval(members, labels, fit, Bootstrap(patients, 100, 0))
    assert len(seen) == 5
    unseen = [set(range(30)) - part for part in seen]
    assert sorted(patient for part in unseen for patient in part) == list(range(30))
    assert all(len(part) == 6 for part in unseen)
    # With a single patient, no other patient can evaluate the weights.
    assert improvement_interval(members, labels, fit, Bootstrap(patients * 0, 100, 0)) == (0, 0)


def test_the_interval_draws_patients_not_images() -> None:
    members, labels = simulated(20, (0.5, 1.5))

    def interval(copies: int, groups: Ints) -> tuple[float, float]:
        many = np.repeat(members, copies, axis=0), np.repeat(labels, copies)
        return improvement_interval(*many, lambda *_: np.array([0.2, 0.8]), Bootstrap(groups, 500, 0))

    by_patient = interval(30, np.repeat(np.arange(20), 30))
    np.testing.assert_allclose(by_patient, interval(1, np.arange(20)), atol=2e-3)
    by_image = interval(30, np.arange(600))
    assert by_patient[1] - by_patient[0] > 3 * (by_image[1] - by_image[0])


def test_a_surer_member_is_not_a_better_one() -> None:
    """A more confident copy of a member has a lower NLL, but gets no higher weight."""
    members, labels = simulated(300, (3.0,))
    both = np.concatenate([members, temper(members, 0.7)], axis=1)
    low, high = improvement_interval(both, labels, fit_weights, Bootstrap(np.arange(300), 500, 0))
    assert low < 0 < high or abs(high) < 1e-3


def test_a_greedy_selection_of_two_is_the_best_there_is() -> None:
    """No other counts of two members, up to the number of additions, have a lower NLL."""
    members, labels = simulated(300, (1.0, 1.6))
    weights = greedy_weights(members, labels)
    assert weights.sum() == pytest.approx(1)
    taken = next(total for total in range(1, 60) if np.allclose(weights * total, (weights * total).round()))
    options = [(count / total, 1 - count / total) for total in range(1, taken + 1) for count in range(total + 1)]
    assert served(members, labels, *weights) <= min(served(members, labels, *option) for option in options) + 1e-9


def test_a_greedy_selection_by_hand() -> None:
    """Against the algorithm of Caruana et al., step by step."""
    members, labels = simulated(120, (0.2, 1.0, 1.5, 1.4), seed=3)
    singles = [served(members, labels, *row) for row in np.eye(4)]
    order = sorted(range(4), key=singles.__getitem__)
    bags = [order[: size + 1] for size in range(4)]

    def loss(bag: list[int]) -> float:
        return served(members, labels, *(np.bincount(bag, minlength=4) / len(bag)))

    bag = min(bags, key=loss)
    while True:
        longer = min(([*bag, member] for member in range(4)), key=loss)
        if loss(longer) >= loss(bag) - 1e-9:
            break
        bag = longer
    np.testing.assert_allclose(greedy_weights(members, labels), np.bincount(bag, minlength=4) / len(bag))
    assert served(members, labels, *greedy_weights(members, labels)) < served(members, labels, *[0.25] * 4)


def test_a_greedy_selection_leaves_out_who_is_of_no_use() -> None:
    members, labels = simulated(300, (2.0, 0.0, 2.0))
    weights = greedy_weights(members, labels)
    assert weights[1] == 0
    assert (weights[[0, 2]] > 0.2).all()
