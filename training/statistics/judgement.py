"""What a judgement of an ensemble says: one value for the table, the JSON, the CSV and the report.

None stands where a figure does not exist: the ROC-AUC of a class that no image has, say.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from plurum.run import Split
from plurum.spec import PatientRule
from plurum.training.statistics.curves import Bin, Curve
from plurum.training.statistics.diversity import Diversity

__all__ = [
    "ClassCurves",
    "ClassSets",
    "Figure",
    "Judged",
    "Judgement",
    "PatientLevel",
    "PatientScores",
    "PredictionSets",
    "Reviewed",
]


class _Value(BaseModel):
    """Frozen; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Figure(_Value):
    """A figure and how far it could be off.

    Attributes:
        value: Of all images.
        low: Lower end of the 95 % bootstrap interval.
        high: Upper end.
    """

    value: float | None
    low: float | None
    high: float | None


class Judged(_Value):
    """One of those judged.

    Attributes:
        name: `ensemble`, `best single`, or a member's name.
        kind: The best single is the member that was best on the images that the vote was fitted on, with a
            temperature of its own fitted to them, as the vote has one, and corrected for other shares of the classes
            where the vote is.
        metrics: By the names in `plurum.training.statistics.metrics.METRICS`.
        per_class: By class, then by the names in `plurum.training.statistics.metrics.PER_CLASS`.
    """

    name: str
    kind: Literal["ensemble", "best", "member"]
    metrics: dict[str, Figure]
    per_class: dict[str, dict[str, Figure]]


class ClassSets(_Value):
    """The prediction sets of one class's images.

    Attributes:
        images: How many.
        coverage: Share of them whose set holds the class.
        mean_size: Classes in a set.
    """

    images: int
    coverage: Figure
    mean_size: float | None


class PredictionSets(_Value):
    """Conformal prediction sets.

    Attributes:
        wished: Coverage that was asked for, 1 - alpha; None where sets hold the winner alone.
        coverage: Of all images.
        mean_size: Classes in a set.
        sizes: How many sets hold 1, 2, … classes.
        by_class: By the true class.
    """

    wished: float | None
    coverage: Figure
    mean_size: float
    sizes: tuple[int, ...]
    by_class: dict[str, ClassSets]


class Reviewed(_Value):
    """Answers that go to a person, and those that don't.

    Attributes:
        threshold: Confidence below which an answer goes.
        wished_risk: Share of wrong answers among the others that was asked for; None where none was.
        share: Of answers that go.
        accuracy_kept: Among the answers that don't go.
        accuracy_sent: Among those that do.
    """

    threshold: float
    wished_risk: float | None
    share: Figure
    accuracy_kept: Figure
    accuracy_sent: Figure


class PatientScores(_Value):
    """One answer per patient.

    Attributes:
        accuracy: Share of patients answered rightly.
        nll: Of the true class, nats; None for majority votes, whose shares are no probabilities.
    """

    accuracy: Figure
    nll: Figure | None


class PatientLevel(_Value):
    """Patients, each answered by all their images.

    Attributes:
        patients: How many.
        images: How many of theirs.
        by_rule: By the name of who is judged, then by rule.
    """

    patients: int
    images: int
    by_rule: dict[str, dict[PatientRule, PatientScores]]


class ClassCurves(_Value):
    """The ensemble's curves for one class against all others.

    Attributes:
        roc: False-positive rate → true-positive rate.
        precision_recall: Recall → precision.
    """

    roc: Curve | None
    precision_recall: Curve | None


class Judgement(_Value):
    """An ensemble's answers to the images of one split, judged.

    Attributes:
        version: Of this format.
        name: The ensemble's.
        answered_by: `PyTorch`, or the server's address.
        split: Of which images.
        images: How many.
        patients: How many different ones are known.
        classes: Names, in the order of the outputs.
        class_counts: Images of each.
        draws: Of the bootstrap.
        drawn: What is drawn: patients (images without one count as one each), or images.
        seed: What they are drawn from.
        best_single: The member that was best where the vote was fitted.
        best_single_temperature: Fitted there too.
        judged: The ensemble, the best single, then every member.
        differences: Ensemble less best single, by metric, with the interval of the paired difference.
        confusion: `[classes, classes]` counts: rows are true classes, columns answers of the ensemble.
        curves: By class.
        reliability: The ensemble's answers by confidence.
        risk_coverage: By the name of who is judged.
        sets: Prediction sets.
        review: Answers sent to a person.
        diversity: None for a single member.
        patient_level: None where no patient is known.
        patient_rule: Which of its rules is the ensemble's; None where none was chosen.
        notes: What could not be computed, and what to mind, a line each.
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
    judged: tuple[Judged, ...]
    differences: dict[str, Figure]
    confusion: tuple[tuple[int, ...], ...]
    curves: dict[str, ClassCurves]
    reliability: tuple[Bin, ...]
    risk_coverage: dict[str, Curve]
    sets: PredictionSets
    review: Reviewed
    diversity: Diversity | None
    patient_level: PatientLevel | None
    patient_rule: PatientRule | None = None
    notes: tuple[str, ...]

    @property
    def ensemble(self) -> Judged:
        """The first of those judged."""
        return self.judged[0]
