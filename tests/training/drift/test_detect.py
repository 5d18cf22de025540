"""Predictions against other predictions, against a baseline, and against a server's counts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from plurum.errors import DataError, MetadataError, ServerError, SettingsError
from plurum.run import Run
from plurum.settings.drift import DriftSettings
from plurum.settings.options import settings_from
from plurum.spec import Baseline, Ensemble
from plurum.training.drift.answers import Answers, answers_from_verdict
from plurum.training.drift.detect import MOST_IMAGES, compare_answers, compare_counts, compare_with_baseline
from plurum.training.drift.served import counts_from_page
from plurum.training.fitting.baseline import baseline_from_verdict
from plurum.voting import VotingRule, decide, softmax
from tests.training.drift.samples import simulate

SETTINGS = DriftSettings()
QUICK = DriftSettings(permutations=200, alpha=0.05)


def test_another_mix_of_classes_and_other_confidence_are_drift() -> None:
    reference = simulate(0)
    mixed = compare_answers(reference, simulate(1, mix=(0.6, 0.2, 0.2)), SETTINGS)
    unsure = compare_answers(reference, simulate(2, separation=1.0), SETTINGS)
    p_values = {shift.output: shift.p_value for shift in mixed.shifts}
    assert mixed.is_found
    assert p_values["labels"] <= 0.01 < p_values["disagreement"]
    assert unsure.is_found
    assert {shift.output: shift.p_value for shift in unsure.shifts}["confidence"] <= 0.01
    assert mixed.answers_labels == tuple(np.bincount(simulate(1, mix=(0.6, 0.2, 0.2)).label) / 300)
    assert sum(mixed.reference_confidence) == pytest.approx(1)
    confidence = next(shift for shift in unsure.shifts if shift.output == "confidence")
    assert confidence.reference == pytest.approx(reference.confidence.mean())
    assert confidence.answers == pytest.approx(simulate(2, separation=1.0).confidence.mean())


def alarms(*, are_patients_known: bool, studies: int = 40) -> int:
    """Count false alarms at 5 % where a patient's ten images are nearly the same."""
    samples = [
        simulate(seed, per_patient=10, spread=2.0, are_patients_known=are_patients_known) for seed in range(2 * studies)
    ]
    pairs = zip(samples[::2], samples[1::2], strict=True)
    return sum(compare_answers(one, other, QUICK).is_found for one, other in pairs)


def test_patients_are_permuted_as_wholes() -> None:
    # At a level of 5 %, more than six of 40 have a probability of 0.3 %.
    assert alarms(are_patients_known=True) <= 6
    assert alarms(are_patients_known=False) > 20


def test_the_report_says_what_was_tested_and_assumed() -> None:
    one, other = simulate(0, per_patient=3), simulate(1, per_patient=3)
    found = compare_answers(one, replace(other, failed=2), SETTINGS)
    assert (found.unit, found.images, found.units) == ("patients", (300, 300), (100, 100))
    assert found.notes == ("2 images without a prediction are left out.",)
    unknown = compare_answers(simulate(0, are_patients_known=False), simulate(1, 15, are_patients_known=False), QUICK)
    assert unknown.unit == "images"
    assert unknown.notes[0].startswith("No patient is known. The test assumes independent images")
    assert unknown.notes[1] == "Only 15 images in a sample: shifts may not be found."
    same = compare_answers(one, one, QUICK)
    assert same.p_value == 1.0
    assert same.notes == ("100 patients are in both samples, which the test takes for different ones.",)


def test_many_images_are_drawn_from_by_patient() -> None:
    many = simulate(0, 12_000, per_patient=4)
    found = compare_answers(many, simulate(1), QUICK)
    assert found.images == (12_000, 300)
    assert found.units[0] == MOST_IMAGES // 4
    assert f"Of 12,000 images in sample 0, {MOST_IMAGES:,} were drawn for the test." in found.notes
    assert not found.is_found


def of_classes(number: int, seed: int, images: int = 60) -> Answers:
    names = tuple(f"class {index}" for index in range(number))
    logits = np.random.default_rng(seed).normal(0, 1, (images, 1, number))
    return answers_from_verdict("x", names, decide(softmax(logits), VotingRule((1.0,))))


def test_of_two_classes_one_probability_is_tested_and_of_many_the_largest() -> None:
    two = compare_answers(of_classes(2, 0), of_classes(2, 1), QUICK)
    assert [shift.output for shift in two.shifts] == ["labels", "review", "confidence", "disagreement", "p_class 0"]
    many = compare_answers(of_classes(30, 0), of_classes(30, 1), QUICK)
    assert sum(shift.output.startswith("p_") for shift in many.shifts) == 20
    assert "Of 30 classes, the probabilities of the 20 largest are tested." in many.notes


