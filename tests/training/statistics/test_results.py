"""Evaluation of an ensemble, on simulated predictions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from plurum.cli.evaluate import _print as print_judgement
from plurum.sentences import percent_text
from plurum.settings.training import EvaluationSettings
from plurum.spec import PatientRule, Review
from plurum.training.evaluation.evaluate import EvaluationSubject, SplitPredictions, evaluate_predictions
from plurum.training.statistics.metrics import METRICS
from plurum.training.statistics.results import Evaluation
from plurum.voting import VotingRule, decide, softmax

CLASSES = ("CE", "LAA", "other")
NAMES = ("a", "b", "c")
SETTINGS = EvaluationSettings(draws=200)


def asked(
    rule: VotingRule, images: int, strengths: Sequence[float], seed: int, patients: Sequence[str] | None = None
) -> SplitPredictions:
    """Simulate predictions of members with these strengths and independent errors."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(CLASSES), images)
    logits = rng.normal(0, 1, (images, len(strengths), len(CLASSES)))
    logits[np.arange(images), :, labels] += np.array(strengths)
    return SplitPredictions(decide(softmax(logits), rule), labels, patients or [""] * images)


def subject(rule: VotingRule, names: tuple[str, ...] = NAMES, classes: tuple[str, ...] = CLASSES) -> EvaluationSubject:
    review = Review(threshold=rule.review_threshold, risk=0.05)
    return EvaluationSubject("clots", classes, names, "PyTorch", alpha=0.1, review=review)


RULE = VotingRule((0.4, 0.3, 0.3), temperature=0.6, quantiles=(0.9, 0.8, 0.85), review_threshold=0.5)


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    patients = [f"p{i // 4}" for i in range(400)]
    fitted_on = asked(RULE, 300, (2.0, 1.8, 1.6), seed=1)
    return evaluate_predictions(
        subject(RULE), asked(RULE, 400, (2.0, 1.8, 1.6), seed=2, patients=patients), fitted_on, SETTINGS
    )


def test_the_vote_of_good_members_beats_the_best_of_them(evaluation: Evaluation) -> None:
    assert [judged.name for judged in evaluation.judged] == ["ensemble", "best single", *NAMES]
    accuracy, nll = evaluation.differences["accuracy"], evaluation.differences["nll"]
    assert accuracy.low is not None
    assert accuracy.low > 0
    assert nll.high is not None
    assert nll.high < 0
    ensemble_, best = evaluation.judged[:2]
    for name, difference in evaluation.differences.items():
        one, other = ensemble_.metrics[name].value, best.metrics[name].value
        assert one is not None
        assert other is not None
        assert difference.value == pytest.approx(one - other)


def test_differences_are_paired() -> None:
    """Both use the same draws, so a vote of one member equals that member in every draw."""
    rule = VotingRule((1.0,))
    predictions = asked(rule, 200, (1.5,), seed=1)
    found = evaluate_predictions(subject(rule, ("a",)), predictions, predictions, SETTINGS)
    accuracy, difference = found.ensemble.metrics["accuracy"], found.differences["accuracy"]
    assert accuracy.low != accuracy.high
    assert (difference.low, difference.value, difference.high) == (0, 0, 0)


def test_every_interval_is_around_its_figure(evaluation: Evaluation) -> None:
    figures = [figure for judged in evaluation.judged for figure in judged.metrics.values()]
    figures += [f for judged in evaluation.judged for by in judged.per_class.values() for f in by.values()]
    assert len(figures) == 5 * (len(METRICS) + 3 * 6)
    for figure in figures:
        assert figure.value is not None
        assert figure.low is not None
        assert figure.high is not None
        # ECE and similar metrics are biased upwards in draws, but less than this.
        assert figure.low - 0.05 <= figure.value <= figure.high + 0.05
        assert figure.low < figure.high


