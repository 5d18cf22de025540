"""Promises on a cascade: hurt patients, the order of the tests, and how often promises are violated."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from plurum.benchmarks.claims.cascades.simulation import (
    CASCADE_RISK,
    CONFIDENCE,
    RISK,
    SCENARIOS,
    draw_members,
    simulate,
)
from plurum.predictions.scores import confidence_of
from plurum.promises.cascades import (
    CascadeTarget,
    StagedAnswers,
    cascade_without_limit,
    certify_cascade,
    cost_of_cascade,
    few_patients_text,
    hurt_text,
    list_exits,
)
from plurum.promises.review import ReviewTarget
from plurum.promises.risk_control import patient_losses, risk_bound, risk_p_value
from plurum.voting import Cascade, CascadeStage, VotingRule, decide_cascade

CASCADE = Cascade((CascadeStage((0,), VotingRule((1.0,), temperature=1.2), 1.0),), VotingRule((1 / 3,) * 3))
TARGET = CascadeTarget(CASCADE_RISK, CONFIDENCE, CASCADE.rule)


def answers(patients: int, seed: int, images: int = 2) -> StagedAnswers:
    drawn = draw_members(patients, images, np.random.default_rng(seed))
    return StagedAnswers.from_members(drawn.members, None, CASCADE, drawn.labels, drawn.groups)


def rows(*positive: tuple[float, float]) -> StagedAnswers:
    """Return images, one per patient: the first member's and the others' probability of the class 1, which is true."""
    members = np.array([[[1 - first, first], [1 - rest, rest], [1 - rest, rest]] for first, rest in positive])
    number = len(positive)
    return StagedAnswers.from_members(members, None, CASCADE, np.ones(number, dtype=np.int64), np.arange(number))


def test_a_patient_is_hurt_by_a_changed_correct_label_or_a_lost_review() -> None:
    seen = rows(
        (0.99, 0.99),  # The same label.
        (0.01, 0.99),  # A correct label changes: 0.66 of the whole vote is correct.
        (0.01, 0.4),  # A wrong label stays.
        (0.99, 0.01),  # The whole vote is wrong, the stage is not.
        (0.9, 0.99),  # Does not leave.
    )
    leave = float(np.float32(0.95))
    assert seen.left(leave).tolist() == [True, True, True, True, False]
    assert seen.hurt(leave, 0.0).tolist() == [0, 1, 0, 0, 0]
    assert seen.hurt(None, 0.0).tolist() == [0] * 5
    # The whole vote reviews what is not as confident as the limit, and the stage lets it leave.
    assert (confidence_of(seen.whole) < 0.7).tolist() == [False, True, False, True, False]
    assert seen.hurt(leave, 0.7).tolist() == [0, 1, 0, 1, 0]


def test_any_changed_label_counts_where_the_truth_is_unknown() -> None:
    seen = replace(rows((0.99, 0.01), (0.99, 0.99)), labels=np.array([-1, -1]))
    assert seen.hurt(0.5, 0.0).tolist() == [1, 0]


def test_a_patient_with_one_hurt_image_is_hurt_once() -> None:
    seen = replace(rows((0.01, 0.99), (0.01, 0.99), (0.99, 0.99)), groups=np.array([0, 0, 1]))
    assert seen.hurt(0.5, 0.0).tolist() == [1, 0]


def test_exits_are_ordered_from_the_strictest_on() -> None:
    seen = answers(300, 0)
    exits = list_exits(seen, 0.9)
    assert exits == sorted(exits, reverse=True)
    assert exits[-1] >= 0.9
    assert all(float(np.float32(one)) == one for one in exits)
    hurt = [seen.hurt(leave, 0.9).sum() for leave in exits]
    assert hurt == sorted(hurt)
    assert list_exits(replace(seen, may_leave=np.zeros_like(seen.may_leave)), 0.0) == []


def test_the_last_exit_that_passed_is_the_loosest_that_the_patients_allow() -> None:
    seen, new = answers(300, 0), answers(1000, 1)
    found = certify_cascade(seen, [new], TARGET)
    assert found.leave is not None
    assert found.promise is not None
    hurt = new.hurt(found.leave, 0.0)
    assert (found.promise.patients, found.promise.hurt) == (1000, hurt.sum())
    assert found.promise.p_value == pytest.approx(risk_p_value(hurt, CASCADE_RISK))
    assert found.promise.p_value <= 0.05 + 1e-12
    assert found.promise.bound == pytest.approx(risk_bound(hurt, 0.95))
    looser = [leave for leave in list_exits(seen, 0.0) if leave < found.leave]
    assert risk_p_value(new.hurt(max(looser), 0.0), CASCADE_RISK) > 0.05
    assert f"{int(hurt.sum())} of 1,000 certification patients" in hurt_text(found.promise)


def test_all_forms_that_serve_have_to_pass() -> None:
    seen, new = answers(300, 0), answers(1000, 1)
    alone = certify_cascade(seen, [new], TARGET)
    assert alone.leave is not None
    harmful = replace(new, whole=replace(new.whole, label=1 - new.whole.label), labels=1 - new.whole.label)
    both = certify_cascade(seen, [new, harmful], TARGET)
    assert both.leave is not None
    assert both.promise is not None
    assert both.leave > alone.leave
    assert both.promise.hurt == harmful.hurt(both.leave, 0.0).sum() > new.hurt(both.leave, 0.0).sum()


def test_patients_without_labels_count_for_the_hurt_only() -> None:
    seen, new, more = answers(300, 0), answers(400, 1), answers(700, 2)
    unknown = replace(more, labels=np.full(len(more.labels), -1))
    target = replace(TARGET, review=ReviewTarget(0.1, CONFIDENCE))
    found = certify_cascade(seen, [new], target, [unknown])
    assert found.leave is not None
    assert found.promise is not None
    assert found.review is not None
    assert found.review.limit is not None
    assert found.review.promise is not None
    hurt = [one.hurt(found.leave, found.review.limit).sum() for one in (new, unknown)]
    assert (found.promise.patients, found.promise.hurt) == (1100, sum(hurt))
    assert found.review.promise.patients <= 400


def test_an_exit_that_hurts_many_is_refused() -> None:
    seen, new = answers(300, 0), answers(1000, 1)
    harmful = replace(
        new, stage=replace(new.stage, label=1 - new.whole.label, probabilities=np.eye(2)[1 - new.whole.label])
    )
    found = certify_cascade(seen, [harmful], TARGET)
    assert (found.leave, found.promise) == (None, None)
    assert "the strictest exit has a p-value of" in found.refusal


def test_the_review_risk_is_that_of_the_cascade() -> None:
    target = replace(TARGET, review=ReviewTarget(RISK, CONFIDENCE))
    drawn = draw_members(3000, 2, np.random.default_rng(1))
    cascade = cascade_without_limit(CASCADE)
    new = StagedAnswers.from_members(drawn.members, None, cascade, drawn.labels, drawn.groups)
    found = certify_cascade(answers(600, 0), [new], target)
    assert found.leave is not None
    assert found.review is not None
    assert found.review.limit is not None
    assert found.review.promise is not None
    assert found.leave >= found.review.limit
    stage = replace(CASCADE.stages[0], leave=found.leave)
    rules = [replace(rule, review_threshold=found.review.limit) for rule in (stage.rule, CASCADE.rule)]
    served = decide_cascade(drawn.members, Cascade((replace(stage, rule=rules[0]),), rules[1])).verdict
    losses = patient_losses(served.label != drawn.labels, ~served.review, drawn.groups)
    assert found.review.promise.patients == len(losses)
    assert found.review.promise.errors == pytest.approx(losses.sum())
    assert found.review.promise.p_value <= 0.05


def test_too_few_patients_for_the_review_risk_are_told_without_a_test_of_exits() -> None:
    target = replace(TARGET, review=ReviewTarget(0.001, CONFIDENCE))
    found = certify_cascade(answers(300, 0), [answers(1000, 1)], target)
    assert found.leave is None
    assert found.review is not None
    assert found.review.refused is not None
    assert found.review.refused.limit is None
    assert found.refusal == "no review limit passed, so no exit was tested"


def test_how_many_patients_are_missing() -> None:
    text = few_patients_text(360, 0.002, 0.95)
    assert "needs 1,497 certification patients of whom none is hurt" in text
    assert "there are 360, so 1,137 are missing. They can promise at best 0.83%" in text
    assert few_patients_text(1497, 0.002, 0.95) == ""


def test_the_interval_of_the_cost_is_by_patient() -> None:
    left = np.array([True, True, False, False] * 50)
    by_image = cost_of_cascade(left, np.arange(200), 0.1)
    by_patient = cost_of_cascade(left, np.repeat(np.arange(100), 2), 0.1)
    assert by_image.value == by_patient.value == pytest.approx(0.55)
    assert by_patient.high - by_patient.low == pytest.approx(np.sqrt(2) * (by_image.high - by_image.low), rel=0.01)
    assert cost_of_cascade(np.array([True]), np.array([0]), 0.1).high == 1


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_promises_are_rarely_violated(scenario: str) -> None:
    found = simulate(scenario, 2, studies=60, patients=600)
    assert found["served"] > 0.3
    # 8 of 60 or more have a probability of 1.5 % where each violates with 5 %.
    assert found["violated"] < 8 / 60
