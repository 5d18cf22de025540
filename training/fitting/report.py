"""Results of a fit."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from plurum.spec import Ensemble, Scores
from plurum.training.statistics.curves import Curve
from plurum.training.statistics.judgement import Figure, PatientLevel
from plurum.training.statistics.metrics import METRICS
from plurum.training.statistics.wording import beyond_chance

__all__ = ["FitReport", "MemberFit"]

FittedSplit = Literal["validation", "test"]


class MemberFit(BaseModel):
    """One member of the run.

    Attributes:
        weight: In the vote; 0 for one that was left out, or has no say.
        contribution: The validation NLL that the vote would have more without it, nats, when it was last looked at,
            with a 95 % interval. None for a member that is alone.
        scores: Its own, by split.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight: float
    contribution: Figure | None
    scores: dict[FittedSplit, Scores]


class FitReport(BaseModel):
    """What a fit found out.

    With a prior, images count as many times as their class is more frequent by it, in all figures but those of
    contributions, of weights, and of patients.

    Attributes:
        version: Of this format.
        ensemble: As it was written.
        members: All of the run's, by name, in the ensemble or not.
        select: How members were chosen, as asked for.
        weights_tried: What was fitted for those not spoiling the vote, by name, whether or not it was taken; None where
            the vote is stacked.
        nll_saved: 95 % interval of the validation NLL that these, or stacking, save against equal weights, nats, where
            each image is answered by a fit that has not seen its patient.
        reviewed: By split: the share of answers that go to a person.
        covered: By split: the share of true classes that are in their prediction sets.
        risk_coverage: Of validation images, surest first.
        best_single: The member that answers validation images best, each at its own temperature.
        differences: Ensemble less that member on test images, by `accuracy` and `nll`, with 95 % intervals.
        patient_level: Of test images; None where no patient is known.
        prior: By class: the shares that the vote is corrected for; None where it is not.
        unfinished: Members that the run was begun with and that are not trained to their end, by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    ensemble: Ensemble
    members: dict[str, MemberFit]
    select: Literal["backward", "greedy", "all"]
    weights_tried: dict[str, float] | None
    nll_saved: tuple[float, float]
    reviewed: dict[FittedSplit, float]
    covered: dict[FittedSplit, float]
    risk_coverage: Curve
    best_single: str
    differences: dict[str, Figure]
    patient_level: PatientLevel | None
    prior: dict[str, float] | None
    unfinished: tuple[str, ...] = ()

    @property
    def outcome(self) -> Literal["better", "no different", "mixed", "worse"]:
        """How the ensemble answers test images beside its best member, beyond chance."""
        said = {beyond_chance(figure, METRICS[name].better) for name, figure in self.differences.items()} - {""}
        if len(said) == 2:
            return "mixed"
        return "better" if "better" in said else "worse" if "worse" in said else "no different"

    @property
    def left_out(self) -> tuple[str, ...]:
        """Names of the members that are not in the ensemble."""
        kept = {member.name for member in self.ensemble.members}
        return tuple(name for name in self.members if name not in kept)