def test_the_best_single_is_chosen_on_validation_images_not_on_evaluated_ones() -> None:
    fitted_on = asked(RULE, 300, (1.0, 3.0, 1.0), seed=1)
    found = evaluate_predictions(subject(RULE), asked(RULE, 300, (3.0, 1.0, 1.0), seed=2), fitted_on, SETTINGS)
    assert found.best_single == "b"
    best, b = found.judged[1], found.judged[3]
    assert best.metrics["accuracy"] == b.metrics["accuracy"]


def test_the_best_single_has_a_temperature_as_the_vote_has() -> None:
    """A correct member with low confidence gets a temperature too."""
    rule = VotingRule((1.0,), temperature=0.4)
    unsure = asked(rule, 500, (1.0,), seed=1)
    logits = np.log(unsure.verdict.member_probabilities) * 0.4
    same = SplitPredictions(decide(softmax(logits), rule), unsure.labels, unsure.patients)
    found = evaluate_predictions(subject(rule, ("a",)), same, same, EvaluationSettings(draws=100, split="validation"))
    assert found.best_single_temperature == pytest.approx(0.4, rel=0.1)
    ensemble_, best, alone = (judged.metrics["nll"].value for judged in found.judged)
    assert ensemble_ == pytest.approx(best, abs=1e-3)
    assert alone is not None
    assert ensemble_ is not None
    assert alone > ensemble_ + 0.05
    assert found.diversity is None
    assert any("too optimistic" in note for note in found.notes)


def test_prediction_sets_and_review_by_hand() -> None:
    rule = VotingRule((1.0,), quantiles=(0.5, 0.7), review_threshold=0.65)
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.6, 0.4], [0.65, 0.35], [0.2, 0.8], [0.75, 0.25]])
    labels = np.array([0, 0, 1, 1, 1, 1])
    predictions = SplitPredictions(decide(probabilities[:, None], rule), labels, [""] * 6)
    one = subject(rule, ("a",), ("CE", "LAA"))
    found = evaluate_predictions(one, predictions, predictions, EvaluationSettings(draws=100))
    sets = found.sets
    # Sets: {0}, {0,1}, {0,1}, {0,1}, {1}, {0}; the last lacks its label.
    assert sets.sizes == (3, 3)
    assert sets.mean_size == 1.5
    assert sets.coverage.value == pytest.approx(5 / 6)
    assert sets.by_class["CE"].coverage.value == 1
    assert sets.by_class["LAA"].coverage.value == pytest.approx(3 / 4)
    assert (sets.by_class["CE"].mean_size, sets.by_class["LAA"].mean_size) == (1.5, 1.5)
    assert sets.wished == pytest.approx(0.9)
    review = found.review
    assert review.share.value == 0.5
    assert review.accuracy_kept.value == pytest.approx(2 / 3)
    assert review.accuracy_sent.value == pytest.approx(1 / 3)
    assert found.confusion == ((2, 0), (3, 1))


def test_sets_cover_what_conformal_prediction_promises() -> None:
    """Over 200 draws of calibration and test images, the coverage of each class is at least 1 - alpha."""
    from plurum.training.statistics.calibration import conformal_quantiles

    plain = VotingRule((1.0,))
    covered: dict[str, list[float]] = {name: [] for name in CLASSES}
    for seed in range(200):
        calibration = asked(plain, 150, (1.5,), seed=2 * seed)
        groups = np.arange(150)
        quantiles = conformal_quantiles(calibration.verdict.probabilities, calibration.labels, groups, 0.1)
        rule = VotingRule((1.0,), quantiles=quantiles)
        verdict = decide(asked(plain, 200, (1.5,), seed=2 * seed + 1).verdict.member_probabilities, rule)
        labels = asked(plain, 200, (1.5,), seed=2 * seed + 1).labels
        inside = verdict.prediction_set[np.arange(200), labels]
        for index, name in enumerate(CLASSES):
            covered[name].append(inside[labels == index].mean())
    for name in CLASSES:
        # About 50 calibration images a class: exactly 1 - alpha at least, 1 - alpha + 1 / 51 at most, ± 3 errors.
        assert 0.9 - 0.01 <= np.mean(covered[name]) <= 0.9 + 1 / 40 + 0.01