def test_outliers_are_tested_where_both_samples_have_them() -> None:
    one, other = simulate(0), simulate(1)
    rng = np.random.default_rng(0)
    first, second = replace(one, outlier=rng.random(300)), replace(other, outlier=rng.random(300) ** 3)
    found = compare_answers(first, second, SETTINGS)
    assert [shift.output for shift in found.shifts if shift.p_value <= 0.01] == ["outlier"]
    assert "outlier" not in {shift.output for shift in compare_answers(one, second, SETTINGS).shifts}


def test_other_classes_are_refused() -> None:
    with pytest.raises(DataError, match="expected the classes of the reference"):
        compare_answers(simulate(0), of_classes(2, 0), SETTINGS)


def test_too_few_permutations_for_an_alarm_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"permutations: expected enough for an alarm at alpha 0\.001"):
        settings_from(DriftSettings, alpha=0.001, permutations=500)


@pytest.fixture
def ensemble(run: Run) -> Ensemble:
    """Ensemble whose baseline is of digits that are recognised well."""
    verdict = decide(softmax(_logits(5, 400)), run.ensemble().rule)
    return run.ensemble().model_copy(update={"baseline": baseline_from_verdict(verdict, run.ensemble().rule)})


def _logits(seed: int, images: int, separation: float = 3.0) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1, (images, 2, 10))
    logits[np.arange(images), :, rng.integers(0, 10, images)] += separation
    return logits


def test_a_baseline_is_a_reference(ensemble: Ensemble) -> None:
    def compare(separation: float) -> tuple[bool, set[str]]:
        verdict = decide(softmax(_logits(6, 300, separation)), ensemble.rule)
        answers = answers_from_verdict("answers.csv", ensemble.classes, verdict, ["ann", "ann", *[""] * 298])
        found = compare_with_baseline(ensemble, "ensemble.json", answers, SETTINGS)
        assert found.notes[0].startswith("The reference holds counts only. The test assumes independent images")
        assert "Patients have several images" in found.notes[1]
        assert (found.images, found.reference) == ((400, 300), "ensemble.json")
        return found.is_found, {shift.output for shift in found.shifts if shift.p_value <= 0.01}

    assert compare(3.0) == (False, set())
    assert compare(2.0) == (True, {"confidence"})


def test_a_servers_counts_are_compared_with_the_baseline(ensemble: Ensemble) -> None:
    verdict = decide(softmax(_logits(6, 300)), ensemble.rule)
    assert ensemble.baseline is not None
    limits = (*ensemble.baseline.confidence_limits, float("inf"))
    confidence = np.take_along_axis(verdict.probabilities, verdict.label[:, None], axis=-1)[:, 0]
    labels = {ensemble.classes[label]: int((verdict.label == label).sum()) for label in set(verdict.label.tolist())}
    upto = {limit: int((confidence <= limit).sum()) for limit in limits}
    counts = counts_from_page(ensemble, ("server",), labels, upto, int(verdict.review.sum()))
    answers = answers_from_verdict("server", ensemble.classes, verdict)
    expected = compare_with_baseline(ensemble, "reference", answers, SETTINGS)
    assert compare_counts(ensemble, "reference", counts, SETTINGS) == expected
    nothing = counts_from_page(ensemble, ("server",), {}, {}, 0)
    with pytest.raises(DataError, match="server: expected at least one prediction"):
        compare_counts(ensemble, "reference", nothing, SETTINGS)
    with pytest.raises(ServerError, match="expected the classes and limits of confidence"):
        counts_from_page(ensemble, ("server",), {"elephant": 1}, {}, 0)


def test_rounding_of_a_baseline_leaves_no_image_out(ensemble: Ensemble) -> None:
    assert ensemble.baseline is not None
    values = ensemble.baseline.model_dump() | {"images": 1, "class_shares": (0.1,) * 10, "review_share": 0.5}
    small = ensemble.model_copy(update={"baseline": Baseline(**values)})
    verdict = decide(softmax(_logits(6, 30)), ensemble.rule)
    answers = answers_from_verdict("answers", ensemble.classes, verdict)
    found = compare_with_baseline(small, "small", answers, QUICK)
    assert not found.is_found
    assert found.notes[-1] == "Only 1 images in a sample: shifts may not be found."


def test_an_older_fit_has_no_baseline(run: Run) -> None:
    verdict = decide(softmax(_logits(6, 30)), run.ensemble().rule)
    answers = answers_from_verdict("answers", run.ensemble().classes, verdict)
    with pytest.raises(MetadataError, match="expected an ensemble with a baseline, got one of an older version"):
        compare_with_baseline(run.ensemble(), "ensemble.json", answers, SETTINGS)
