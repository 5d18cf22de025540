"""Evaluate predictions of PyTorch or of a server against labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from plurum.predictions.arrays import Floats, Ints
from plurum.run import number_patients
from plurum.settings.training import EvaluationSettings
from plurum.spec import PatientRule, Review
from plurum.training.evaluation.patient_scores import score_patients
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
from plurum.training.statistics.wording import review_condition
from plurum.voting import DecisionPoint, Verdict, VotingRule, decide_at, decide_members, temper, with_prior

__all__ = ["EvaluationSubject", "SplitPredictions", "best_single", "evaluate_predictions"]


# With fewer patients (or images), percentile intervals are too narrow.
_FEW = 30


@dataclass(frozen=True)
class EvaluationSubject:
    """Ensemble to evaluate, with its targets.

    Attributes:
        name: Name of the ensemble.
        classes: Class names, in the order of the probabilities.
        members: Names of the members, in the order of the verdicts.
        answered_by: Source of the predictions: `PyTorch`, or the server's address.
        alpha: Largest fraction of images whose true class the prediction set may miss; None if sets hold only the
            winner.
        review: Review threshold and target risk.
        prior_ratio: Assumed class frequencies divided by those of the validation images; None without correction.
        patient_rule: Rule that combines the predictions for a patient's images; None if none was chosen.
        positive: Class that counts as positive; None if none is chosen.
        notes: Remarks on these predictions, one sentence each.
        rule: Voting rule, whose operating point also decides for members and patients; None takes the most probable
            class.
    """

    name: str
    classes: tuple[str, ...]
    members: tuple[str, ...]
    answered_by: str
    alpha: float | None
    review: Review
    prior_ratio: tuple[float, ...] | None = None
    patient_rule: PatientRule | None = None
    positive: str | None = None
    notes: tuple[str, ...] = ()
    rule: VotingRule | None = None

    @property
    def point(self) -> DecisionPoint | None:
        """Operating point; None decides for the most probable class."""
        return None if self.rule is None else self.rule.point

    def decide_members(self, members: Floats) -> Ints:
        """Return the members' own decisions, `[images, members]`, for their probabilities."""
        return members.argmax(axis=-1) if self.rule is None else decide_members(members, self.rule)


@dataclass(frozen=True)
class SplitPredictions:
    """Predictions for the images of one split, with labels and patients.

    Attributes:
        verdict: Predictions of the ensemble and its members; all probabilities are finite.
        labels: True classes, `[images]`; at least one.
        patients: Patient of each image; an empty string if unknown.
        columns: Columns of the manifest to evaluate by group, `[images]` each, by name.
    """

    verdict: Verdict
    labels: Ints
    patients: Sequence[str]
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def predictions(self) -> LabelledPredictions:
        """Predictions of the ensemble."""
        return LabelledPredictions(self.verdict.probabilities, self.verdict.label, self.labels)

    def member_predictions(self, member: int, subject: EvaluationSubject) -> LabelledPredictions:
        """Return the predictions of one member."""
        members = self.verdict.member_probabilities[:, member]
        return LabelledPredictions(members, subject.decide_members(members[:, None])[:, 0], self.labels)

    def best_predictions(self, member: int, temperature: float, subject: EvaluationSubject) -> LabelledPredictions:
        """Return the predictions of the best member with its own temperature and the ensemble's prior correction."""
        tempered = temper(self.verdict.member_probabilities[:, member], temperature)
        probabilities = with_prior(tempered, subject.prior_ratio)
        return LabelledPredictions(probabilities, decide_at(probabilities, subject.point), self.labels)


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
        notes=(*subject.notes, *_notes(evaluated, classes, settings, results["ensemble"][1], patients)),
    )


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
