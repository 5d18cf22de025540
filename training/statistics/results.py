"""Results of an evaluation, as shown in the terminal, in JSON and CSV files and in the report.

None marks a figure that does not exist, such as the ROC-AUC of a class without images.
"""

from __future__ import annotations

from typing import Literal

from plurum.figures import (
    ClassPredictionSets,
    Diagnosis,
    Drift,
    Estimate,
    GroupedFigures,
    PatientLevel,
    PatientScores,
    PredictionSets,
    ReviewScores,
)
from plurum.run import Split
from plurum.spec import Metadata, PatientRule
from plurum.training.statistics.curves import Bin, Curve
from plurum.training.statistics.diversity import Diversity

__all__ = [
    "CascadeScores",
    "ClassCurves",
    "ClassPredictionSets",
    "CorruptedFigures",
    "Estimate",
    "EvaluatedModel",
    "Evaluation",
    "PatientLevel",
    "PatientScores",
    "PredictionSets",
    "ReviewScores",
]


class EvaluatedModel(Metadata):
    """Metrics of the ensemble, of its best member, or of a member.

    Attributes:
        name: `ensemble`, `best single`, or a member's name.
        kind: Kind of the model. `best` is the member with the lowest NLL on the images that the vote was fitted on,
            with its own temperature fitted to them; the vote's prior correction applies to it too.
        metrics: Figures by the names in `plurum.training.statistics.metrics.METRICS`.
        per_class: Figures by class, then by the names in `plurum.training.statistics.metrics.PER_CLASS`.
    """

    name: str
    kind: Literal["ensemble", "best", "member"]
    metrics: dict[str, Estimate]
    per_class: dict[str, dict[str, Estimate]]


class ClassCurves(Metadata):
    """Curves of the ensemble for one class against all others.

    Attributes:
        roc: False-positive rate → true-positive rate.
        precision_recall: Recall → precision.
    """

    roc: Curve | None
    precision_recall: Curve | None


class CorruptedFigures(Metadata):
    """Figures of the ensemble on images that were corrupted in one way.

    Attributes:
        kind: Kind of corruption, a key of `plurum.training.evaluation.corruptions.CORRUPTIONS`; `none` for the images
            as they are.
        strength: 1, 2 or 3; 0 for the images as they are.
        setting: Setting of the corruption, in words.
        accuracy: Fraction of correct predictions.
        nll: Mean negative log-likelihood of the true class, in nats.
        ece: Expected calibration error.
        review: Fraction of predictions that need review.
        caught: Fraction of the wrong predictions that need review.
        outliers: Fraction of images that an outlier test finds; None without such a test.
        wrong_alone: Fraction of all images that are predicted wrongly and need no review.
    """

    kind: str
    strength: int
    setting: str
    accuracy: Estimate
    nll: float
    ece: float
    review: Estimate
    caught: Estimate
    outliers: Estimate | None
    wrong_alone: Estimate


class CascadeScores(Metadata):
    """Figures of a cascade, with 95 % intervals by patient.

    Attributes:
        share: Fraction of images that leave at an early stage.
        cost: Mean cost of an image, as a fraction of that of all members.
        accuracy: Fraction of correct predictions.
        nll: Mean negative log-likelihood of the true class, in nats.
        differences: Cascade minus whole vote on the same images, by `accuracy` and `nll`.
        review: Fraction of predictions that need review.
        patients: Number of patients; an image of an unknown patient counts as one.
        hurt: Number of patients with an image whose label is not the whole vote's correct one, or whose review is lost.
    """

    share: Estimate
    cost: Estimate
    accuracy: Estimate
    nll: Estimate
    differences: dict[str, Estimate]
    review: Estimate
    patients: int
    hurt: int


class Evaluation(Metadata):
    """Evaluation of an ensemble on the images of one split.

    Attributes:
        version: Version of the file format.
        name: Name of the ensemble.
        answered_by: Source of the predictions: `PyTorch`, or the server's address.
        split: Split of the images.
        images: Number of images.
        patients: Number of known patients.
        classes: Class names, in the order of the outputs.
        class_counts: Number of images of each class.
        draws: Number of bootstrap resamples.
        drawn: Unit of resampling: patients (an image without one counts as a patient), or images.
        seed: Random seed of the bootstrap.
        best_single: Name of the best member on the images that the vote was fitted on.
        best_single_temperature: Temperature of the best member, fitted on the same images.
        judged: Metrics of the ensemble, of the best member, then of every member.
        differences: Ensemble minus best member, by metric, with the interval of the paired difference.
        confusion: Confusion counts, `[classes, classes]`; rows are true classes, columns predicted classes.
        curves: Curves by class.
        reliability: Predictions of the ensemble by confidence.
        risk_coverage: Risk–coverage curve by name of the model.
        sets: Prediction sets of the ensemble.
        review: Predictions with and without review.
        diversity: Diversity of the members; None for a single member.
        patient_level: Scores by patient; None if no patient is known.
        patient_rule: Rule of the ensemble for a patient's images; None if none was chosen.
        positive: Class that counts as positive; None if none is chosen.
        prevalence: Stated fraction of the positive class where the ensemble serves; None if none is stated.
        diagnoses: Figures of the decision for the positive class, or else for each class against the others: of all
            predictions, then of those without review.
        by_group: Figures by group, for each requested column of the manifest.
        drift: Test of these predictions against those for validation images; None for validation images themselves.
        corruptions: Figures on the images as they are, then on corrupted ones; empty if none were requested.
        cascade: Figures of the cascade; all others are of the whole vote. None without a cascade, or if a server
            predicted.
        ensemble_sha256: SHA-256 of the run's `ensemble.json`; None in older files.
        notes: Remarks on missing figures and on limits of the evaluation, one sentence each.
    """

    version: Literal[1] = 1
    name: str
    answered_by: str
    split: Split
    images: int
    patients: int
    classes: tuple[str, ...]
    class_counts: tuple[int, ...]
    draws: int
    drawn: Literal["patients", "images"]
    seed: int
    best_single: str
    best_single_temperature: float
    judged: tuple[EvaluatedModel, ...]
    differences: dict[str, Estimate]
    confusion: tuple[tuple[int, ...], ...]
    curves: dict[str, ClassCurves]
    reliability: tuple[Bin, ...]
    risk_coverage: dict[str, Curve]
    sets: PredictionSets
    review: ReviewScores
    diversity: Diversity | None
    patient_level: PatientLevel | None
    patient_rule: PatientRule | None = None
    positive: str | None = None
    prevalence: float | None = None
    diagnoses: tuple[Diagnosis, ...] = ()
    by_group: tuple[GroupedFigures, ...] = ()
    drift: Drift | None = None
    corruptions: tuple[CorruptedFigures, ...] = ()
    cascade: CascadeScores | None = None
    ensemble_sha256: str | None = None
    notes: tuple[str, ...]

    @property
    def ensemble(self) -> EvaluatedModel:
        """Metrics of the ensemble."""
        return self.judged[0]
