"""Figures that training measures, with their 95 % intervals.

`RUN/report/metrics.json` and `RUN/report/fit.json` hold them, and the model card of an export states them. None marks a
figure that does not exist.
"""

from __future__ import annotations

from typing import Literal

from plurum.spec import Metadata, PatientRule

__all__ = [
    "FEWEST_PATIENTS",
    "FIGURES",
    "SIGNIFICANT",
    "ClassPredictionSets",
    "DecisionCurve",
    "DecisionFigures",
    "Diagnosis",
    "Drift",
    "Estimate",
    "GroupFigures",
    "GroupedFigures",
    "OutputShift",
    "PatientLevel",
    "PatientScores",
    "PointScores",
    "PredictionSets",
    "ReviewScores",
    "SiteChange",
    "SiteFigures",
]

FEWEST_PATIENTS = 20
FIGURES = {
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "ppv": "PPV",
    "npv": "NPV",
    "lr_positive": "LR+",
    "lr_negative": "LR-",
    "youden": "Youden's J",
    "ppv_at_prevalence": "PPV at the prevalence",
    "npv_at_prevalence": "NPV at the prevalence",
}
SIGNIFICANT = 0.05


class Estimate(Metadata):
    """Figure with its 95 % interval.

    Attributes:
        value: Figure over all images.
        low: Lower end of the interval.
        high: Upper end of the interval.
    """

    value: float | None
    low: float | None
    high: float | None


class DecisionCurve(Metadata):
    """Net benefit of a class's probability as a test, by threshold probability.

    Attributes:
        prevalence: Fraction of positives that the net benefit is for.
        thresholds: Threshold probabilities; images with at least this probability are decided as positive.
        net_benefit: Net benefit of the ensemble; at most the prevalence.
        low: Lower end of its 95 % interval.
        high: Upper end of its 95 % interval.
        treat_all: Net benefit of deciding all images as positive. Deciding none has a net benefit of 0.
    """

    prevalence: float
    thresholds: tuple[float, ...]
    net_benefit: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    treat_all: tuple[float, ...]


class Diagnosis(Metadata):
    """Figures of the decision for one class.

    Attributes:
        positive: Class that counts as positive; all others count as negative.
        answers: Predictions that are counted: all of them, or those without review.
        true_positives: Images of the class that are predicted as it.
        false_negatives: Images of the class that are predicted as another.
        false_positives: Images of other classes that are predicted as it.
        true_negatives: Images of other classes that are predicted as one of these.
        intervals: Method of the intervals: closed forms for independent images, or draws of patients.
        figures: Figures by the names in `FIGURES`; those at a prevalence only if it is stated. A missing value is
            undefined or infinite.
        decision_curve: Net benefit over the threshold probability; None if only the decision is evaluated.
    """

    positive: str
    answers: Literal["all", "unreviewed"]
    true_positives: int
    false_negatives: int
    false_positives: int
    true_negatives: int
    intervals: Literal["by image", "by patient"]
    figures: dict[str, Estimate]
    decision_curve: DecisionCurve | None = None


class DecisionFigures(Metadata):
    """Figures of decisions between a positive class and the other.

    Attributes:
        number: Number of decisions, of images or of patients.
        sensitivity: Fraction of the positive class that is decided positive.
        specificity: Fraction of the other class that is decided negative.
        ppv: Fraction of positive decisions that are correct.
        npv: Fraction of negative decisions that are correct.
    """

    number: int
    sensitivity: Estimate
    specificity: Estimate
    ppv: Estimate
    npv: Estimate


class PointScores(Metadata):
    """Figures of the decisions at an operating point.

    The first three are None with several classes, the costs without costs.

    Attributes:
        images: Decisions for all images.
        unreviewed: Decisions for images that need no review.
        patients: Decisions for patients, whose predictions the patient rule combines; None if no patient is known.
        cost: Mean cost of a decision for an image, without review.
        usual_cost: Mean cost if the most probable class were decided.
    """

    images: DecisionFigures | None = None
    unreviewed: DecisionFigures | None = None
    patients: DecisionFigures | None = None
    cost: Estimate | None = None
    usual_cost: Estimate | None = None


class GroupFigures(Metadata):
    """Figures of one group.

    Attributes:
        name: Value of the column; `unknown` for a missing one.
        images: Number of images.
        patients: Number of patients; an image of an unknown patient counts as one.
        is_judged: False if the patients are too few for a judgement.
        figures: Fractions with 95 % intervals, by name; those of few patients too.
        p_values: P-values of the difference from all other images, corrected for all tests, by figure; none for a group
            that is not judged.
    """

    name: str
    images: int
    patients: int
    is_judged: bool
    figures: dict[str, Estimate]
    p_values: dict[str, float]


class GroupedFigures(Metadata):
    """Figures by the groups of one column.

    Attributes:
        column: Column of the manifest.
        groups: Groups by name.
        worst: Judged group with the lowest value, by figure; none for figures without a better direction.
    """

    column: str
    groups: tuple[GroupFigures, ...]
    worst: dict[str, str]


class ClassPredictionSets(Metadata):
    """Prediction sets of one class's images.

    Attributes:
        images: Number of images of the class.
        coverage: Fraction of these images whose set contains the class.
        mean_size: Mean number of classes in a set; None without images.
    """

    images: int
    coverage: Estimate
    mean_size: float | None


