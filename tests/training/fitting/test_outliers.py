"""Fitting the outlier test, with detectors and reference computed again."""

from __future__ import annotations

import csv
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
import torch
from timm.models import ByobNet, ResNet

from plurum.detectors import FeatureModel, read_detector
from plurum.errors import NoFeaturesError, SettingsError
from plurum.files import sha256_of
from plurum.models import model_from_checkpoint, normalise
from plurum.predictions.arrays import Floats
from plurum.run import Run
from plurum.spec import Member, OutlierRule
from plurum.training import FitReport, FitSettings, fit_report
from plurum.training.fitting import fit
from plurum.training.fitting.outliers import least_alpha, outlier_lines
from plurum.training.inference import features
from plurum.training.inference.ensembles import ensemble_from_run
from plurum.training.inference.predictions import decide_splits
from plurum.voting import REVIEW_OUTLIER

ALPHA = 0.05
SETTINGS = FitSettings(select="all", outlier_alpha=ALPHA, draws=100)


@pytest.fixture
def run(unfitted: Run) -> Run:
    """Return a copy of the finished run for one test."""
    return unfitted


def novelty_of(run: Run, pixels: Any) -> Floats:
    """Return the novelty of images by member, from the files of the run."""
    found = []
    for member in run.members():
        model = FeatureModel(model_from_checkpoint(member, run.checkpoint(member)))
        with torch.inference_mode():
            known = model(normalise(torch.from_numpy(np.array(pixels)), member.image))[1]
            found.append(read_detector(run.detector(member.name))(known)[:, 0].double().numpy())
    return np.stack(found, axis=1)


def rule_of(report: FitReport) -> OutlierRule:
    assert report.ensemble.outliers is not None
    return report.ensemble.outliers


def change_rows(run: Run, change: Callable[[dict[str, str]], None]) -> None:
    path = run.data_folder / "items.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        change(row)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_members_get_detectors_and_validation_images_are_the_reference(run: Run) -> None:
    report = fit_report(run.path, SETTINGS)
    rule = rule_of(report)
    assert run.ensemble() == report.ensemble
    assert report.ensemble.version == 2
    assert (rule.alpha, rule.members, rule.weights) == (ALPHA, (True, True), (0.5, 0.5))
    assert rule.detectors == tuple(sha256_of(run.detector(member.name)) for member in run.members())
    assert (rule.split, rule.patients, rule.counts) == ("validation", 80, None)
    table, pixels = run.table(), run.pixels()
    # The rule raises scores a little, see `with_reference`.
    scores = novelty_of(run, pixels[table.rows("validation")]).mean(axis=1)
    np.testing.assert_allclose(rule.reference, np.sort(scores), rtol=3e-3, atol=3e-3)
    test = report.ensemble.rule.outliers
    assert test is not None
    assert report.outliers is not None
    expected = test.test(novelty_of(run, pixels[table.rows("test")]))[1].mean()
    assert report.outliers.flagged == pytest.approx(expected, abs=1 / 80)


def test_the_test_finds_noise_and_inverted_images(run: Run) -> None:
    test = fit_report(run.path, SETTINGS).ensemble.rule.outliers
    assert test is not None
    pixels = run.pixels()[run.table().rows("test")]
    noise = np.random.default_rng(0).integers(0, 256, pixels.shape, dtype=np.uint8)
    for unlike in (noise, 255 - pixels):
        assert test.test(novelty_of(run, unlike))[1].mean() > 0.9


def test_images_set_aside_for_calibration_are_the_reference(run: Run) -> None:
    aside = set(run.table().rows("train")[::2].tolist())
    change_rows(run, lambda row: row.update(split="calibration") if int(row["index"]) in aside else None)
    report = fit_report(run.path, SETTINGS)
    rule = rule_of(report)
    assert (rule.split, rule.patients) == ("calibration", len(aside))
    scores = novelty_of(run, run.pixels()[run.table().rows("calibration")]).mean(axis=1)
    np.testing.assert_allclose(rule.reference, np.sort(scores), rtol=3e-3, atol=3e-3)
    assert not any("estimate" in line for line in outlier_lines(report.ensemble, report.outliers))


