"""A cascade's first stage is chosen on validation images; its exit is certified together with the review risk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from plurum.benchmarks.claims.cascades.simulation import draw_members
from plurum.errors import DataError, SettingsError
from plurum.predictions.arrays import Floats
from plurum.promises.risk_control import patient_losses, risk_p_value
from plurum.run import Run, Split
from plurum.settings.fitting import FitSettings
from plurum.settings.training import EvaluationSettings
from plurum.spec import Ensemble, OutlierRule, read_ensemble
from plurum.training import fit_report
from plurum.training.evaluation.run import evaluate_run
from plurum.training.fitting.baseline import baseline_from_verdict
from plurum.training.fitting.cascades import CascadeInputs, FittedCascade, fit_cascade, plan_cascade
from plurum.training.fitting.certification import review_target
from plurum.training.fitting.selection import Selection
from plurum.training.fitting.votes import FittedVote, ValidationPredictions
from plurum.voting import VotingRule, cascade_from_ensemble, decide, decide_cascade, outlier_test_from_ensemble
from tests.sample_runs.decided_run import build_decided_run
from tests.sample_runs.member_samples import IMAGE, SCORES, SHA, member

NAMES = ("cheap", "second", "third")
MEMBERS = tuple(member(name) for name in NAMES)
COSTS = (0.1, 0.4, 0.5)
VOTE = FittedVote(
    VotingRule((0.5, 0.25, 0.25), quantiles=(0.6, 0.6), review_threshold=0.6),
    np.array([0, 1, 2]),
    Selection(np.array([0.5, 0.25, 0.25]), (None,) * 3),
    None,
    (0.0, 0.0),
    (),
)


def predictions(patients: int, seed: int, novelty: Floats | None = None) -> ValidationPredictions:
    drawn = draw_members(patients, 1, np.random.default_rng(seed))
    return ValidationPredictions(drawn.members, drawn.labels, drawn.groups, ("CE", "LAA"), novelty)


def inputs(certification: int = 2000, **changes: Any) -> CascadeInputs:
    parts: dict[Split, ValidationPredictions] = {
        "validation": predictions(600, 0),
        "calibration": predictions(500, 1),
        "certification": predictions(certification, 2),
    }
    # mypy knows members as the JSON of their files.
    members: Any = [type("Named", (), {"name": name}) for name in NAMES]
    return replace(CascadeInputs(VOTE, parts, members, COSTS), **changes)


def fit(given: CascadeInputs, **settings: Any) -> FittedCascade:
    chosen = FitSettings.model_validate({"cascade": True, "cascade_risk": 0.01, "risk": 0.03} | settings)
    review = review_target(VOTE, ("CE", "LAA"), chosen) if chosen.risk not in {0, 1} else None
    return fit_cascade(given, chosen, review)


def test_the_promises_are_those_of_the_served_cascade() -> None:
    given = inputs()
    found = fit(given)
    assert found.rule is not None
    assert found.rule.promise is not None
    assert found.certification is not None
    assert found.certification.promise is not None
    served = replace_rule(found.certification.vote.rule, found)
    new = given.parts["certification"]
    answers, whole = decide_cascade(new.predictions, served), decide(new.predictions, served.rule)
    differs = (answers.verdict.label != whole.label) & (whole.label == new.labels)
    hurt = np.bincount(new.groups, differs | (whole.review & ~answers.verdict.review)) > 0
    promise = found.rule.promise
    assert (promise.patients, promise.hurt) == (2000, hurt.sum())
    assert promise.p_value == pytest.approx(risk_p_value(hurt.astype(float), 0.01))
    assert (promise.status, promise.precision) == ("provisional", None)
    losses = patient_losses(answers.verdict.label != new.labels, ~answers.verdict.review, new.groups)
    assert found.certification.promise.errors == pytest.approx(losses.sum())
    assert found.certification.promise.p_value <= 0.05
    (stage,) = found.rule.stages
    left = answers.stage == 0
    assert stage.share == pytest.approx(left.mean())
    cost = 1 - left.mean() * (1 - 0.1 * stage.members)
    assert stage.members == 1
    assert found.rule.cost.value == pytest.approx(cost)
    assert found.rule.cost.low < cost < found.rule.cost.high
    assert found.lines[0].startswith("cascade: cheap settles ")
    assert found.lines[1].startswith("cascade: at most 1.00% of new patients like those tested are hurt, with 95%")


def replace_rule(rule: VotingRule, found: FittedCascade) -> Any:
    """Return the cascade that the metadata state, with the vote's rule."""
    whole = Ensemble.model_validate(
        {
            "version": 2,
            "name": "clots",
            "classes": ["CE", "LAA"],
            "image": dict(IMAGE),
            "members": list(MEMBERS),
            "voting": {"weights": list(rule.weights)},
            "conformal": {"alpha": 0.1, "quantiles": list(rule.quantiles or ())},
            "review": {"threshold": rule.review_threshold, "risk": 0.03},
            "data": {"data": "clots.npz", "fingerprint": SHA, "images": {"train": 80}},
            "scores": {"validation": SCORES},
            "cascade": None if found.rule is None else found.rule.model_dump(),
        }
    )
    return cascade_from_ensemble(whole.model_dump())