class PredictionSets(Metadata):
    """Conformal prediction sets.

    Attributes:
        wished: Target coverage, 1 - alpha; None if sets hold only the winner.
        coverage: Fraction of all images whose set contains the true class.
        mean_size: Mean number of classes in a set.
        sizes: Numbers of sets with 1, 2, … classes.
        by_class: Prediction sets by true class.
    """

    wished: float | None
    coverage: Estimate
    mean_size: float
    sizes: tuple[int, ...]
    by_class: dict[str, ClassPredictionSets]


class ReviewScores(Metadata):
    """Predictions with and without review.

    Attributes:
        threshold: Confidence below which a prediction needs review.
        wished_risk: Target error rate of predictions without review; None if there is no target.
        share: Fraction of predictions that need review.
        accuracy_kept: Accuracy of predictions without review.
        accuracy_sent: Accuracy of predictions that need review.
        condition: Condition for review at the operating point, in words; None is the threshold and the prediction set.
    """

    threshold: float
    wished_risk: float | None
    share: Estimate
    accuracy_kept: Estimate
    accuracy_sent: Estimate
    condition: str | None = None


class PatientScores(Metadata):
    """Scores of one prediction per patient.

    Attributes:
        accuracy: Fraction of patients with a correct prediction.
        nll: Mean negative log-likelihood of the true class, in nats; None for majority votes, whose vote shares are
            not probabilities.
    """

    accuracy: Estimate
    nll: Estimate | None


class PatientLevel(Metadata):
    """Scores of predictions for patients, each from all images of the patient.

    Attributes:
        patients: Number of patients.
        images: Number of their images.
        by_rule: Scores by name of the model, then by rule.
    """

    patients: int
    images: int
    by_rule: dict[str, dict[PatientRule, PatientScores]]


class SiteChange(Metadata):
    """Change of a figure by a calibration at a site, on the site's images.

    Attributes:
        before: Figure with the old calibration.
        after: Figure with the new one, where each image is predicted by a calibration without its patient.
        difference: After minus before, paired by bootstrap draws of patients.
    """

    before: Estimate
    after: Estimate
    difference: Estimate


class SiteFigures(Metadata):
    """Figures of a calibration on a site's images, as `plurum calibrate` measured them with PyTorch.

    Attributes:
        by_class: Number of images by class.
        changes: Changes by figure: `nll`, `accuracy` and `ece`. They judge the procedure, with the choice of the
            strength in it.
        decisions: Figures of the decisions at the operating point, before and after; None without a positive class.
        reviewed: Fraction of the site's predictions that need review, before and after.
        effective_patients: Number of patients of a random sample that say as much as weighted images (Kish 1965); None
            if the images have no weights. With weights, all figures are weighted.
        lines: What else was fitted and what stayed, one sentence each.
    """

    by_class: dict[str, int]
    changes: dict[str, SiteChange]
    decisions: dict[Literal["before", "after"], DecisionFigures] | None
    reviewed: dict[Literal["before", "after"], float]
    effective_patients: float | None = None
    lines: tuple[str, ...]


class OutputShift(Metadata):
    """Difference of one output between a reference and other predictions.

    Attributes:
        output: `labels`, `review`, `confidence`, `disagreement`, `outlier`, or `p_CLASS`.
        distance: Largest difference of the two distribution functions (Kolmogorov–Smirnov). For labels and review, the
            fraction of predictions that would have to change (total variation). 0 to 1.
        p_value: P-value of no difference, corrected for the number of outputs.
        reference: Mean of the output in the reference; for review the fraction. None where it is unknown.
        answers: Mean of the output in the other predictions.
    """

    output: str
    distance: float
    p_value: float
    reference: float | None
    answers: float | None


class Drift(Metadata):
    """Two-sample test of predictions against a reference.

    Attributes:
        version: Version of the file format.
        reference: Name of the reference: a file, an ensemble's metadata, or a split.
        answers: Names of the tested predictions.
        classes: Class names, in the order of `reference_labels`.
        images: Number of images of the reference, then of the other predictions.
        units: Number of independent units, patients or images, of the reference, then of the other predictions.
        unit: Unit that is permuted between the samples.
        alpha: Largest probability of a false alarm, over all outputs together.
        permutations: Number of random permutations.
        seed: Random seed of the permutations.
        shifts: Difference of each tested output.
        reference_labels: Fraction of predictions by label in the reference.
        answers_labels: Fraction of the other predictions by label.
        confidence_limits: Upper limits of all bins of confidence but the last.
        reference_confidence: Fraction of predictions by bin of confidence in the reference, one more than limits.
        answers_confidence: Fraction of the other predictions by bin of confidence.
        notes: Remarks on what the test assumes and leaves out, one sentence each.
    """

    version: Literal[1] = 1
    reference: str
    answers: tuple[str, ...]
    classes: tuple[str, ...]
    images: tuple[int, int]
    units: tuple[int, int]
    unit: Literal["patients", "images"]
    alpha: float
    permutations: int
    seed: int
    shifts: tuple[OutputShift, ...]
    reference_labels: tuple[float, ...]
    answers_labels: tuple[float, ...]
    confidence_limits: tuple[float, ...]
    reference_confidence: tuple[float, ...]
    answers_confidence: tuple[float, ...]
    notes: tuple[str, ...]

    @property
    def p_value(self) -> float:
        """P-value of no difference in any output."""
        return min(shift.p_value for shift in self.shifts)

    @property
    def is_found(self) -> bool:
        """True if any output differs significantly."""
        return self.p_value <= self.alpha
