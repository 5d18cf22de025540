"""Promises of a fit: tests of review thresholds on patients that chose nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from plurum.errors import SettingsError
from plurum.predictions.scores import confidence_of
from plurum.promises.risk_control import patient_losses, risk_bound, risk_p_value
from plurum.run import Run, number_patients
from plurum.settings.fitting import FitSettings
from plurum.training import fit_report
from plurum.training.fitting.certification import Certification, certify_review
from plurum.training.fitting.points import costs_of
from plurum.training.fitting.selection import Selection
from plurum.training.fitting.votes import FittedVote, ValidationPredictions
from plurum.training.inference.predictions import predict_members
from plurum.training.statistics.calibration import conformal_quantiles
from plurum.voting import VotingRule, decide

VOTE = FittedVote(
    VotingRule((1.0,), quantiles=(0.6, 0.6), review_threshold=0.6),
    np.array([0]),
    Selection(np.array([1.0]), (None,)),
    None,
    (0.0, 0.0),
    (),
)


def simulated(patients: int, images: int, seed: int) -> ValidationPredictions:
    """Return calibrated predictions; errors are rare at high confidence."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(rng.integers(0, 2, patients), images)
    scores = np.where(labels == 1, 3.0, -3.0) + np.repeat(rng.normal(0, 1.2, patients), images)
    positive = 1 / (1 + np.exp(-2 * (scores + rng.normal(0, 1, len(labels)))))
    predictions = np.stack([1 - positive, positive], axis=1)[:, None]
    return ValidationPredictions(predictions, labels, np.repeat(np.arange(patients), images), ("CE", "LAA"))


def certify(
    patients: int, images: int = 3, **settings: float | str | bool
) -> tuple[Certification, ValidationPredictions]:
    new = simulated(patients, images, 1)
    found = certify_review(VOTE, simulated(400, images, 0), new, FitSettings.model_validate(settings))
    return found, new


def test_the_promise_is_that_of_the_served_rule() -> None:
    found, new = certify(2000, risk=0.01)
    assert found.promise is not None
    verdict = decide(new.predictions, found.vote.rule)
    losses = patient_losses(verdict.label != new.labels, ~verdict.review, new.groups)
    assert found.promise.patients == len(losses)
    assert found.promise.errors == pytest.approx(losses.sum())
    assert found.promise.p_value == pytest.approx(risk_p_value(losses, 0.01))
    assert found.promise.p_value <= 0.05
    assert found.promise.status == "provisional"
    assert found.line.startswith("review risk: at most 1.00% of new patients like those tested, with 95% confidence")


def test_a_stricter_promise_reviews_more() -> None:
    loose, strict = certify(2000, risk=0.02)[0], certify(2000, risk=0.005)[0]
    assert loose.promise is not None
    assert strict.promise is not None
    assert strict.vote.rule.review_threshold > loose.vote.rule.review_threshold


def test_too_few_patients_are_told_how_many_are_missing() -> None:
    found, _ = certify(100, risk=0.01)
    assert found.promise is None
    assert found.vote == VOTE
    assert "it needs 299 unreviewed patients without an error, 473 with one or 628 with two" in found.line
    # 1 - 0.05 ** (1 / patients) is the best that patients without an error can promise.
    patients = int(found.line.partition("there are ")[2].partition(",")[0])
    assert 90 < patients <= 100
    assert f"so {299 - patients} are missing. They can promise at best {1 - 0.05 ** (1 / patients):.2%}" in found.line


def test_too_many_errors_are_no_promise() -> None:
    wrong = simulated(400, 1, 1)
    wrong = replace(wrong, labels=1 - wrong.labels)
    found = certify_review(VOTE, simulated(400, 1, 0), wrong, FitSettings(risk=0.1))
    assert (found.promise, found.vote) == (None, VOTE)
    assert "the first threshold tested has" in found.line


def test_auto_promises_the_bound_of_one_threshold() -> None:
    found, new = certify(60, images=1, risk="auto")
    assert found.promise is not None
    verdict = decide(new.predictions, found.vote.rule)
    losses = patient_losses(verdict.label != new.labels, ~verdict.review, new.groups)
    assert found.promise.risk == pytest.approx(risk_bound(losses, 0.95), rel=1e-6)
    assert 0.04 < found.promise.risk < 0.2