def test_too_few_patients_are_told_how_many_are_missing() -> None:
    found = fit(inputs(certification=200), cascade_risk=0.002)
    assert (found.rule, found.certification) == (None, None)
    assert found.lines[0].startswith("cascade: none, because a promise of 0.20% with 95% confidence needs 1,497 ")
    assert "there are 200, so 1,297 are missing" in found.lines[0]


def test_patients_without_labels_make_up_for_missing_ones() -> None:
    more = predictions(1500, 7)
    found = fit(inputs(certification=200, unlabelled=replace(more, labels=-np.ones_like(more.labels))), risk=0.1)
    assert found.rule is not None
    assert found.rule.promise is not None
    assert found.rule.promise.patients == 1700
    assert found.certification is not None
    assert found.certification.promise is not None
    assert found.certification.promise.patients <= 200


def test_auto_promises_the_smallest_risk_that_the_patients_allow() -> None:
    found = fit(inputs(), cascade_risk="auto", risk=1)
    assert found.rule is not None
    assert found.rule.promise is not None
    assert found.rule.promise.risk == pytest.approx(1 - 0.05 ** (1 / 2000))
    assert found.rule.promise.hurt == 0
    assert found.certification is None


def test_too_few_patients_for_the_review_risk_leave_the_cascade_its_own_promise() -> None:
    found = fit(inputs(certification=900), risk=0.001)
    assert found.certification is not None
    assert found.certification.promise is None
    assert found.certification.vote == VOTE
    assert found.rule is not None
    assert found.rule.promise is not None


def test_a_review_risk_that_fails_leaves_no_cascade() -> None:
    given = inputs()
    wrong = replace(given.parts["certification"], labels=1 - given.parts["certification"].labels)
    found = fit(replace(given, parts={**given.parts, "certification": wrong}))
    assert found.rule is None
    assert found.certification is not None
    assert found.certification.promise is None
    assert found.lines == ("cascade: none, because no review limit passed, so no exit was tested",)


def test_nothing_is_gained_where_the_first_member_costs_nearly_all() -> None:
    found = fit(inputs(costs=(0.97, 0.02, 0.01)), cascade_order=NAMES)
    assert found.rule is None
    assert "cascade: none, because nothing is gained: it costs " in found.lines[0]


def test_a_single_member_has_no_cascade() -> None:
    alone = replace(VOTE, rule=replace(VOTE.rule, weights=(1.0,)), kept=np.array([1]))
    given = inputs()
    found = fit(replace(given, vote=alone, members=given.members[1:2], costs=(1.0,)))
    assert found.lines == ("cascade: none, because the vote has a single member",)