def test_images_of_one_patient_share_a_count_of_1(run: Run) -> None:
    """Each four rows are a patient's."""
    change_rows(run, lambda row: row.update(patient=f"{row['split']} {int(row['index']) // 4}"))
    rule = rule_of(fit_report(run.path, SETTINGS))
    assert rule.patients == len({row // 4 for row in run.table().rows("validation").tolist()})
    assert rule.counts is not None
    assert sum(rule.counts) == pytest.approx(rule.patients)
    assert max(rule.counts) < 1


def test_a_member_sees_each_test_image_once(run: Run) -> None:
    """Validation images are seen again by the detectors, because the vote selects the members first."""
    seen = list[int]()

    def count(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], _: object) -> None:
        if isinstance(module, ResNet | ByobNet):
            seen.append(len(inputs[0]))

    hook = torch.nn.modules.module.register_module_forward_hook(count)
    try:
        fit_report(run.path, SETTINGS)
    finally:
        hook.remove()
    train, validation, test = (len(run.table().rows(split)) for split in ("train", "validation", "test"))
    assert sum(seen) == 2 * (train + 2 * validation + test)


def test_a_refused_fit_leaves_the_files_of_the_last_one(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal comes after the detectors are fitted."""
    fit_report(run.path, SETTINGS)
    files = [run.ensemble_file, *(run.detector(member.name) for member in run.members())]
    changed = [path.stat().st_mtime_ns for path in files]

    def refuse(*_: object) -> None:
        raise SettingsError("--sensitivity: not reachable")

    monkeypatch.setattr(fit, "fit_sets_and_review", refuse)
    with pytest.raises(SettingsError, match="not reachable"):
        fit_report(run.path, SETTINGS)
    assert [path.stat().st_mtime_ns for path in files] == changed


def test_a_second_fit_gives_the_same_files(run: Run) -> None:
    first = rule_of(fit_report(run.path, SETTINGS))
    assert rule_of(fit_report(run.path, SETTINGS)).detectors == first.detectors


def test_reviews_in_the_report_and_the_baseline_include_outliers(run: Run) -> None:
    report = fit_report(run.path, SETTINGS)
    splits: tuple[Literal["validation", "test"], ...] = ("validation", "test")
    verdicts = decide_splits(run, report.ensemble, splits)
    assert ((verdicts["test"].review_reason & REVIEW_OUTLIER) > 0).any()
    for split, verdict in verdicts.items():
        assert report.reviewed[split] == pytest.approx(verdict.review.mean(), abs=1 / 80)
    assert report.ensemble.baseline is not None
    assert report.ensemble.baseline.review_share == pytest.approx(report.reviewed["validation"])


def test_the_ensemble_in_python_tests_for_outliers_too(run: Run) -> None:
    ensemble = fit_report(run.path, SETTINGS).ensemble
    expected = decide_splits(run, ensemble, ("test",))["test"]
    found = ensemble_from_run(run.path).predict_with_uncertainty(np.array(run.pixels()[run.table().rows("test")]))
    np.testing.assert_allclose(found.outlier, expected.outlier, atol=0.03)
    assert found.outlier.min() < 1


def test_without_the_test_nothing_of_it_is_written(run: Run) -> None:
    report = fit_report(run.path, SETTINGS.model_copy(update={"no_outliers": True}))
    assert report.ensemble.outliers is None
    assert report.outliers is None
    assert report.ensemble.version == 1
    assert not any(run.detector(member.name).exists() for member in run.members())
    assert outlier_lines(report.ensemble, report.outliers) == []


def refuse_features(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    original = features.feature_model

    def refuse(run: Run, member: Member) -> FeatureModel:
        if member.name in names:
            raise NoFeaturesError("the model has no linear layer")
        return original(run, member)

    monkeypatch.setattr(features, "feature_model", refuse)


def test_a_member_without_features_is_named_and_the_other_carries_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_features(monkeypatch, "test_byobnet")
    report = fit_report(run.path, SETTINGS)
    rule = rule_of(report)
    assert (rule.members, rule.weights) == ((False, True), (0.0, 1.0))
    assert rule.detectors[0] is None
    assert not run.detector("test_byobnet").exists()
    lines = outlier_lines(report.ensemble, report.outliers)
    assert lines[0] == "outliers: the test leaves out test_byobnet: the model has no linear layer"


def test_without_any_features_there_is_no_test(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_features(monkeypatch, "test_byobnet", "test_resnet")
    report = fit_report(run.path, SETTINGS)
    assert report.ensemble.outliers is None
    assert (
        outlier_lines(report.ensemble, report.outliers)[-1] == "outliers: no test, because it leaves out every member"
    )


def test_without_training_images_there_is_no_test(run: Run) -> None:
    change_rows(run, lambda row: row.update(split="certification") if row["split"] == "train" else None)
    report = fit_report(run.path, SETTINGS)
    assert report.ensemble.outliers is None
    assert report.outliers is not None
    assert set(report.outliers.without.values()) == {"the run has no training images"}


def test_an_alpha_that_no_p_value_reaches_is_told_with_the_smallest_that_does(run: Run) -> None:
    report = fit_report(run.path, SETTINGS.model_copy(update={"outlier_alpha": 0.01}))
    warned = [line for line in outlier_lines(report.ensemble, report.outliers) if line.startswith("--outlier-alpha")]
    expected = (
        "--outlier-alpha: expected at least 0.0124 with 80 validation patients, got 0.01, below which no p-value can "
        "be. Increase it, or set more patients aside"
    )
    assert warned == [expected]
    assert report.outliers is not None
    assert report.outliers.flagged == 0


@pytest.mark.parametrize(("patients", "alpha"), [(1, 0.501), (80, 0.0124), (99, 0.01001), (100, 0.00991)])
def test_the_smallest_alpha_is_just_above_the_smallest_p_value(patients: int, alpha: float) -> None:
    assert least_alpha(patients) == alpha
    assert 1 / (patients + 1) < alpha < 1.02 / (patients + 1)
