"""Evaluate predictions of PyTorch or of a server against labels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from plurum.figures import Drift
from plurum.predictions.arrays import Floats, Ints
from plurum.run import number_patients
from plurum.sentences import review_condition
from plurum.settings.drift import DriftSettings
from plurum.settings.training import EvaluationSettings
from plurum.training.drift.answers import answers_from_verdict
from plurum.training.drift.detect import compare_answers
from plurum.training.evaluation.patient_scores import score_patients
from plurum.training.evaluation.subject import EvaluationSubject, SplitPredictions
from plurum.training.statistics.bootstrap import Bootstrap
from plurum.training.statistics.calibration import fit_temperature, tempered_losses
from plurum.training.statistics.curves import precision_recall_curve, reliability_bins, risk_coverage_curve, roc_curve
from plurum.training.statistics.decision_curves import decision_curve
from plurum.training.statistics.decisions import estimate_fractions
from plurum.training.statistics.diagnoses import Diagnosis, diagnose
from plurum.training.statistics.diversity import measure_diversity
from plurum.training.statistics.estimates import Estimate, estimate_from_draws
from plurum.training.statistics.groups import GroupedFigures, split_by_column
from plurum.training.statistics.metrics import LabelledPredictions, MetricDraws, Scorer
from plurum.training.statistics.patients import Patients, group_by_patient
from plurum.training.statistics.results import (
    ClassCurves,
    ClassPredictionSets,
    EvaluatedModel,
    Evaluation,
    PredictionSets,
    ReviewScores,
)

__all__ = ["EvaluationSubject", "SplitPredictions", "best_single", "evaluate_predictions"]


# With fewer patients (or images), percentile intervals are too narrow.
_FEW = 30


def evaluate_predictions(
    subject: EvaluationSubject,
    evaluated: SplitPredictions,
    fitted_on: SplitPredictions,
    settings: EvaluationSettings,
    progress: Callable[[int, str], None] = lambda _count, _note: None,
) -> Evaluation:
    """Evaluate an ensemble, its members, and the best of them.

    Args:
        subject: Ensemble to evaluate.
        evaluated: Predictions to evaluate.
        fitted_on: Predictions for the validation images, which alone choose the best single member.
        settings: Options of the evaluation.
        progress: Called after each of `members + 2` models, with its name.
    """
    labels, classes = evaluated.labels, subject.classes
    groups = number_patients(evaluated.patients)
    bootstrap = Bootstrap(groups, settings.draws, settings.seed)
    best, temperature = best_single(fitted_on.verdict.member_probabilities, fitted_on.labels)
    candidates = {
        "ensemble": evaluated.predictions,
        "best single": evaluated.best_predictions(best, temperature, subject),
    }
    candidates |= {name: evaluated.member_predictions(index, subject) for index, name in enumerate(subject.members)}
    results: dict[str, tuple[MetricDraws, MetricDraws]] = {}
    for name, predictions in candidates.items():
        results[name] = _compute_metrics(Scorer(predictions), bootstrap)
        progress(1, name)
    patients = group_by_patient(evaluated.patients, labels)
    drift = _test_drift(subject, evaluated, fitted_on, settings) if settings.split != "validation" else None
    return Evaluation(
        name=subject.name,
        answered_by=subject.answered_by,
        split=settings.split,
        images=len(labels),
        patients=len(set(evaluated.patients) - {""}),
        classes=classes,
        class_counts=tuple(np.bincount(labels, minlength=len(classes)).tolist()),
        draws=settings.draws,
        drawn="patients" if patients else "images",
        seed=settings.seed,
        best_single=subject.members[best],
        best_single_temperature=temperature,
        judged=tuple(_evaluated_model(name, result, classes) for name, result in results.items()),
        differences=_differences(results["ensemble"], results["best single"]),
        confusion=_count_confusion(evaluated),
        curves=_curves(evaluated.predictions, classes),
        reliability=reliability_bins(evaluated.predictions),
        risk_coverage={name: risk_coverage_curve(predictions) for name, predictions in candidates.items()},
        sets=_summarise_sets(evaluated, subject, bootstrap),
        review=_summarise_review(evaluated, subject, bootstrap),
        diversity=measure_diversity(
            subject.decide_members(evaluated.verdict.member_probabilities), labels, subject.members
        ),
        patient_level=score_patients(patients, candidates, settings.draws, settings.seed, subject.point),
        patient_rule=subject.patient_rule,
        positive=subject.positive,
        prevalence=settings.prevalence,
        diagnoses=_diagnoses(evaluated, subject, bootstrap, settings.prevalence),
        by_group=_by_group(evaluated, subject, bootstrap),
        drift=drift,
        notes=(
            *subject.notes,
            *_notes(evaluated, classes, settings, results["ensemble"][1], patients),
            *_drift_notes(drift, settings.split),
        ),
    )


def _test_drift(
    subject: EvaluationSubject, evaluated: SplitPredictions, fitted_on: SplitPredictions, settings: EvaluationSettings
) -> Drift:
    """Return the test of the predictions against those for validation images, without their labels."""
    reference, answers = (
        answers_from_verdict(f"{name} images", subject.classes, one.verdict, one.patients)
        for name, one in (("validation", fitted_on), (settings.split, evaluated))
    )
    return compare_answers(reference, answers, DriftSettings(seed=settings.seed))


def _drift_notes(drift: Drift | None, split: str) -> list[str]:
    if drift is None or not drift.is_found:
        return []
    most = max((shift for shift in drift.shifts if shift.p_value <= drift.alpha), key=lambda shift: shift.distance)
    what = f"{most.output} most, by {most.distance:.2f} (p = {drift.p_value:.4f})"
    return [
        f"The {split} images differ from the validation images: {what}. No promise of coverage or risk holds for them."
    ]


def best_single(members: Floats, labels: Ints) -> tuple[int, float]:
    """Return the index of the member with the lowest NLL, and its temperature.

    Each member gets its own temperature, because the vote has one too.

    Args:
        members: Predictions for the validation images, `[images, members, classes]`.
        labels: True classes, `[images]`.
    """
    losses = [tempered_losses(members[:, index], labels).mean() for index in range(members.shape[1])]
    best = int(np.argmin(losses))
    return best, fit_temperature(members[:, best], labels)


def _compute_metrics(scorer: Scorer, bootstrap: Bootstrap) -> tuple[MetricDraws, MetricDraws]:
    """Return the metrics over all images (as a single draw), and those of each bootstrap draw."""
    plain = scorer(np.ones((len(bootstrap.groups), 1), dtype=np.float32))
    drawn = [scorer(counts) for counts in bootstrap.blocks()]
    return plain, MetricDraws(
        overall={name: np.concatenate([part.overall[name] for part in drawn]) for name in plain.overall},
        per_class={name: np.concatenate([part.per_class[name] for part in drawn], axis=1) for name in plain.per_class},
    )


def _evaluated_model(name: str, result: tuple[MetricDraws, MetricDraws], classes: tuple[str, ...]) -> EvaluatedModel:
    plain, drawn = result
    return EvaluatedModel(
        name=name,
        kind="ensemble" if name == "ensemble" else "best" if name == "best single" else "member",
        metrics={key: estimate_from_draws(values[0], drawn.overall[key]) for key, values in plain.overall.items()},
        per_class={
            label: {
                key: estimate_from_draws(values[index, 0], drawn.per_class[key][index])
                for key, values in plain.per_class.items()
            }
            for index, label in enumerate(classes)
        },
    )


def _differences(one: tuple[MetricDraws, MetricDraws], other: tuple[MetricDraws, MetricDraws]) -> dict[str, Estimate]:
    return {
        name: estimate_from_draws(values[0] - other[0].overall[name][0], one[1].overall[name] - other[1].overall[name])
        for name, values in one[0].overall.items()
    }


def _count_confusion(evaluated: SplitPredictions) -> tuple[tuple[int, ...], ...]:
    classes = evaluated.verdict.probabilities.shape[1]
    counts = np.bincount(evaluated.labels * classes + evaluated.verdict.label, minlength=classes**2)
    return tuple(tuple(row) for row in counts.reshape(classes, classes).tolist())


def _curves(predictions: LabelledPredictions, classes: tuple[str, ...]) -> dict[str, ClassCurves]:
    return {
        name: ClassCurves(
            roc=roc_curve(predictions.probabilities[:, index], predictions.labels == index),
            precision_recall=precision_recall_curve(predictions.probabilities[:, index], predictions.labels == index),
        )
        for index, name in enumerate(classes)
    }


def _summarise_sets(evaluated: SplitPredictions, subject: EvaluationSubject, bootstrap: Bootstrap) -> PredictionSets:
    inside, labels = evaluated.verdict.prediction_set, evaluated.labels
    covered = np.take_along_axis(inside, labels[:, None], axis=-1)[:, 0]
    sizes = inside.sum(axis=1)
    of_class = [labels == index for index in range(len(subject.classes))]
    overall, *by_class = estimate_fractions(
        [covered] * (len(of_class) + 1), [np.ones_like(covered), *of_class], bootstrap
    )
    return PredictionSets(
        wished=None if subject.alpha is None else 1 - subject.alpha,
        coverage=overall,
        mean_size=float(sizes.mean()),
        sizes=tuple(np.bincount(sizes, minlength=len(of_class) + 1)[1:].tolist()),
        by_class={
            name: ClassPredictionSets(
                images=int(rows.sum()), coverage=coverage, mean_size=float(sizes[rows].mean()) if rows.any() else None
            )
            for name, rows, coverage in zip(subject.classes, of_class, by_class, strict=True)
        },
    )


def _summarise_review(evaluated: SplitPredictions, subject: EvaluationSubject, bootstrap: Bootstrap) -> ReviewScores:
    sent, correct = evaluated.verdict.review, ~evaluated.predictions.wrong
    share, kept, others = estimate_fractions([sent, correct, correct], [np.ones_like(sent), ~sent, sent], bootstrap)
    return ReviewScores(
        threshold=subject.review.threshold,
        wished_risk=subject.review.risk,
        share=share,
        accuracy_kept=kept,
        accuracy_sent=others,
        condition=None if subject.rule is None else review_condition(subject.rule, subject.classes),
    )


def _diagnoses(
    evaluated: SplitPredictions, subject: EvaluationSubject, bootstrap: Bootstrap, prevalence: float | None
) -> tuple[Diagnosis, ...]:
    """Return the figures of the decision for the positive class, or for each class: of all, then of the unreviewed."""
    verdict, found = evaluated.verdict, []
    has_curve = subject.positive is not None or len(subject.classes) == 2
    for index, name in enumerate(subject.classes):
        if subject.positive not in {None, name}:
            continue
        true = evaluated.labels == index
        masks = verdict.label == index, true
        whole = diagnose(name, masks, bootstrap, prevalence=prevalence)
        curve = decision_curve(verdict.probabilities[:, index], true, bootstrap, prevalence) if has_curve else None
        found += [whole.model_copy(update={"decision_curve": curve})]
        found += [diagnose(name, masks, bootstrap, among=~verdict.review, prevalence=prevalence)]
    return tuple(found)


def _by_group(
    evaluated: SplitPredictions, subject: EvaluationSubject, bootstrap: Bootstrap
) -> tuple[GroupedFigures, ...]:
    if not evaluated.columns:
        return ()
    verdict, labels = evaluated.verdict, evaluated.labels
    everything, correct = np.ones(len(labels), dtype=np.bool_), ~evaluated.predictions.wrong
    fractions = {
        "accuracy": (everything, correct),
        "accuracy without review": (~verdict.review, correct),
        "coverage": (everything, np.take_along_axis(verdict.prediction_set, labels[:, None], axis=-1)[:, 0]),
    }
    for index, name in enumerate(subject.classes):
        if name == subject.positive:
            fractions["sensitivity"] = labels == index, correct
            fractions["specificity"] = labels != index, verdict.label != index
    better = tuple(fractions)
    fractions["needs review"] = everything, verdict.review
    fractions |= {f"decided {name}": (everything, verdict.label == index) for index, name in enumerate(subject.classes)}
    return split_by_column(evaluated.columns, fractions, bootstrap, higher_is_better=better)


def _notes(
    evaluated: SplitPredictions,
    classes: tuple[str, ...],
    settings: EvaluationSettings,
    drawn: MetricDraws,
    patients: Patients | None,
) -> list[str]:
    notes = []
    if settings.split != "test":
        notes.append(f"The vote was fitted on the same {settings.split} images, so its figures are too optimistic.")
    missing = [name for index, name in enumerate(classes) if not (evaluated.labels == index).any()]
    if missing:
        notes.append(
            f"No {settings.split} image is of class {' or '.join(missing)}, so there are no figures for it; means over "
            f"classes leave it out."
        )
    # Classes without any image are missing from every draw.
    empty = np.isnan(drawn.per_class["recall"]).sum(axis=0) > len(missing)
    if empty.any():
        notes.append(
            f"In {int(empty.sum())} of {settings.draws} draws, another class had no image; means over classes leave it "
            f"out there."
        )
    number = int(number_patients(evaluated.patients).max()) + 1
    if number < _FEW:
        what = "patients" if patients else "images"
        few = what if number > 1 else what.removesuffix("s")
        notes.append(f"Only {number} {few}: intervals are rough and probably too narrow.")
    if patients and patients.torn:
        notes.append(
            f"Patients left out because their images have different labels: {', '.join(patients.torn[:5])}"
            f"{f' and {len(patients.torn) - 5} more' if len(patients.torn) > 5 else ''}."
        )
    return notes