def test_the_cheapest_member_runs_first_unless_an_order_is_given() -> None:
    found = fit(inputs(costs=(0.5, 0.1, 0.4)))
    assert found.rule is not None
    assert found.rule.order == (1, 2, 0)
    ordered = fit(inputs(), cascade_order=["second", "cheap", "third"])
    assert ordered.rule is not None
    assert ordered.rule.order == (1, 0, 2)
    with pytest.raises(SettingsError, match=r"--cascade-order: expected each member of the vote once \(cheap, second"):
        fit(inputs(), cascade_order=["second", "cheap"])


def test_a_stage_has_weights_temperature_and_sets_of_its_own() -> None:
    plan = plan_cascade(inputs(costs=(0.2, 0.2, 0.6)), [0, 1, 2], 0.02, 0.1)
    assert plan is not None
    rule = plan.stage.rule
    assert len(rule.weights) == len(plan.stage.members)
    assert sum(rule.weights) == pytest.approx(1)
    assert rule.temperature != VOTE.rule.temperature
    assert rule.quantiles != VOTE.rule.quantiles
    assert rule.review_threshold == VOTE.rule.review_threshold


def test_outliers_do_not_leave() -> None:
    """The stage's detector sees less than all, so its alpha is higher than the whole vote's."""
    rng = np.random.default_rng(5)
    parts: dict[Split, ValidationPredictions] = {}
    sizes: dict[Split, int] = {"validation": 600, "calibration": 500, "certification": 2000}
    for seed, (split, number) in enumerate(sizes.items()):
        shared = rng.normal(0, 1, number)
        parts[split] = predictions(number, seed, shared[:, None] + 0.8 * rng.normal(0, 1, (number, 3)))
    rule = OutlierRule(
        alpha=0.05,
        members=(True,) * 3,
        detectors=(SHA,) * 3,
        weights=(1 / 3,) * 3,
        reference=(0.0,),
        patients=1,
        split="calibration",
    )
    reference = parts["calibration"]
    assert reference.novelty is not None
    rule = rule.with_reference(reference.novelty.mean(axis=1), reference.groups)
    vote = replace(VOTE, rule=replace(VOTE.rule, outliers=outlier_test_from_ensemble({"outliers": rule.model_dump()})))
    given = replace(inputs(), parts=parts, vote=vote, outliers=rule)
    plan = plan_cascade(given, [0, 1, 2], 0.004, 0.1)
    assert plan is not None
    assert plan.outliers is not None
    assert plan.outliers.alpha > rule.alpha
    assert plan.outliers.members == (True,)
    found = fit(given, cascade_risk=0.004)
    assert found.rule is not None
    assert found.rule.stages[0].outliers == plan.outliers


def test_options_that_contradict_the_cascade_are_refused() -> None:
    for given, fault in (
        ({"cascade": True, "mode": "hard"}, "--cascade: expected --mode soft, got hard, which counts votes"),
        ({"cascade": True, "mode": "stack"}, "--cascade: expected --mode soft, got stack, which needs all members"),
        ({"cascade": True, "prior": {"CE": 0.5, "LAA": 0.5}}, "--cascade: can't be combined with --prior"),
        ({"cascade": True, "risk": "auto"}, "--risk: expected a number with --cascade, got auto"),
        ({"cascade_risk": 0.01}, "--cascade-risk: expected --cascade with it, got none"),
        ({"unlabelled": "ward"}, "--unlabelled: expected --cascade with it, got none"),
        ({"cascade_order": ["one"]}, "--cascade-order: expected --cascade with it, got none"),
        ({"cascade": True, "cascade_risk": 0}, "greater than 0"),
    ):
        with pytest.raises(ValueError, match=fault):
            FitSettings.model_validate(given)


