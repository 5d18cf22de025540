"""Fitting a run, with all fitted parameters computed again."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from plurum.errors import MetadataError, PlurumError
from plurum.files import sha256_of
from plurum.predictions.arrays import Floats
from plurum.run import Run
from plurum.spec import read_ensemble
from plurum.training import EvaluationSettings, FitReport, FitSettings, evaluate_run, fit_report, fit_run
from plurum.training.fitting.stacking import cross_fit, fit_stack, predict_out_of_fold
from plurum.training.fitting.weights import greedy_weights
from plurum.training.statistics.calibration import conformal_quantiles, fit_temperature, review_threshold
from plurum.training.statistics.scoring import compute_scores
from plurum.voting import Verdict, decide, soft_vote, temper
from tests.training.fitting.member_answers import answers_of

# Margin of fitted limits, which keeps the image they come from within them despite rounding.
ROUNDING = 1e-5


@pytest.fixture
def run(unfitted: Run) -> Run:
    """Return a copy of the finished run for one test."""
    return unfitted


def confidence_of(verdict: Verdict) -> Floats:
    return np.take_along_axis(verdict.probabilities, verdict.label[:, None], axis=1)[:, 0]


def check_numbers(run: Run, report: FitReport) -> None:
    """Compute the report's and the ensemble's figures again."""
    ensemble = report.ensemble
    for split in ("validation", "test"):
        predictions, labels = answers_of(run, split)
        kept = [index for index, member in enumerate(run.members()) if member in ensemble.members]
        predictions = predictions[:, kept]
        verdict = decide(predictions, ensemble.rule)
        scores = compute_scores(verdict.probabilities, labels, verdict.label)
        assert ensemble.scores[split].accuracy == scores.accuracy
        assert ensemble.scores[split].nll == pytest.approx(scores.nll)
        assert report.reviewed[split] == pytest.approx(verdict.review.mean())
        assert report.covered[split] == pytest.approx(verdict.prediction_set[np.arange(len(labels)), labels].mean())
        for index, member in enumerate(ensemble.members):
            alone = report.members[member.name].scores[split]
            assert alone.nll == pytest.approx(compute_scores(predictions[:, index], labels).nll)


def test_a_soft_vote_is_fitted_on_validation_images(run: Run) -> None:
    settings = FitSettings(alpha=0.2, risk=0.05)
    report = fit_report(run.path, settings)
    ensemble = report.ensemble
    assert read_ensemble(run.ensemble_file) == ensemble
    assert ensemble.name == "two-members"
    assert ensemble.data.images == {"train": 160, "validation": 80, "test": 80}
    assert ensemble.data.fingerprint == run.data().fingerprint
    predictions, labels = answers_of(run, "validation")
    if report.nll_saved[0] > 0:
        assert ensemble.voting.weights == tuple((report.weights_tried or {}).values())
    else:
        assert ensemble.voting.weights == (0.5, 0.5)
    assert ensemble.voting.temperature == pytest.approx(
        fit_temperature(soft_vote(predictions, ensemble.voting.weights), labels)
    )
    verdict = decide(predictions, ensemble.rule)
    assert ensemble.conformal is not None
    np.testing.assert_allclose(
        ensemble.conformal.quantiles,
        np.add(conformal_quantiles(verdict.probabilities, labels, np.arange(80), 0.2), ROUNDING),
    )
    wrong = verdict.label != labels
    threshold = ensemble.review.threshold
    assert threshold == pytest.approx(review_threshold(confidence_of(verdict), wrong, 0.05) - ROUNDING, rel=1e-9)
    assert wrong[confidence_of(verdict) >= threshold].mean() <= 0.05
    check_numbers(run, report)


def test_the_fit_stores_the_baseline_for_drift(run: Run) -> None:
    ensemble = fit_run(run.path)
    predictions, labels = answers_of(run, "validation")
    verdict = decide(predictions, ensemble.rule)
    baseline = ensemble.baseline
    assert baseline is not None
    assert baseline.images == len(labels)
    for index, share in enumerate(baseline.class_shares):
        assert share == pytest.approx(np.mean(verdict.label == index))
    limits = (0.0, *baseline.confidence_limits, 1.0)
    for over, limit, share in zip(limits[:-1], limits[1:], baseline.confidence_shares, strict=True):
        confidence = confidence_of(verdict)
        assert share == pytest.approx(np.mean((confidence > over) & (confidence <= limit)))
    assert baseline.review_share == pytest.approx(np.mean(verdict.review))
    for index, share in enumerate(baseline.dissent_shares):
        assert share == pytest.approx(np.mean(predictions[:, index].argmax(axis=1) != verdict.label))


def test_a_hard_vote_has_equal_weights_and_no_temperature(run: Run) -> None:
    report = fit_report(run.path, FitSettings(mode="hard"))
    voting = report.ensemble.voting
    assert (voting.mode, voting.weights, voting.temperature) == ("hard", (0.5, 0.5), 1.0)
    check_numbers(run, report)


def test_a_second_fit_takes_the_first_ones_place(run: Run) -> None:
    before = {path.name for path in run.path.iterdir()}
    first = fit_run(run.path)
    assert fit_run(run.path, FitSettings(mode="hard")) != first
    assert read_ensemble(run.ensemble_file).voting.mode == "hard"
    assert fit_run(run.path) == first
    assert {path.name for path in run.path.iterdir()} == before | {"ensemble.json"}


def test_a_useless_member_is_left_out_and_an_equal_one_is_not(run: Run) -> None:
    """One has the classes of a member permuted, the other is a copy of a member."""
    good, other = run.members()
    folder = run.member_folder(other.name)
    shutil.rmtree(folder)
    shutil.copytree(run.member_folder(good.name), folder)
    metadata = json.loads((folder / "member.json").read_text())
    (folder / "member.json").write_text(json.dumps({**metadata, "name": other.name}))
    same = fit_report(run.path, FitSettings())
    assert same.ensemble.voting.weights == (0.5, 0.5)
    assert same.outcome == "no different"
    assert (same.differences["accuracy"].low, same.differences["accuracy"].high) == (0, 0)

    weights = load_file(folder / "checkpoint.safetensors")

    def become(head_bias: torch.Tensor, head_weight: torch.Tensor) -> None:
        path = folder / "checkpoint.safetensors"
        save_file({**weights, "head.fc.bias": head_bias, "head.fc.weight": head_weight}, path)
        changed = {**metadata, "name": other.name, "sha256": sha256_of(path)}
        (folder / "member.json").write_text(json.dumps(changed))

    # An equivalent change must leave the weights equal.
    for seed in range(10):
        noise = torch.randn(weights["head.fc.weight"].shape, generator=torch.Generator().manual_seed(seed))
        become(weights["head.fc.bias"], weights["head.fc.weight"] + 0.02 * noise)
        alike = fit_report(run.path, FitSettings())
        if alike.nll_saved[0] < 0 < alike.nll_saved[1]:
            break
    assert alike.nll_saved[0] < 0 < alike.nll_saved[1]
    assert set((alike.weights_tried or {}).values()) != {0.5}
    assert alike.ensemble.voting.weights == (0.5, 0.5)

    become(weights["head.fc.bias"].roll(1, 0), weights["head.fc.weight"].roll(1, 0))
    report = fit_report(run.path, FitSettings())
    assert report.left_out == (other.name,)
    assert [member.name for member in report.ensemble.members] == [good.name]
    assert report.best_single == good.name
    kept = fit_report(run.path, FitSettings(select="all"))
    assert kept.nll_saved[0] > 0
    assert kept.ensemble.voting.weights[0] > 0.9


def test_a_member_that_spoils_the_vote_is_noticed_and_left_out(spoilt: Run) -> None:
    """With a harmful member, the equal vote is worse than its best member; the fit reports and corrects it."""
    path = spoilt.path
    hard = fit_report(path, FitSettings(select="all", mode="hard"))
    predictions, labels = answers_of(spoilt, "test")
    best = [member.name for member in spoilt.members()].index(hard.best_single)
    equal = compute_scores(soft_vote(predictions, np.full(3, 1 / 3)), labels)
    assert equal.accuracy < compute_scores(predictions[:, best], labels).accuracy
    mended = fit_report(path, FitSettings())
    assert mended.left_out == ("test_efficientnet",)
    assert {member.name for member in mended.ensemble.members} == {"test_byobnet", "test_resnet"}
    spoiling = mended.members["test_efficientnet"]
    assert spoiling.weight == 0
    assert spoiling.contribution is not None
    assert (spoiling.contribution.high or 0) < 0
    assert mended.outcome != "worse"
    assert mended.ensemble.scores["test"].accuracy > equal.accuracy
    check_numbers(spoilt, mended)


def test_a_greedy_fit_serves_those_it_takes(spoilt: Run) -> None:
    report = fit_report(spoilt.path, FitSettings(select="greedy"))
    predictions, labels = answers_of(spoilt, "validation")
    weights = greedy_weights(predictions, labels)
    names = [member.name for member in spoilt.members()]
    assert [member.name for member in report.ensemble.members] == [names[i] for i in np.flatnonzero(weights)]
    assert report.ensemble.voting.weights == pytest.approx(weights[weights > 0])
    assert "test_efficientnet" in report.left_out
    check_numbers(spoilt, report)


def test_fit_and_evaluate_agree_on_the_best_member(run: Run) -> None:
    report = fit_report(run.path, FitSettings(select="all"))
    evaluation = evaluate_run(run.path, EvaluationSettings())
    assert report.best_single == evaluation.best_single
    for name, figure in report.differences.items():
        expected = evaluation.differences[name]
        assert (figure.value, figure.low, figure.high) == pytest.approx((expected.value, expected.low, expected.high))


def test_a_stacked_vote_is_scored_by_cross_validation(run: Run) -> None:
    report = fit_report(run.path, FitSettings(mode="stack", select="all", alpha=0.2, risk=0.02))
    voting = report.ensemble.voting
    assert (voting.mode, voting.weights) == ("stack", (0.5, 0.5))
    predictions, labels = answers_of(run, "validation")
    stack = fit_stack(predictions, labels, 1.0)
    np.testing.assert_allclose(voting.coefficients or (), stack.coefficients, atol=1e-4)
    unseen = predict_out_of_fold(
        predictions, cross_fit(predictions, labels, np.arange(80), run.data().classes, l2=1.0, seed=0)
    )
    assert voting.temperature == pytest.approx(fit_temperature(unseen, labels))
    honest = temper(unseen, voting.temperature)
    assert report.ensemble.scores["validation"].nll == pytest.approx(compute_scores(honest, labels).nll)
    assert report.ensemble.conformal is not None
    np.testing.assert_allclose(
        report.ensemble.conformal.quantiles, np.add(conformal_quantiles(honest, labels, np.arange(80), 0.2), ROUNDING)
    )
    threshold = review_threshold(honest.max(axis=1), honest.argmax(axis=1) != labels, 0.02)
    assert report.ensemble.review.threshold == pytest.approx(threshold - ROUNDING, rel=1e-9)
    test_answers, test_labels = answers_of(run, "test")
    verdict = decide(test_answers, report.ensemble.rule)
    assert report.ensemble.scores["test"].nll == pytest.approx(compute_scores(verdict.probabilities, test_labels).nll)


def test_a_stated_prior_corrects_the_vote_and_weighs_its_scores(run: Run) -> None:
    plain = fit_report(run.path, FitSettings())
    shares = {"0": 0.4, "1": 0.1, "2": 0.1, "3": 0.4}
    report = fit_report(run.path, FitSettings(prior=shares))
    voting = report.ensemble.voting
    predictions, labels = answers_of(run, "test")
    here = np.bincount(answers_of(run, "validation")[1]) / 80
    np.testing.assert_allclose(voting.prior_ratio or (), np.array([0.4, 0.1, 0.1, 0.4]) / here)
    assert report.prior == pytest.approx(shares)
    assert (voting.weights, voting.temperature) == (plain.ensemble.voting.weights, plain.ensemble.voting.temperature)
    verdict = decide(predictions, report.ensemble.rule)
    weights = (np.array([0.4, 0.1, 0.1, 0.4]) / here)[labels]
    assert report.ensemble.scores["test"].accuracy == pytest.approx(
        np.average(verdict.label == labels, weights=weights)
    )
    assert report.reviewed["test"] == pytest.approx(np.average(verdict.review, weights=weights))
    notes = evaluate_run(run.path, EvaluationSettings()).notes
    assert any("corrected for other class frequencies" in note for note in notes)


def test_a_prior_is_estimated_from_unlabelled_images(run: Run, tmp_path: Path) -> None:
    """Write training images of two of the four classes, one of them three times as often."""
    table, pixels = run.table(), run.pixels()
    ones, threes = np.flatnonzero(table.labels == 1)[:60], np.flatnonzero(table.labels == 3)[:20]
    with (tmp_path / "ward.csv").open("w") as file:
        file.write("path\n")
        for index in (*ones, *threes):
            Image.fromarray(pixels[index]).save(tmp_path / f"{index}.png")
            file.write(f"{index}.png\n")
    by_folder = fit_report(run.path, FitSettings(prior_from=str(tmp_path)))
    by_table = fit_report(run.path, FitSettings(prior_from=str(tmp_path / "ward.csv")))
    for report in (by_folder, by_table):
        assert report.prior is not None
        np.testing.assert_allclose(list(report.prior.values()), [0, 0.75, 0, 0.25], atol=0.1)
        assert report.ensemble.voting.prior_ratio is not None


def test_patients_are_answered_where_they_are_known(run: Run) -> None:
    assert fit_report(run.path, FitSettings()).patient_level is None
    assert run.ensemble().patient_rule is None
    file = run.data_folder / "items.csv"
    with file.open() as opened:
        rows = list(csv.DictReader(opened))
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, rows[0])
        writer.writeheader()
        # Two patients of each class in each split.
        for number, row in enumerate(rows):
            writer.writerow(row | {"patient": f"{row['split']}-{row['label']}-{number % 2}"})
    report = fit_report(run.path, FitSettings(patient_rule="majority"))
    assert report.ensemble.patient_rule == run.ensemble().patient_rule == "majority"
    level, judged = report.patient_level, evaluate_run(run.path, EvaluationSettings()).patient_level
    assert level is not None
    assert judged is not None
    assert level.patients == 8
    assert level.by_rule["ensemble"] == judged.by_rule["ensemble"]


def test_runs_that_cannot_be_fitted_are_refused_and_unchanged(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "names.csv").write_text("slide\na.png\n")
    (tmp_path / "gone.csv").write_text("path\na.png\nb.png\n")
    (tmp_path / "long.csv").write_text(f"path\n{'a' * 300}.png\n")
    (tmp_path / "twice.csv").write_text("path,path\na.png,b.png\n")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no image")
    for settings, message in (
        (FitSettings(prior={"zero": 0.5, "1": 0.5}), "--prior: unknown class zero; available: "),
        (FitSettings(prior_from=str(tmp_path / "nowhere")), "is neither a folder of images nor a .csv"),
        (FitSettings(prior_from=str(tmp_path / "empty")), "expected images .*, got none"),
        (FitSettings(prior_from=str(tmp_path / "names.csv")), r"has no column path .*; it has: slide"),
        (FitSettings(prior_from=str(tmp_path / "gone.csv")), r"names images that do not exist: .*a\.png, and 1 more"),
        (FitSettings(prior_from=str(tmp_path / "long.csv")), r"names images that do not exist: .*a{300}\.png"),
        (FitSettings(prior_from=str(tmp_path / "twice.csv")), "expected one column path, got 2"),
        (FitSettings(prior_from=str(tmp_path / "broken")), r"a\.png can't be read: 8 bytes that are not a JPEG"),
    ):
        with pytest.raises(PlurumError, match=message):
            fit_report(run.path, settings)
    assert not run.ensemble_file.exists()


def test_unfinished_runs_are_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(MetadataError, match=r"is not a run: it has no run\.json"):
        fit_run(tmp_path)
    shutil.rmtree(run.path / "members")
    with pytest.raises(MetadataError, match="has no finished member"):
        fit_run(run.path)


def test_a_member_of_other_classes_is_refused(run: Run) -> None:
    path = run.member_folder("test_resnet") / "member.json"
    metadata = json.loads(path.read_text())
    path.write_text(json.dumps({**metadata, "classes": ["a", "b", "c", "d"]}))
    with pytest.raises(MetadataError, match="member 'test_resnet' has other classes"):
        fit_run(run.path)
    assert not run.ensemble_file.exists()


def test_a_checkpoint_that_was_changed_is_refused(run: Run) -> None:
    path = run.member_folder("test_resnet") / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(MetadataError, match=r"is not the file that member\.json names"):
        fit_run(run.path)