def test_patient_level_is_judged_by_patient(evaluation: Evaluation) -> None:
    level = evaluation.patient_level
    assert level is not None
    # Labels were drawn per image, so few patients have a single label.
    assert level.patients < 20
    assert level.images == 4 * level.patients
    assert any("different labels" in note for note in evaluation.notes)
    assert evaluation.drawn == "patients"
    assert level.by_rule["ensemble"]["majority"].nll is None


def test_patient_level_by_hand() -> None:
    rule = VotingRule((1.0,))
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.45, 0.55], [0.2, 0.8], [0.3, 0.7]])
    predictions = SplitPredictions(
        decide(probabilities[:, None], rule), np.array([0, 0, 0, 1, 1]), ["p", "p", "p", "q", ""]
    )
    one = subject(rule, ("a",), ("CE", "LAA"))
    found = evaluate_predictions(one, predictions, predictions, EvaluationSettings(draws=100))
    level = found.patient_level
    assert level is not None
    assert (level.patients, level.images, found.patients) == (2, 4, 2)
    scores = level.by_rule["ensemble"]
    assert [scores[rule_].accuracy.value for rule_ in ("mean", "max", "majority")] == [1, 1, 0.5]
    mean = scores["mean"].nll
    assert mean is not None
    assert mean.value == pytest.approx(-(np.log(1.75 / 3) + np.log(0.8)) / 2)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (None, "by mean probability"),
        ("mean", "by mean probability"),
        ("max", "by each class's highest probability"),
        ("majority", "by the majority of their images"),
    ],
)
def test_the_commands_line_on_patients_follows_the_ensembles_rule(
    evaluation: Evaluation, capsys: pytest.CaptureFixture[str], rule: PatientRule | None, said: str
) -> None:
    level = evaluation.patient_level
    assert level is not None
    print_judgement(evaluation.model_copy(update={"patient_rule": rule}), Path("report.html"))
    right = percent_text(level.by_rule["ensemble"][rule or "mean"].accuracy)
    assert f"Of {level.patients} patients, {right} are classified correctly, {said}." in capsys.readouterr().out
    one = dataclasses.replace(subject(RULE), patient_rule=rule)
    predictions = asked(RULE, 40, (2.0, 1.8, 1.6), seed=3)
    assert evaluate_predictions(one, predictions, predictions, EvaluationSettings(draws=100)).patient_rule == rule


def test_intervals_are_by_patient_where_patients_are_known() -> None:
    """Ten copies of each image, as one patient, give the same intervals as single images."""
    forty = asked(RULE, 40, (2.0, 1.8, 1.6), seed=3)
    rows = np.repeat(np.arange(40), 10)
    copies = decide(forty.verdict.member_probabilities[rows], RULE)
    names = [f"p{row}" for row in rows]
    by_patient = evaluate_predictions(
        subject(RULE), SplitPredictions(copies, forty.labels[rows], names), forty, SETTINGS
    )
    by_image = evaluate_predictions(
        subject(RULE), SplitPredictions(copies, forty.labels[rows], [""] * 400), forty, SETTINGS
    )
    small = evaluate_predictions(subject(RULE), forty, forty, SETTINGS)
    figures = [found.ensemble.metrics["nll"] for found in (by_patient, by_image, small)]
    ends = np.array([(figure.low, figure.high) for figure in figures], dtype=float)
    width = ends[:, 1] - ends[:, 0]
    assert width[0] > 2 * width[1]
    np.testing.assert_allclose(ends[0], ends[2])


def test_a_missing_class_is_reported_and_raises_no_error() -> None:
    predictions = asked(RULE, 60, (2.0, 1.8, 1.6), seed=4)
    rows = np.flatnonzero((predictions.labels != 2) | (np.arange(60) < 3))
    one_left = rows[: np.flatnonzero(predictions.labels[rows] == 2)[0] + 20]
    labels = predictions.labels[one_left].copy()
    labels[labels == 2] = 0
    verdict = decide(predictions.verdict.member_probabilities[one_left], RULE)
    found = evaluate_predictions(
        subject(RULE), SplitPredictions(verdict, labels, [""] * len(labels)), predictions, SETTINGS
    )
    assert found.class_counts[2] == 0
    assert found.ensemble.per_class["other"]["roc_auc"].value is None
    assert found.ensemble.metrics["roc_auc"].value is not None
    assert found.curves["other"].roc is None
    assert found.sets.by_class["other"].coverage.value is None
    assert any("No test image is of class other" in note for note in found.notes)


