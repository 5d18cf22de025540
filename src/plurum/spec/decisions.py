"""Metadata of the vote, and of what follows from its probabilities: label, prediction set, review and promises."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from plurum.spec.fields import Coefficient, Metadata, Scale, Share, Text
from plurum.voting import MODES

__all__ = [
    "ClassPromise",
    "Conformal",
    "DecisionPromise",
    "OperatingPoint",
    "RefusedPromise",
    "Review",
    "ReviewPromise",
    "Voting",
]


def _check_mode(mode: str) -> str:
    if mode not in MODES:
        raise ValueError(f"expected one of {', '.join(MODES)}, got {mode!r}")
    return mode


class Voting(Metadata):
    """Vote that combines the members' outputs.

    Attributes:
        mode: Voting mode, see `plurum.voting.MODES`.
        weights: Weights of the members, which sum to 1; equal if the vote is stacked.
        temperature: Temperature applied to the vote's probabilities.
        tie_rule: Rule for ties of a hard vote; there is only one.
        coefficients: Stacking coefficients of log-probabilities, `[classes][members * classes]`, the first member's
            classes first.
        intercepts: Stacking intercepts, one per class.
        prior_ratio: Ratio of each class's fraction in production to its fraction in the fitting data, applied to the
            tempered vote; None if they are equal. With a site, the exponentials of its offsets are factors of it.
    """

    mode: Annotated[str, AfterValidator(_check_mode)] = "soft"
    weights: tuple[Share, ...]
    temperature: Scale = 1.0
    tie_rule: Literal["higher soft vote, then lower class index"] = "higher soft vote, then lower class index"
    coefficients: tuple[tuple[Coefficient, ...], ...] | None = None
    intercepts: tuple[Coefficient, ...] | None = None
    prior_ratio: tuple[Scale, ...] | None = None

    @model_validator(mode="after")
    def _parts_agree(self) -> Voting:
        if not math.isclose(sum(self.weights), 1.0, abs_tol=1e-6):
            raise ValueError(f"weights: expected a sum of 1, got {sum(self.weights)}")
        mode = MODES[self.mode]
        for name in {name for one in MODES.values() for name in one.parameters}:
            if (getattr(self, name) is not None) != (name in mode.parameters):
                names = " and ".join(mode.parameters) or "no coefficients or intercepts"
                raise ValueError(f"{name}: mode {self.mode} needs {names}")
        if not mode.has_probabilities and self.prior_ratio is not None:
            raise ValueError(f"prior_ratio: not supported with mode {self.mode}, whose votes are not probabilities")
        return self


class Conformal(Metadata):
    """Class-conditional conformal prediction sets.

    Attributes:
        alpha: Target fraction of sets that miss the true class, per class.
        quantiles: Largest `1 - probability` at which a class stays in the set, one per class.
    """

    alpha: Annotated[float, Field(gt=0, lt=1)]
    quantiles: tuple[Share, ...]


class Review(Metadata):
    """Condition under which a prediction needs review.

    Attributes:
        threshold: Confidence below which a prediction needs review.
        risk: Target error rate of the other predictions, for which the threshold was chosen.
    """

    threshold: Share = 0.0
    risk: Share | None = None


Cost = Annotated[float, Field(ge=0, le=1e100, allow_inf_nan=False)]


class OperatingPoint(Metadata):
    """Decision that the labels of an ensemble state.

    With two classes, the label is the positive class if its probability is at least the threshold. With several, it is
    the class with the lowest expected cost. Without an operating point, the label is the most probable class.

    Attributes:
        criterion: Criterion that chose the point.
        value: Requested sensitivity, specificity or negative predictive value (`npv`); None for costs.
        confidence: Confidence with which the requested value holds for patients like those of the fit; None for costs.
        positive: Positive class; None with several classes.
        threshold: Probability of the positive class from which the label is positive; None with several classes.
        review_interval: Lowest and highest probability of the positive class at which a prediction needs review; None
            reviews none. Two classes use it instead of `Review.threshold` and of the size of prediction sets.
        costs: Cost of each decision, `[true class][decided class]`, in the order of the classes; None unless costs
            chose the point.
        review_cost: Cost of a review, in the unit of `costs`. With several classes, a prediction whose expected cost is
            higher needs review, instead of by threshold and prediction set.
    """

    criterion: Literal["sensitivity", "specificity", "npv", "costs"]
    value: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] | None = None
    confidence: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] | None = None
    positive: Text | None = None
    threshold: Share | None = None
    review_interval: tuple[Share, Share] | None = None
    costs: tuple[tuple[Cost, ...], ...] | None = None
    review_cost: Cost | None = None

    @model_validator(mode="after")
    def _parts_agree(self) -> OperatingPoint:
        if (self.positive is None) != (self.threshold is None):
            raise ValueError("positive: expected a positive class together with a threshold, got one of them")
        has_costs = self.criterion == "costs"
        if has_costs != (self.costs is not None) or has_costs == (self.value is not None):
            raise ValueError(f"criterion: {self.criterion} needs {'costs and no value' if has_costs else 'a value'}")
        if self.review_cost is not None and self.costs is None:
            raise ValueError("review_cost: expected costs beside it")
        if self.positive is None and (self.costs is None or self.review_interval is not None):
            raise ValueError("positive: expected a positive class, or costs of several classes without review_interval")
        if self.review_interval is not None and self.threshold is not None:
            low, high = self.review_interval
            if not low <= self.threshold <= high:
                raise ValueError(f"review_interval: expected an interval around {self.threshold}, got {low} to {high}")
        return self

    def faults(self, classes: tuple[str, ...]) -> list[str]:
        """Return the contradictions between the point and the classes of its ensemble, in words."""
        number, found = len(classes), []
        if (self.positive is not None) != (number == 2):
            found.append(f"expected {'a' if number == 2 else 'no'} positive class for {number} classes")
        elif self.positive is not None and self.positive not in classes:
            found.append(f"unknown positive class {self.positive!r}; available: {', '.join(classes)}")
        if self.costs is not None and {len(self.costs), *map(len, self.costs)} != {number}:
            found.append(f"costs: expected {number} rows of {number} for {number} classes")
        return found


class DecisionPromise(Metadata):
    """Lower limit on the requested value of an operating point, for new patients like those that it was certified on.

    Attributes:
        criterion: Quantity that is at least `value`.
        value: Requested value of the operating point.
        patients: Certification patients whom the value is about.
        errors: Sum over these patients of the fractions of wrong decisions.
        p_value: P-value of the hypothesis that the value is lower.
    """

    criterion: Literal["sensitivity", "specificity", "npv"]
    value: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
    patients: Annotated[int, Field(ge=1)]
    errors: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    p_value: Share


class ClassPromise(Metadata):
    """Upper limit on the review risk of new patients of a class, `risk` of the promise that it belongs to.

    Attributes:
        name: True class.
        patients: Certification patients with an unreviewed prediction for an image of the class.
        errors: Sum over these patients of the fractions of wrong predictions.
        p_value: P-value of the hypothesis that the risk is higher.
    """

    name: Text
    patients: Annotated[int, Field(ge=1)]
    errors: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    p_value: Share


class RefusedPromise(Metadata):
    """Result of a certification that no configuration passed.

    Attributes:
        what: Quantity that could not be promised, in words.
        target: Requested limit: the largest risk, or the lowest sensitivity, specificity or NPV.
        confidence: Requested confidence.
        limit: Confidence from which predictions need no review in the first configuration, which failed; None if too
            few patients allowed no test.
        patients: Certification patients whom the quantity is about in that configuration; without a test, the most in
            any configuration.
        errors: Sum over these patients of the fractions of wrong predictions; None without a test.
        p_value: P-value of the hypothesis that the target is not met; None without a test.
    """

    what: Text
    target: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] | None
    confidence: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
    limit: Share | None
    patients: Annotated[int, Field(ge=0)]
    errors: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    p_value: Share | None = None


class ReviewPromise(Metadata):
    """Upper limit on the review risk of new patients like those that it was certified on.

    The review risk is the mean, over patients with at least one unreviewed prediction, of the fraction of these
    predictions that are wrong.

    Attributes:
        risk: Largest review risk.
        confidence: Probability with which the promise holds.
        patients: Certification patients with an unreviewed prediction.
        errors: Sum over these patients of the fractions of wrong predictions.
        p_value: P-value of the hypothesis that the review risk is higher.
        status: `provisional` until export has repeated the test with the predictions that are served.
        method: `sequence` tested review limits in order for a requested risk; `bound` promises the upper bound of a
            single limit.
        decision: Promise on the operating point that holds together with this one; None without a requested value.
        by_class: Promises of the same risk for the patients of each class, which hold together with this one; None if
            they were not requested. Absent in files if None.
    """

    risk: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
    confidence: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
    patients: Annotated[int, Field(ge=1)]
    errors: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    p_value: Share
    status: Literal["provisional", "certified"] = "provisional"
    method: Literal["sequence", "bound"] = "sequence"
    decision: DecisionPromise | None = None
    by_class: tuple[ClassPromise, ...] | None = None

    @model_serializer(mode="wrap")
    def _leave_out(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out a newer key that is None, so that older versions of Plurum read the file."""
        values: dict[str, Any] = serialise(self)
        return {name: value for name, value in values.items() if name != "by_class" or value is not None}