def test_the_risk_of_each_class_on_request() -> None:
    found, new = certify(2000, risk=0.02, risk_by_class=True)
    assert found.promise is not None
    assert found.promise.by_class is not None
    verdict = decide(new.predictions, found.vote.rule)
    for label, one in enumerate(found.promise.by_class):
        unreviewed = ~verdict.review & (new.labels == label)
        losses = patient_losses(verdict.label != new.labels, unreviewed, new.groups)
        assert (one.name, one.patients) == (new.classes[label], len(losses))
        assert one.p_value == pytest.approx(risk_p_value(losses, 0.02))
    assert "; the same for each class: " in found.line
    few, _ = certify(250, risk=0.02, risk_by_class=True)
    assert few.line.startswith("review risk of class ")
    assert few.refused is not None
    assert few.refused.what in few.line


def test_a_risk_by_class_that_nothing_can_promise_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--risk: expected a number between 0 and 1 with --risk-by-class, got 0"):
        FitSettings(risk=0, risk_by_class=True)
    costs = tmp_path / "costs.csv"
    costs.write_text("true,decided,cost\nCE,LAA,9\nLAA,CE,1\n,review,0.5\n")
    settings = FitSettings(positive="CE", costs=str(costs), risk_by_class=True)
    with pytest.raises(SettingsError, match="--risk-by-class: can't be combined with the cost of a review in "):
        costs_of(settings, ("CE", "LAA"))


def set_aside(run: Run) -> None:
    """Turn training images into calibration and certification images, half of each."""
    items = run.data_folder / "items.csv"
    lines = items.read_text(encoding="utf-8").splitlines()
    rows = [index for index, line in enumerate(lines) if line.endswith(",train")]
    for split, half in (("calibration", rows[: len(rows) // 2]), ("certification", rows[len(rows) // 2 :])):
        for index in half:
            lines[index] = lines[index].removesuffix("train") + split
    items.write_text("\n".join([*lines, ""]), encoding="utf-8")


def test_a_run_keeps_its_promise_in_ensemble_json(unfitted: Run) -> None:
    set_aside(unfitted)
    report = fit_report(unfitted.path, FitSettings(risk=0.4, select="all", draws=100))
    ensemble = unfitted.ensemble()
    assert ensemble == report.ensemble
    assert ensemble.version == 2
    assert ensemble.promise is not None
    assert (ensemble.promise.risk, ensemble.promise.confidence) == (0.4, 0.95)
    assert report.promise_line is not None
    assert report.refused_promise is None
    table = unfitted.table()
    predictions = predict_members(unfitted, ensemble.members, ("calibration", "certification"))
    rows = table.rows("certification")
    verdict = decide(predictions["certification"], ensemble.rule)
    losses = patient_losses(verdict.label != table.labels[rows], ~verdict.review, np.arange(len(rows)))
    assert ensemble.promise.p_value == pytest.approx(risk_p_value(losses, 0.4))
    # Prediction sets come from the calibration images.
    rows = table.rows("calibration")
    aside = decide(predictions["calibration"], ensemble.rule).probabilities
    groups = number_patients([table.patients[row] for row in rows])
    quantiles = conformal_quantiles(aside, table.labels[rows], groups, 0.1)
    assert ensemble.conformal is not None
    assert ensemble.conformal.quantiles == pytest.approx([min(one + 1e-5, 1.0) for one in quantiles])
    assert confidence_of(verdict).min() >= 0


def test_a_run_without_certification_patients_promises_nothing(unfitted: Run) -> None:
    report = fit_report(unfitted.path, FitSettings(select="all", draws=100))
    assert report.promise_line is None
    assert "promise" not in json.loads(unfitted.ensemble_file.read_text(encoding="utf-8"))
    with pytest.raises(SettingsError, match=r"--risk: expected a number, got auto, which needs certification patients"):
        fit_report(unfitted.path, FitSettings(risk="auto"))
    with pytest.raises(SettingsError, match=r"--risk-by-class: it needs certification patients\. Set some aside"):
        fit_report(unfitted.path, FitSettings(risk_by_class=True))
    set_aside(unfitted)
    with pytest.raises(SettingsError, match=r"promises nothing with --prior"):
        fit_report(unfitted.path, FitSettings(risk="auto", prior_from=str(Path())))
    with pytest.raises(SettingsError, match=r"--risk-by-class: it promises nothing with --prior"):
        fit_report(unfitted.path, FitSettings(risk_by_class=True, prior_from=str(Path())))