def test_a_class_that_some_draws_miss_is_said() -> None:
    predictions = asked(RULE, 40, (2.0, 1.8, 1.6), seed=5)
    labels = np.where(predictions.labels == 2, 0, predictions.labels)
    labels[0] = 2
    found = evaluate_predictions(
        subject(RULE), SplitPredictions(predictions.verdict, labels, [""] * 40), predictions, SETTINGS
    )
    # A single image is missing from about 1 / e of the draws.
    (note,) = (note for note in found.notes if "draws" in note)
    assert 50 < int(note.split()[1]) < 100
    assert found.ensemble.per_class["other"]["recall"].low is not None


def test_few_patients_are_said() -> None:
    predictions = asked(RULE, 12, (2.0, 1.8, 1.6), seed=6)
    found = evaluate_predictions(subject(RULE), predictions, predictions, SETTINGS)
    assert any("Only 12 images" in note for note in found.notes)


def test_all_of_a_class_alone_breaks_nothing() -> None:
    predictions = asked(RULE, 30, (2.0, 1.8, 1.6), seed=7)
    found = evaluate_predictions(
        subject(RULE),
        SplitPredictions(predictions.verdict, np.zeros(30, dtype=np.int64), ["p"] * 30),
        predictions,
        SETTINGS,
    )
    assert found.ensemble.metrics["roc_auc"].value is None
    assert Evaluation.model_validate_json(found.model_dump_json()) == found


def test_it_survives_json(evaluation: Evaluation) -> None:
    assert Evaluation.model_validate_json(evaluation.model_dump_json()) == evaluation


def test_the_same_seed_gives_the_same_judgement(evaluation: Evaluation) -> None:
    patients = [f"p{i // 4}" for i in range(400)]
    predictions = asked(RULE, 400, (2.0, 1.8, 1.6), seed=2, patients=patients)
    fitted_on = asked(RULE, 300, (2.0, 1.8, 1.6), seed=1)
    assert evaluate_predictions(subject(RULE), predictions, fitted_on, SETTINGS) == evaluation
    other = evaluate_predictions(subject(RULE), predictions, fitted_on, EvaluationSettings(draws=200, seed=1))
    assert other.ensemble.metrics["accuracy"].low != evaluation.ensemble.metrics["accuracy"].low


def test_progress_names_all_that_are_judged() -> None:
    told: list[str] = []
    predictions = asked(RULE, 40, (2.0, 1.8, 1.6), seed=8)

    def progress(count: int, note: str) -> None:
        told.extend([note] * count)

    evaluate_predictions(subject(RULE), predictions, predictions, SETTINGS, progress)
    assert told == ["ensemble", "best single", *NAMES]


def test_curves_are_thin_and_whole(evaluation: Evaluation) -> None:
    for name, curve in evaluation.risk_coverage.items():
        assert 2 <= len(curve.x) == len(curve.y) <= 210
        right = next(judged.metrics["accuracy"].value for judged in evaluation.judged if judged.name == name)
        assert right is not None
        assert curve.x[-1] == 1
        assert curve.y[-1] == pytest.approx(1 - right, abs=1e-4)
    for curves in evaluation.curves.values():
        assert curves.roc is not None
        assert (curves.roc.x[0], curves.roc.y[0], curves.roc.x[-1], curves.roc.y[-1]) == (0, 0, 1, 1)
    assert sum(found.images for found in evaluation.reliability) == 400
    gaps = [
        found.images * abs(found.accuracy - found.confidence)
        for found in evaluation.reliability
        if found.accuracy is not None and found.confidence is not None
    ]
    assert sum(gaps) / 400 == pytest.approx(evaluation.ensemble.metrics["ece"].value)
