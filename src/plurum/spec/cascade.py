"""Metadata of a cascade: cheap members settle the images that leave no doubt, and all members vote on the others."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from plurum.spec.decisions import Conformal, Voting
from plurum.spec.fields import Metadata, Share
from plurum.spec.outliers import OutlierRule

__all__ = ["CascadeCost", "CascadePromise", "CascadeRule", "EarlyStage"]

_Inner = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]


class EarlyStage(Metadata):
    """Stage at which an image may leave the cascade: the vote of the members that have run.

    An image leaves if the stage's vote does not need review, its members agree on the label, and the label's
    probability is at least `leave`. Operating point and review limit are those of the whole vote.

    Attributes:
        members: Number of members that have run, the first of the cascade's order.
        voting: Vote of these members, in the order in which they run.
        conformal: Prediction sets of the stage; None holds the label alone.
        outliers: Outlier test of the stage, by the members that have run, in the order in which they run; None tests
            none. Its alpha may be higher than that of the whole vote, so that no outlier leaves early.
        leave: Probability of the label from which an image leaves, a 32-bit number.
        share: Fraction of images that leave at the stage.
    """

    members: Annotated[int, Field(ge=1)]
    voting: Voting
    conformal: Conformal | None = None
    outliers: OutlierRule | None = None
    leave: Share
    share: Share

    @model_validator(mode="after")
    def _parts_agree(self) -> EarlyStage:
        if self.voting.mode != "soft":
            raise ValueError(f"voting: expected mode soft in a cascade, got {self.voting.mode}")
        if len(self.voting.weights) != self.members:
            raise ValueError(f"voting: expected {self.members} weights, got {len(self.voting.weights)}")
        if self.outliers is not None and len(self.outliers.members) != self.members:
            raise ValueError(f"outliers: expected {self.members} members, got {len(self.outliers.members)}")
        if float(np.float32(self.leave)) != self.leave:
            raise ValueError(f"leave: expected a 32-bit number, got {self.leave}")
        return self


class CascadeCost(Metadata):
    """Mean cost of an image, as a fraction of that of all members, with its 95 % interval by patient.

    Attributes:
        value: Mean, 0 to 1.
        low: Lower limit.
        high: Upper limit.
    """

    value: Share
    low: Share
    high: Share


class CascadePromise(Metadata):
    """Upper limit on the fraction of hurt patients among new patients like those that it was certified on.

    A patient is hurt if the label of an image differs from that of the whole vote where the vote is correct, or if the
    whole vote reviews an image and the cascade does not.

    Attributes:
        risk: Largest fraction of hurt patients.
        confidence: Probability with which the promise holds, together with those on review risk and operating point.
        patients: Certification patients.
        hurt: Certification patients that are hurt.
        bound: Upper limit of Clopper and Pearson of the fraction, from these patients.
        p_value: P-value of the hypothesis that the fraction is higher than `risk`.
        status: `provisional` until export has repeated the test with the predictions that are served.
        precision: Coarsest precision of the graphs that certified the promise; None while it is provisional.
    """

    risk: _Inner
    confidence: _Inner
    patients: Annotated[int, Field(ge=1)]
    hurt: Annotated[int, Field(ge=0)]
    bound: Share
    p_value: Share
    status: Literal["provisional", "certified"] = "provisional"
    precision: Literal["fp32", "fp16", "int8"] | None = None

    @model_validator(mode="after")
    def _parts_agree(self) -> CascadePromise:
        if (self.status == "certified") != (self.precision is not None):
            raise ValueError(f"precision: expected one with status certified only, got {self.precision}")
        return self


class CascadeRule(Metadata):
    """Cascade of an ensemble: members run in an order, and an image leaves as soon as a stage settles it.

    Agreement-based cascading (arXiv 2407.02348). The last stage is the whole vote, as without a cascade.

    Attributes:
        order: Indices of the ensemble's members, in the order in which they run.
        stages: Stages before the whole vote, by ascending number of members.
        costs: Cost of each member as a fraction of that of all, in the order of the ensemble.
        costs_by: Unit of the costs: multiply–adds, or the time of one image in a repository.
        cost: Mean cost of an image.
        promise: Limit on the fraction of hurt patients; None promises nothing.
    """

    order: tuple[Annotated[int, Field(ge=0)], ...]
    stages: Annotated[tuple[EarlyStage, ...], Field(min_length=1)]
    costs: tuple[Share, ...]
    costs_by: Literal["multiply_adds", "time"] = "multiply_adds"
    cost: CascadeCost
    promise: CascadePromise | None = None

    @model_validator(mode="after")
    def _parts_agree(self) -> CascadeRule:
        members = len(self.order)
        if sorted(self.order) != list(range(members)):
            raise ValueError(f"order: expected each of 0 to {members - 1} once, got {list(self.order)}")
        sizes = [stage.members for stage in self.stages]
        if sizes != sorted(set(sizes)) or sizes[-1] >= members:
            raise ValueError(f"stages: expected ascending numbers of members below {members}, got {sizes}")
        if len(self.costs) != members or not math.isclose(sum(self.costs), 1.0, abs_tol=1e-6):
            raise ValueError(f"costs: expected {members} fractions with a sum of 1, got {list(self.costs)}")
        return self

    def with_promise(self, promise: CascadePromise | None) -> CascadeRule:
        """Return the cascade with another promise, or without one."""
        return self.model_copy(update={"promise": promise})
