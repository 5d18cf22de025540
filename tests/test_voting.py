"""Votes and uncertainty: properties for all inputs, and values computed by hand."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.linear_model import LogisticRegression

from plurum.predictions.arrays import Floats
from plurum.voting import (
    DecisionPoint,
    Verdict,
    VotingRule,
    decide,
    decide_at,
    decide_groups,
    entropy,
    hard_vote,
    mutual_information,
    prediction_sets,
    rule_from_ensemble,
    soft_vote,
    softmax,
    spread,
    stacked_vote,
    temper,
    with_prior,
)

LIMIT = float(np.finfo(np.float32).max)


@st.composite
def votes(draw: st.DrawFn) -> tuple[Floats, VotingRule]:
    """Draw member probabilities `[batch, members, classes]`, some of them extreme, and a rule for them."""
    shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(2, 5)))
    elements = st.floats(-30, 30) | st.floats(-LIMIT, LIMIT) | st.sampled_from([0.0, 1.0, math.inf, -math.inf])
    members = softmax(draw(arrays.arrays(np.float64, shape, elements=elements)))
    parts = np.array(draw(st.lists(st.integers(0, 9), min_size=shape[1], max_size=shape[1]).filter(any)))
    mode: Literal["soft", "hard", "stack"] = draw(st.sampled_from(["soft", "hard", "stack"]))
    drawn = np.random.default_rng(draw(st.integers(0, 9))).normal(size=(shape[2], shape[1] * shape[2] + 1))
    rule = VotingRule(
        weights=tuple((parts / parts.sum()).tolist()),
        mode=mode,
        coefficients=tuple(map(tuple, drawn[:, 1:].tolist())) if mode == "stack" else None,
        intercepts=tuple(drawn[:, 0].tolist()) if mode == "stack" else None,
        prior_ratio=draw(st.none() | st.tuples(*[st.floats(0.01, 100)] * shape[2])) if mode != "hard" else None,
        temperature=draw(st.floats(0.05, 20)),
        quantiles=draw(st.none() | st.tuples(*[st.floats(0, 1)] * shape[2])),
        review_threshold=draw(st.floats(0, 1)),
    )
    return members, rule


@given(votes())
def test_a_verdict_is_sound_whatever_the_members_say(drawn: tuple[Floats, VotingRule]) -> None:
    members, rule = drawn
    batch, count, classes = members.shape
    verdict = decide(members, rule)
    for name, shape in {
        "probabilities": (batch, classes),
        "label": (batch,),
        "entropy": (batch,),
        "disagreement": (batch,),
        "std": (batch, classes),
        "member_probabilities": (batch, count, classes),
        "prediction_set": (batch, classes),
        "review": (batch,),
    }.items():
        assert getattr(verdict, name).shape == shape
    assert all(np.isfinite(value).all() for value in dataclasses.astuple(verdict))
    np.testing.assert_allclose(verdict.probabilities.sum(axis=-1), 1)
    assert (verdict.probabilities >= 0).all()
    assert (verdict.entropy >= 0).all()
    assert (verdict.entropy <= math.log(classes) + 1e-9).all()
    assert (verdict.disagreement >= 0).all()
    assert (verdict.disagreement <= math.log(min(count, classes)) + 1e-9).all()
    assert (verdict.std >= 0).all()
    assert (verdict.std <= 0.5 + 1e-9).all()
    winner = verdict.probabilities[np.arange(batch), verdict.label]
    np.testing.assert_allclose(winner, verdict.probabilities.max(axis=-1))
    assert verdict.prediction_set[np.arange(batch), verdict.label].all()


@given(votes(), st.randoms(use_true_random=False))
def test_the_order_of_members_does_not_matter(drawn: tuple[Floats, VotingRule], random: object) -> None:
    members, rule = drawn
    order = list(range(members.shape[1]))
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = dataclasses.replace(rule, weights=tuple(rule.weights[i] for i in order))
    if rule.coefficients is not None:
        blocks = np.array(rule.coefficients).reshape(members.shape[2], *members.shape[1:])[:, order]
        of_shuffled = tuple(map(tuple, blocks.reshape(members.shape[2], -1).tolist()))
        shuffled = dataclasses.replace(shuffled, coefficients=of_shuffled)
    one, other = decide(members, rule), decide(members[:, order], shuffled)
    for name in ("probabilities", "entropy", "disagreement", "std"):
        # Differences of nearly equal squares and entropies keep half of the digits.
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-7)
    np.testing.assert_array_equal(one.member_probabilities[:, order], other.member_probabilities)
    clear = np.sort(one.probabilities, axis=-1)
    decided = clear[:, -1] - clear[:, -2] > 1e-6
    np.testing.assert_array_equal(one.label[decided], other.label[decided])


@given(votes())
def test_identical_members_do_not_disagree(drawn: tuple[Floats, VotingRule]) -> None:
    members, rule = drawn
    same = np.repeat(members[:, :1], members.shape[1], axis=1)
    verdict = decide(same, rule)
    np.testing.assert_allclose(verdict.disagreement, 0, atol=1e-12)
    np.testing.assert_allclose(verdict.std, 0, atol=1e-12)
    np.testing.assert_allclose(soft_vote(same, rule.weights), same[:, 0], atol=1e-12)


@given(
    arrays.arrays(
        np.float32, (2, 3, 4), elements=st.floats(width=32, allow_nan=False) | st.sampled_from([math.inf, -math.inf])
    )
)
def test_extreme_logits_give_probabilities(logits: npt.NDArray[np.float32]) -> None:
    probabilities = softmax(logits)
    assert np.isfinite(probabilities).all()
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1)


@given(votes())
def test_tempering_keeps_the_order_and_softens_above_one(drawn: tuple[Floats, VotingRule]) -> None:
    members, _ = drawn
    for temperature in (0.3, 3.0):
        tempered = temper(members, temperature)
        np.testing.assert_allclose(tempered.sum(axis=-1), 1)
        taken = np.take_along_axis(tempered, members.argmax(axis=-1)[..., None], axis=-1)[..., 0]
        np.testing.assert_allclose(taken, tempered.max(axis=-1))
        change = entropy(tempered) - entropy(members)
        assert (change * (1 if temperature > 1 else -1) >= -1e-9).all()


@given(votes(), st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_prediction_sets_are_never_empty_and_grow_with_their_quantiles(
    drawn: tuple[Floats, VotingRule], levels: tuple[float, float]
) -> None:
    probabilities = drawn[0][:, 0]
    low, high = (prediction_sets(probabilities, [level] * probabilities.shape[1]) for level in sorted(levels))
    assert low.any(axis=-1).all()
    assert (low <= high).all()
    assert prediction_sets(probabilities, [1.0] * probabilities.shape[1]).all()


THREE = np.array([[[0.8, 0.2], [0.6, 0.4], [0.1, 0.9]]])


def verdict_of(members: npt.ArrayLike, *weights: float, **changes: object) -> Verdict:
    return decide(np.asarray(members, dtype=np.float64), VotingRule(weights=weights, **changes))  # type: ignore[arg-type]


def test_a_soft_vote_by_hand() -> None:
    verdict = verdict_of(THREE, 0.5, 0.25, 0.25)
    np.testing.assert_allclose(verdict.probabilities, [[0.575, 0.425]])
    assert verdict.label.tolist() == [0]
    assert verdict.entropy[0] == pytest.approx(-0.575 * math.log(0.575) - 0.425 * math.log(0.425))
    variance = 0.5 * 0.225**2 + 0.25 * 0.025**2 + 0.25 * 0.475**2
    np.testing.assert_allclose(verdict.std, [[math.sqrt(variance)] * 2])
    expected = sum(
        weight * -(p * math.log(p) + (1 - p) * math.log(1 - p)) for weight, p in ((0.5, 0.8), (0.25, 0.6), (0.25, 0.1))
    )
    assert verdict.disagreement[0] == pytest.approx(verdict.entropy[0] - expected)
    np.testing.assert_array_equal(verdict.member_probabilities, THREE)


def test_two_certain_members_that_differ_disagree_by_log_two() -> None:
    members = np.array([[[1.0, 0.0], [0.0, 1.0]]])
    assert mutual_information(members, (0.5, 0.5))[0] == pytest.approx(math.log(2))
    np.testing.assert_allclose(spread(members, (0.5, 0.5)), 0.5)
    assert entropy(np.array([1.0, 0.0])) == 0
    assert entropy(np.full(4, 0.25)) == pytest.approx(math.log(4))


def test_a_member_with_weight_0_does_not_change_the_vote() -> None:
    alone, joined = verdict_of(THREE[:, :2], 0.5, 0.5), verdict_of(THREE, 0.5, 0.5, 0.0)
    for name in ("probabilities", "label", "entropy", "disagreement", "std"):
        np.testing.assert_allclose(getattr(alone, name), getattr(joined, name))


def test_the_soft_vote_is_tempered_after_averaging() -> None:
    verdict = verdict_of(THREE, 0.5, 0.25, 0.25, temperature=0.5)
    np.testing.assert_allclose(verdict.probabilities, [np.array([0.575**2, 0.425**2]) / (0.575**2 + 0.425**2)])
    np.testing.assert_allclose(temper(np.array([0.8, 0.2]), 0.5), [16 / 17, 1 / 17])
    np.testing.assert_allclose(temper(np.array([1.0, 0.0]), 3.0), [1, 0], atol=1e-12)
    # Disagreement does not depend on the temperature.
    assert verdict.disagreement == verdict_of(THREE, 0.5, 0.25, 0.25).disagreement


def test_a_hard_vote_counts_weighted_winners() -> None:
    np.testing.assert_allclose(hard_vote(THREE, (0.5, 0.2, 0.3)), [[0.7, 0.3]])
    verdict = verdict_of(THREE, 0.2, 0.2, 0.6, mode="hard")
    np.testing.assert_allclose(verdict.probabilities, [[0.4, 0.6]])
    assert verdict.label.tolist() == [1]
    # A member with two equal probabilities votes for the first.
    np.testing.assert_allclose(hard_vote(np.array([[[0.5, 0.5]]]), (1.0,)), [[1, 0]])


def test_a_hard_tie_goes_to_the_higher_soft_vote_then_to_the_lower_index() -> None:
    by_soft = np.array([[[0.6, 0.4, 0.0], [0.1, 0.9, 0.0]]])
    verdict = verdict_of(by_soft, 0.5, 0.5, mode="hard")
    np.testing.assert_allclose(verdict.probabilities, [[0.5, 0.5, 0]])
    assert verdict.label.tolist() == [1]
    by_index = np.array([[[0.1, 0.2, 0.7], [0.1, 0.7, 0.2]]])
    assert verdict_of(by_index, 0.5, 0.5, mode="hard").label.tolist() == [1]
    # The class with the highest soft vote can't win a tie that excludes it.
    outside = np.array([[[0.51, 0.0, 0.49], [0.0, 0.51, 0.49]]])
    assert verdict_of(outside, 0.5, 0.5, mode="hard").label.tolist() == [0]
    # In floating point 0.1 + 0.2 exceeds 0.3, but it counts as a tie.
    by_rounding = np.full((1, 5, 4), 0.1)
    for member, (winner, probability) in enumerate(((0, 0.3), (0, 0.3), (1, 0.9), (2, 0.3), (3, 0.3))):
        by_rounding[0, member, winner] = probability
    assert verdict_of(by_rounding, 0.1, 0.2, 0.3, 0.2, 0.2, mode="hard").label.tolist() == [1]


def test_soft_ties_go_to_the_lower_index() -> None:
    assert verdict_of([[[0.2, 0.4, 0.4]]], 1.0).label.tolist() == [1]


def test_a_stacked_vote_is_a_logistic_regression_on_log_probabilities() -> None:
    """Compare coefficients of a weighted geometric mean by hand, and any others with scikit-learn."""
    members = softmax(np.random.default_rng(0).normal(size=(60, 2, 3)))
    geometric = np.concatenate([0.75 * np.eye(3), 0.25 * np.eye(3)], axis=1)
    pooled = members[:, 0] ** 0.75 * members[:, 1] ** 0.25
    expected = pooled / pooled.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(stacked_vote(members, geometric, np.zeros(3)), expected)
    features, labels = np.log(members).reshape(60, 6), np.arange(60) % 3
    model = LogisticRegression(max_iter=1000).fit(features, labels)
    stacked = stacked_vote(members, model.coef_, model.intercept_)
    np.testing.assert_allclose(stacked, model.predict_proba(features))
    rule = VotingRule(
        weights=(0.5, 0.5),
        mode="stack",
        temperature=2.0,
        coefficients=tuple(map(tuple, model.coef_.tolist())),
        intercepts=tuple(model.intercept_.tolist()),
    )
    verdict = decide(members, rule)
    np.testing.assert_allclose(verdict.probabilities, temper(stacked, 2.0))
    np.testing.assert_array_equal(verdict.label, stacked.argmax(axis=1))
    # Disagreement and spread come from the members, not from stacking.
    np.testing.assert_allclose(verdict.std, spread(members, (0.5, 0.5)))
    np.testing.assert_allclose(verdict.disagreement, mutual_information(members, (0.5, 0.5)))


def test_a_stacked_vote_sees_no_less_than_a_millionth() -> None:
    members = np.array([[[1.0, 0.0]], [[1.0 - 1e-6, 1e-6]]])
    one, other = stacked_vote(members, [[0.1, 0.0], [0.0, 0.1]], (0.0, 0.0))
    assert one == pytest.approx(other)
    assert one[1] == pytest.approx(1 / (1 + 1e-6**-0.1))


def test_a_prior_is_corrected_by_bayes_rule_after_tempering() -> None:
    np.testing.assert_allclose(with_prior(np.array([[0.8, 0.2]]), (0.5, 2.0)), [[0.5, 0.5]])
    members = np.array([[[0.8, 0.2]], [[0.99, 0.01]]])
    verdict = verdict_of(members, 1.0, temperature=0.5, prior_ratio=(0.5, 20.0), quantiles=(0.6, 0.5))
    tempered = temper(members[:, 0], 0.5)
    expected = tempered * (0.5, 20.0) / (tempered @ (0.5, 20.0))[:, None]
    np.testing.assert_allclose(verdict.probabilities, expected)
    assert verdict.label.tolist() == [1, 0]
    np.testing.assert_array_equal(verdict.prediction_set, prediction_sets(expected, (0.6, 0.5)))
    assert verdict_of(members, 1.0, prior_ratio=(3.0, 3.0)).probabilities == pytest.approx(members[:, 0])


def test_sets_hold_the_classes_within_their_quantiles_and_the_winner() -> None:
    probabilities = np.array([[0.7, 0.2, 0.1], [0.4, 0.55, 0.05]])
    inside = prediction_sets(probabilities, (0.35, 0.7, 0.92))
    np.testing.assert_array_equal(inside, [[True, False, True], [False, True, False]])
    np.testing.assert_array_equal(verdict_of(probabilities[:, None], 1.0).prediction_set, np.eye(3, dtype=bool)[[0, 1]])
    with_quantiles = verdict_of(probabilities[:, None], 1.0, quantiles=(0.35, 0.7, 0.92))
    np.testing.assert_array_equal(with_quantiles.prediction_set, inside)


def test_review_asks_for_confidence_and_for_one_class() -> None:
    members = np.array([[[0.9, 0.1]], [[0.6, 0.4]], [[0.75, 0.25]]])
    assert verdict_of(members, 1.0).review.tolist() == [False, False, False]
    assert verdict_of(members, 1.0, review_threshold=0.75).review.tolist() == [False, True, False]
    assert verdict_of(members, 1.0, quantiles=(0.5, 0.7)).review.tolist() == [False, True, False]


@pytest.mark.parametrize("mode", ["soft", "hard", "stack"])
@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_a_member_that_answers_nan_sends_its_image_alone_to_review(mode: str, threshold: float) -> None:
    stacked = {"coefficients": ((1.0, 0.0, 1.0, 0.0), (0.0, 1.0, 0.0, 1.0)), "intercepts": (0.0, 0.0)}
    members = softmax(np.array([[[math.nan, 1.0], [9.0, 1.0]], [[9.0, 1.0], [9.0, 1.0]]]))
    assert np.isnan(members[0, 0]).all()
    assert np.isfinite(members[1]).all()
    of_mode = stacked if mode == "stack" else {}
    verdict = verdict_of(members, 0.5, 0.5, mode=mode, review_threshold=threshold, **of_mode)
    assert verdict.review.tolist() == [True, False]


def test_a_rule_is_read_from_the_metadata() -> None:
    metadata = {
        "voting": {"mode": "hard", "weights": [0.3, 0.7], "temperature": 2.0},
        "conformal": {"alpha": 0.1, "quantiles": [0.4, 0.6]},
        "review": {"threshold": 0.8, "risk": None},
    }
    assert rule_from_ensemble(metadata) == VotingRule((0.3, 0.7), "hard", 2.0, (0.4, 0.6), 0.8)
    assert rule_from_ensemble({**metadata, "conformal": None}).quantiles is None
    voting = {
        "mode": "stack",
        "weights": [1.0],
        "temperature": 1.0,
        "coefficients": [[1.0, 0.0], [0.0, 1.0]],
        "intercepts": [0.1, -0.1],
        "prior_ratio": [2.0, 0.5],
    }
    rule = rule_from_ensemble({**metadata, "voting": voting})
    assert (rule.coefficients, rule.intercepts, rule.prior_ratio) == (((1.0, 0.0), (0.0, 1.0)), (0.1, -0.1), (2.0, 0.5))


def test_a_point_of_two_classes_decides_by_the_threshold_of_its_positive_class() -> None:
    probabilities = np.array([[0.2, 0.8], [0.19, 0.81], [0.9, 0.1]])
    for positive, expected in ((0, [0, 1, 0]), (1, [1, 1, 0])):
        assert decide_at(probabilities, DecisionPoint(positive=positive, threshold=0.2)).tolist() == expected
    verdict = verdict_of(probabilities[:, None], 1.0, point=DecisionPoint(positive=0, threshold=0.2))
    assert verdict.label.tolist() == [0, 1, 0]
    # The probabilities are untouched, and no decision that the point changes goes to review.
    np.testing.assert_array_equal(verdict.probabilities, probabilities)
    assert not verdict.review.any()


def test_review_at_a_point_of_two_classes_is_an_interval_of_the_positive_class() -> None:
    members = np.array([[[p, 1 - p]] for p in (0.09, 0.1, 0.2, 0.3, 0.31, 0.9, math.nan)])
    point = DecisionPoint(positive=0, threshold=0.2, review_interval=(0.1, 0.3))
    verdict = verdict_of(members, 1.0, point=point, review_threshold=0.95, quantiles=(0.95, 0.95))
    assert verdict.review.tolist() == [False, True, True, True, False, False, True]
    # Sets stay conformal and hold the decision: 0.09 is LAA, and CE can't be ruled out only from 0.05 on.
    assert verdict.prediction_set[[0, 5]].tolist() == [[True, True], [True, True]]
    assert verdict_of(members[5:6], 1.0, point=point, quantiles=(0.5, 0.5)).prediction_set.tolist() == [[True, False]]
    low = verdict_of(np.array([[[0.25, 0.75]]]), 1.0, point=point, quantiles=(0.0, 0.0))
    assert low.prediction_set.tolist() == [[True, False]]


def test_costs_decide_for_the_lowest_expected_cost() -> None:
    costs = ((0.0, 10.0, 10.0), (1.0, 0.0, 1.0), (1.0, 1.0, 0.0))
    probabilities = np.array([[0.2, 0.7, 0.1], [0.05, 0.85, 0.1], [0.4, 0.4, 0.2]])
    assert decide_at(probabilities, DecisionPoint(costs=costs)).tolist() == [0, 1, 0]
    point = DecisionPoint(costs=costs, review_cost=0.7)
    verdict = verdict_of(probabilities[:, None], 1.0, point=point, review_threshold=1.0)
    # Their expected costs are 0.8, 0.6 and 0.6.
    assert verdict.review.tolist() == [True, False, False]
    by_confidence = verdict_of(probabilities[:, None], 1.0, point=DecisionPoint(costs=costs), review_threshold=0.3)
    assert by_confidence.review.tolist() == [True, False, False]


@given(votes(), st.integers(0, 1), st.floats(0, 1))
def test_costs_of_two_classes_are_a_threshold(
    drawn: tuple[Floats, VotingRule], positive: int, threshold: float
) -> None:
    """The positive class costs less from 1 / (1 + cost of a miss) on; the rest is 1."""
    probabilities = softmax(np.log(np.maximum(drawn[0][:, 0, :2], 1e-300)))
    miss = (1 - threshold) / threshold if threshold > 1e-3 else 1e3
    costs = [[0.0, 1.0], [1.0, 0.0]]
    costs[positive][1 - positive] = miss
    by_costs = decide_at(probabilities, DecisionPoint(costs=tuple(map(tuple, costs))))
    by_threshold = decide_at(probabilities, DecisionPoint(positive=positive, threshold=1 / (1 + miss)))
    clear = np.abs(probabilities[:, positive] - 1 / (1 + miss)) > 1e-9
    np.testing.assert_array_equal(by_costs[clear], by_threshold[clear])


def test_groups_are_decided_at_the_point_unless_their_images_were() -> None:
    pooled, point = np.array([[0.3, 0.7]]), DecisionPoint(positive=0, threshold=0.2)
    assert [decide_groups(rule, pooled, point).tolist() for rule in ("mean", "max", "majority")] == [[0], [0], [1]]
    assert decide_groups("mean", pooled, None).tolist() == [1]


def test_a_point_is_read_from_the_metadata() -> None:
    metadata = {
        "classes": ["CE", "LAA"],
        "voting": {"mode": "soft", "weights": [1.0], "temperature": 1.0},
        "conformal": None,
        "review": {"threshold": 0.8, "risk": None},
    }
    point = {"positive": "LAA", "threshold": 0.3, "review_interval": [0.2, 0.4], "costs": None, "review_cost": None}
    assert rule_from_ensemble(metadata).point is None
    expected = DecisionPoint(positive=1, threshold=0.3, review_interval=(0.2, 0.4))
    assert rule_from_ensemble({**metadata, "operating_point": point}).point == expected
    by_costs = {"positive": None, "threshold": None, "review_interval": None, "costs": [[0, 1], [2, 0]]}
    read = rule_from_ensemble({**metadata, "operating_point": by_costs | {"review_cost": 0.1}})
    assert read.point == DecisionPoint(costs=((0, 1), (2, 0)), review_cost=0.1)