def test_dissents_of_a_member_are_of_the_images_that_reached_it() -> None:
    members = np.array([[[0.9, 0.1], [0.1, 0.9]], [[0.9, 0.1], [0.0, 0.0]]])
    rule = VotingRule((0.9, 0.1))
    verdict = decide(np.where(members.any(axis=2, keepdims=True), members, 0.5), rule)
    used = np.array([[True, True], [True, False]])
    assert baseline_from_verdict(verdict, rule, used=used).dissent_shares == (0.0, 1.0)
    assert baseline_from_verdict(verdict, rule, used=used & [True, False]).dissent_shares == (0.0, 0.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return build_decided_run(tmp_path_factory.mktemp("cascade") / "run", certification=600)


@pytest.mark.slow
def test_a_run_keeps_its_cascade_in_ensemble_json(run: Run) -> None:
    given = {"cascade": True, "cascade_risk": 0.1, "risk": 0.1, "select": "all", "draws": 100, "no_outliers": True}
    report = fit_report(run.path, FitSettings.model_validate(given))
    ensemble = read_ensemble(run.ensemble_file)
    assert ensemble == report.ensemble
    assert ensemble.cascade is not None
    assert sum(ensemble.cascade.costs) == pytest.approx(1)
    assert ensemble.cascade.costs[ensemble.cascade.order[0]] < 0.5
    assert report.cascade is not None
    scores = report.cascade.scores
    assert scores is not None
    evaluation = evaluate_run(run.path, EvaluationSettings(draws=100))
    assert evaluation.cascade == scores
    assert scores.cost.value is not None
    assert ensemble.cascade.costs[ensemble.cascade.order[0]] < scores.cost.value < 1
    assert ensemble.baseline is not None
    # Few validation images reach the second member, and those that do are in doubt.
    dissents = ensemble.baseline.dissent_shares
    assert dissents[ensemble.cascade.order[1]] > 0
    assert ensemble.cascade.costs_by == "multiply_adds"
    # Measured times may turn the order round.
    names = [member.name for member in ensemble.members]
    first, second = (names[index] for index in ensemble.cascade.order)
    timed = fit_report(run.path, FitSettings.model_validate(given), {first: 3.0, second: 1.0, "other": 9.0})
    cascade = timed.ensemble.cascade
    assert cascade is not None
    assert (cascade.costs_by, cascade.order) == ("time", ensemble.cascade.order[::-1])
    assert sorted(cascade.costs) == pytest.approx([0.25, 0.75])
    assert timed.cascade is not None
    assert "of the whole vote's computing time" in timed.cascade.lines[0]
    before = run.ensemble_file.read_bytes()
    with pytest.raises(SettingsError, match=f"--cascade-costs: expected a repository with all .* without {second}"):
        fit_report(run.path, FitSettings.model_validate(given), {first: 3.0})
    assert run.ensemble_file.read_bytes() == before


@pytest.mark.slow
def test_images_without_labels_are_kept_for_export_until_the_next_fit(run: Run, tmp_path: Path) -> None:
    rows = run.table().rows("test")
    lines = ["path,patient"]
    for number, row in enumerate(rows):
        Image.fromarray(np.array(run.pixels()[row])).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,new {number // 2}")
    manifest = tmp_path / "ward.csv"
    manifest.write_text("\n".join(lines))
    given = {"cascade": True, "cascade_risk": 0.1, "risk": 0.1, "select": "all", "draws": 100, "no_outliers": True}
    report = fit_report(run.path, FitSettings.model_validate({**given, "unlabelled": str(manifest)}))
    cascade, images = report.ensemble.cascade, run.unlabelled()
    assert cascade is not None
    assert cascade.promise is not None
    assert cascade.promise.patients == 300 + len(rows) // 2
    assert images is not None
    np.testing.assert_array_equal(images.pixels, run.pixels()[rows])
    assert images.groups.tolist() == [number // 2 for number in range(len(rows))]
    manifest.write_text("path,patient\n0.png,patient 0\n")
    with pytest.raises(DataError, match="expected patients that the run does not have, got 1 of its patients in "):
        fit_report(run.path, FitSettings.model_validate({**given, "unlabelled": str(manifest)}))
    fit_report(run.path, FitSettings.model_validate(given))
    assert run.unlabelled() is None


@pytest.mark.slow
def test_a_run_without_certification_patients_has_no_cascade(tmp_path: Path) -> None:
    small = build_decided_run(tmp_path / "run")
    with pytest.raises(SettingsError, match="--cascade: it needs certification patients"):
        fit_report(small.path, FitSettings(cascade=True, draws=100))
