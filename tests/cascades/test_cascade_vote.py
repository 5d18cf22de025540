"""Cascades: their metadata, and the verdict row by row."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from plurum.predictions.arrays import Floats
from plurum.spec import CascadePromise, CascadeRule, Ensemble, read_ensemble, write_metadata
from plurum.voting import (
    Cascade,
    CascadeStage,
    OutlierTest,
    Verdict,
    VotingRule,
    cascade_from_ensemble,
    decide,
    decide_cascade,
    rule_from_ensemble,
    softmax,
)
from tests.sample_runs.member_samples import IMAGE, SCORES, SHA, member

STAGE: dict[str, Any] = {
    "members": 1,
    "voting": {"weights": [1.0], "temperature": 1.25},
    "conformal": {"alpha": 0.1, "quantiles": [0.2, 0.3]},
    "leave": 0.75,
    "share": 0.8,
}
CASCADE: dict[str, Any] = {
    "order": [1, 0],
    "stages": [STAGE],
    "costs": [0.9, 0.1],
    "cost": {"value": 0.3, "low": 0.25, "high": 0.35},
    "promise": {"risk": 0.01, "confidence": 0.95, "patients": 400, "hurt": 0, "bound": 0.0075, "p_value": 0.018},
}


def ensemble(**changes: Any) -> dict[str, Any]:
    return {
        "version": 2,
        "name": "clots",
        "classes": ["CE", "LAA"],
        "image": dict(IMAGE),
        "members": [member("large"), member("small")],
        "voting": {"weights": [0.5, 0.5], "temperature": 1.5},
        "conformal": {"alpha": 0.1, "quantiles": [0.3, 0.4]},
        "review": {"threshold": 0.7, "risk": 0.02},
        "data": {"data": "clots.npz", "fingerprint": SHA, "images": {"train": 80, "validation": 40}},
        "scores": {"validation": SCORES},
        "cascade": CASCADE,
    } | changes


def changed(**changes: Any) -> dict[str, Any]:
    return ensemble(cascade=CASCADE | changes)


def test_a_cascade_comes_back_as_it_was_written(tmp_path: Path) -> None:
    whole = Ensemble.model_validate(ensemble())
    write_metadata(tmp_path / "ensemble.json", whole)
    assert read_ensemble(tmp_path / "ensemble.json") == whole


def test_a_file_without_a_cascade_has_no_key_for_it(tmp_path: Path) -> None:
    plain = {name: value for name, value in ensemble(version=1).items() if name != "cascade"}
    before = Ensemble.model_validate(plain)
    cascade = CascadeRule.model_validate(CASCADE)
    write_metadata(tmp_path / "ensemble.json", before.with_cascade(cascade).with_cascade(None))
    assert "cascade" not in json.loads((tmp_path / "ensemble.json").read_text())
    assert read_ensemble(tmp_path / "ensemble.json") == before
    assert (before.version, before.with_cascade(cascade).version) == (1, 2)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (changed(order=[0, 0]), "order: expected each of 0 to 1 once"),
        (changed(order=[0, 1, 2], costs=[0.4, 0.3, 0.3]), "cascade: 3 members for 2 of the ensemble"),
        (changed(stages=[]), "stages"),
        (changed(stages=[STAGE | {"members": 2, "voting": {"weights": [0.5, 0.5]}}]), "below 2, got"),
        (changed(stages=[STAGE, STAGE]), "expected ascending numbers of members"),
        (changed(stages=[STAGE | {"voting": {"weights": [0.5, 0.5]}}]), "expected 1 weights, got 2"),
        (changed(stages=[STAGE | {"voting": {"weights": [1.0], "mode": "hard"}}]), "expected mode soft in a cascade"),
        (changed(stages=[STAGE | {"leave": 0.7}]), "leave: expected a 32-bit number, got 0.7"),
        (changed(stages=[STAGE | {"conformal": {"alpha": 0.1, "quantiles": [0.2]}}]), "1 quantiles for 2 classes"),
        (changed(costs=[0.5, 0.4]), "costs: expected 2 fractions with a sum of 1"),
        (
            changed(promise=CASCADE["promise"] | {"status": "certified"}),
            "precision: expected one with status certified",
        ),
        (ensemble(voting={"mode": "hard", "weights": [0.5, 0.5]}), "cascade: expected a vote with mode soft, got hard"),
        (ensemble(version=1), "version: expected 2"),
    ],
)
def test_parts_that_contradict_each_other_are_refused(content: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValidationError, match=fault.replace("[", r"\[")):
        Ensemble.model_validate(content)


def test_a_stage_has_the_review_limit_of_the_whole_vote() -> None:
    whole = Ensemble.model_validate(ensemble())
    cascade = cascade_from_ensemble(whole.model_dump())
    rule = VotingRule((1.0,), temperature=1.25, quantiles=(0.2, 0.3), review_threshold=0.7)
    assert cascade == Cascade((CascadeStage((1,), rule, 0.75),), whole.rule)
    assert cascade_from_ensemble(whole.with_cascade(None).model_dump()) is None


def test_a_file_of_an_older_version_has_no_cascade() -> None:
    assert cascade_from_ensemble({"voting": {}}) is None


def test_every_member_of_a_stage_has_to_agree() -> None:
    stage = CascadeStage((0, 1), VotingRule((0.9, 0.1)), 0.5)
    members = np.array([[[0.9, 0.1], [0.6, 0.4]], [[0.9, 0.1], [0.4, 0.6]]])
    verdict, may_leave = stage.decide(members)
    assert verdict.label.tolist() == [0, 0]
    assert may_leave.tolist() == [True, False]


def test_confidences_are_compared_in_32_bits() -> None:
    limit = float(np.float32(0.9))
    stage = CascadeStage((0,), VotingRule((1.0,)), limit)
    probability = np.nextafter(limit, 0)
    verdict, may_leave = stage.decide(np.array([[[probability, 1 - probability]], [[0.8999, 0.1001]]]))
    assert stage.leaves(verdict, may_leave).tolist() == [True, False]


def random_cascade() -> tuple[Floats, Floats, Cascade]:
    """Return probabilities, novelty and a cascade of two early stages in which images leave at each stage."""
    rng = np.random.default_rng(3)
    members = softmax(rng.normal(0, 2, (300, 4, 3)) + 3 * np.eye(3)[rng.integers(0, 3, 300)][:, None])
    novelty = rng.normal(0, 1, (300, 4))
    reference = tuple(np.sort(rng.normal(0, 1, 99)).astype(np.float32).tolist())

    def test_of(weights: tuple[float, ...], alpha: float) -> OutlierTest:
        return OutlierTest(alpha, tuple(one > 0 for one in weights), weights, reference, None, len(reference))

    first = VotingRule((1.0,), quantiles=(0.4,) * 3, review_threshold=0.5, outliers=test_of((1.0,), 0.2))
    second = VotingRule((0.7, 0.3), temperature=0.9, review_threshold=0.5, outliers=test_of((0.0, 1.0), 0.1))
    whole = VotingRule((0.25,) * 4, temperature=1.1, review_threshold=0.6, outliers=test_of((0.0, 0.5, 0.5, 0.0), 0.05))
    return members, novelty, Cascade((CascadeStage((2,), first, 0.875), CascadeStage((2, 0), second, 0.75)), whole)


def test_a_cascade_equals_its_definition_row_by_row() -> None:
    members, novelty, cascade = random_cascade()
    found = decide_cascade(members, cascade, novelty)
    assert np.bincount(found.stage, minlength=3).min() > 10
    for row in range(len(members)):
        expected, used, at = decide(members[[row]], cascade.rule, novelty[[row]]), [0, 1, 2, 3], 2
        for index, stage in enumerate(cascade.stages):
            order = list(stage.members)
            early = decide(members[[row]][:, order], stage.rule, novelty[[row]][:, order])
            agree = len(set(members[row, order].argmax(axis=-1).tolist())) == 1
            if agree and not early.review[0] and early.probabilities.max() >= stage.leave:
                expected, used, at = early, order, index
                break
        assert found.stage[row] == at
        assert np.flatnonzero(found.members_used[row]).tolist() == sorted(used)
        seen = np.zeros((4, 3))
        seen[used] = members[row, used]
        np.testing.assert_array_equal(found.verdict.member_probabilities[row], seen)
        for one in fields(Verdict):
            if one.name != "member_probabilities":
                values = getattr(found.verdict, one.name)[row], getattr(expected, one.name)[0]
                np.testing.assert_allclose(*values, rtol=0, atol=1e-12)


def test_a_full_request_runs_all_members() -> None:
    members, novelty, cascade = random_cascade()
    found, expected = decide_cascade(members, cascade, novelty, full=True), decide(members, cascade.rule, novelty)
    assert found.members_used.all()
    assert (found.stage == 2).all()
    for one in fields(Verdict):
        np.testing.assert_array_equal(getattr(found.verdict, one.name), getattr(expected, one.name))


def test_a_failed_member_of_a_stage_lets_no_image_leave() -> None:
    members, novelty, cascade = random_cascade()
    members[0, 2] = np.nan
    stages = (replace(cascade.stages[0], leave=0.0),)
    assert decide_cascade(members, replace(cascade, stages=stages), novelty).stage[0] == 1


def test_the_stages_of_the_metadata_decide() -> None:
    stated = Ensemble.model_validate(ensemble()).model_dump()
    cascade = cascade_from_ensemble(stated)
    assert cascade is not None
    members = np.array([[[0.5, 0.5], [0.99, 0.01]], [[0.2, 0.8], [0.6, 0.4]]])
    found = decide_cascade(members, cascade)
    assert found.stage.tolist() == [0, 1]
    assert found.members_used.tolist() == [[False, True], [True, True]]
    assert found.verdict.std[0].tolist() == [0, 0]
    assert found.verdict.probabilities[1] == pytest.approx(decide(members, rule_from_ensemble(stated)).probabilities[1])


def test_a_promise_states_the_precision_that_certified_it() -> None:
    promise = CascadePromise.model_validate(CASCADE["promise"])
    certified = promise.model_copy(update={"status": "certified", "precision": "int8"})
    assert CascadePromise.model_validate(certified.model_dump()) == certified
