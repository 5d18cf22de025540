"""Ensemble to evaluate, and its predictions for the images of a split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from plurum.predictions.arrays import Floats, Ints
from plurum.spec import PatientRule, Review
from plurum.training.statistics.metrics import LabelledPredictions
from plurum.voting import DecisionPoint, Verdict, VotingRule, decide_at, decide_members, temper, with_prior

__all__ = ["EvaluationSubject", "SplitPredictions"]


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
