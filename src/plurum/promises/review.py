"""Review limits with a promise: listed from validation images, tested once on certification patients.

The fit tests with PyTorch's predictions, and export again with those of the graphs that are served. A limit is the
confidence from which a prediction needs no review. For two classes with an operating point, it stands for the review
interval outside of which the decisions have that confidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from plurum.predictions.arrays import Bools, Floats, Ints
from plurum.predictions.scores import confidence_of
from plurum.promises.risk_control import (
    SequenceResult,
    count_required_patients,
    patient_losses,
    risk_bound,
    risk_p_value,
    smallest_promise,
    try_in_order,
)
from plurum.spec import DecisionPromise, Metadata, OperatingPoint, ReviewPromise
from plurum.voting import Verdict, VotingRule

__all__ = [
    "ReviewAnswers",
    "ReviewTarget",
    "ReviewTest",
    "TriedLimit",
    "certify_limit",
    "interval_from_limit",
    "promise_text",
    "rule_without_limit",
]

# Limits to test: few enough that most steps pass, many enough to review little more than needed.
_LIMITS = 50
# Fitted limits equal the confidence of some image; other programs may sum in another order.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class ReviewTarget:
    """Promise to make.

    Attributes:
        risk: Largest review risk; None promises the smallest that the patients allow.
        confidence: Probability with which the promise holds.
        point: Operating point, whose requested value is promised together with the risk; None without one.
    """

    risk: float | None
    confidence: float
    point: OperatingPoint | None = None

    @property
    def decision_risk(self) -> float | None:
        """Largest fraction of wrong decisions that the operating point allows; None if it requests no value."""
        return None if self.point is None or self.point.value is None else 1 - self.point.value


@dataclass(frozen=True)
class ReviewAnswers:
    """Predictions of a vote for labelled images, with the review rule apart from its limit.

    Attributes:
        confidence: Probabilities of the predicted classes, `[images]`.
        open: Mask of predictions that need no review if they are confident enough, `[images]`.
        wrong: Mask of wrong predictions, `[images]`.
        groups: Group of each image, `[images]`; images of one patient share a group.
        decision_losses: Losses of the patients whom the operating point's requested value is about, `[patients]`; None
            if it requests none.
    """

    confidence: Floats
    open: Bools
    wrong: Bools
    groups: Ints
    decision_losses: Floats | None = None

    @classmethod
    def from_verdict(
        cls, verdict: Verdict, labels: Ints, groups: Ints, rule: VotingRule, target: ReviewTarget
    ) -> ReviewAnswers:
        """Return the predictions of a verdict that was given by `rule_without_limit(rule)`."""
        losses = None
        if target.point is not None and target.decision_risk is not None and rule.point is not None:
            positive = rule.point.positive
            decided, true = verdict.label == positive, labels == positive
            of_class = {"sensitivity": true, "specificity": ~true, "npv": ~decided}[target.point.criterion]
            losses = patient_losses(decided != true, of_class, groups)
        return cls(confidence_of(verdict), ~verdict.review, verdict.label != labels, groups, losses)

    def unreviewed(self, limit: float) -> Bools:
        """Return the mask of predictions without review at a limit, `[images]`."""
        return self.open & (self.confidence >= limit)

    def losses(self, limit: float) -> Floats:
        """Return the losses of the patients with an unreviewed prediction, `[patients]`."""
        return patient_losses(self.wrong, self.unreviewed(limit), self.groups)


class TriedLimit(Metadata):
    """Review limit that was tested on certification patients.

    Attributes:
        limit: Confidence from which a prediction needs no review.
        reviewed: Fraction of certification images that need review.
        risk: Mean loss of the certification patients with an unreviewed prediction.
        bound: Upper bound of the review risk at the confidence of the test.
        passed: True if all promises passed.
    """

    limit: float
    reviewed: float
    risk: float
    bound: float
    passed: bool


@dataclass(frozen=True)
class ReviewTest:
    """Result of the tests of review limits.

    Attributes:
        limit: Confidence from which a prediction needs no review; None if no limit passed.
        promise: Promise that this limit holds; None if no limit passed.
        refusal: Reason for no promise, in words; empty with a promise.
        tried: Limits that were tested, the strictest first.
    """

    limit: float | None = None
    promise: ReviewPromise | None = None
    refusal: str = ""
    tried: tuple[TriedLimit, ...] = ()


def rule_without_limit(rule: VotingRule) -> VotingRule:
    """Return the rule without its review threshold or interval, so that only the rest of it sends to review."""
    point = rule.point and replace(rule.point, review_interval=None)
    return replace(rule, review_threshold=0.0, point=point)


def interval_from_limit(point: OperatingPoint, limit: float) -> tuple[float, float] | None:
    """Return the review interval of two classes outside of which decisions have this confidence; None if empty."""
    threshold = point.threshold or 0.0
    low, high = min(1 - limit, threshold), max(limit, threshold)
    return (low, high) if low < high else None


def certify_limit(seen: ReviewAnswers, new: Sequence[ReviewAnswers], target: ReviewTarget) -> ReviewTest:
    """Test review limits on certification patients, the strictest first, and return the last that passed.

    The limits are quantiles of the confidence in validation images. The whole review rule is tested, with prediction
    sets. All promises have to hold, by all predictions in `new`. Without a target risk, the limit with the lowest bound
    on validation images is tested alone, and its bound is the promise.

    Args:
        seen: Predictions for validation images, which choose the limits.
        new: Predictions for certification images, which choose nothing else, by each graph that will serve.
        target: Promise to make.
    """
    steps = np.quantile(seen.confidence, np.linspace(1, 0, _LIMITS), method="lower")
    limits = np.maximum(np.unique(steps)[::-1] - _ROUNDING, 0.0).tolist()
    if target.risk is None:
        return _bound_one(seen, new, limits, target)
    decisions = [one.decision_losses for one in new if one.decision_losses is not None]
    losses = [[*(one.losses(limit) for one in new), *decisions] for limit in limits]
    claims = _claims(target, len(new))
    found = try_in_order(losses, [claim.risk for claim in claims], target.confidence)
    start = found.start or 0
    tried = tuple(
        _tried_limit(limits[start + step], new, target, passed=p_value <= 1 - target.confidence)
        for step, p_value in enumerate(found.p_values)
    )
    if found.passed is None:
        return ReviewTest(refusal=_refusal(found, losses, claims, target.confidence), tried=tried)
    passed = losses[found.passed]
    promise = _review_promise(passed[: len(new)], target.risk, target)
    if decisions and target.point is not None:
        promise = promise.model_copy(update={"decision": _decision_promise(decisions, target.point)})
    return ReviewTest(limits[found.passed], promise, tried=tried)


def _bound_one(
    seen: ReviewAnswers, new: Sequence[ReviewAnswers], limits: list[float], target: ReviewTarget
) -> ReviewTest:
    best = min(limits, key=lambda limit: risk_bound(seen.losses(limit), target.confidence))
    losses = [one.losses(best) for one in new]
    risk = max(risk_bound(one, target.confidence) for one in losses)
    if risk >= 1:
        return ReviewTest(refusal="review risk: no promise, because every certification patient needs review")
    # Just above the bound, where the p-value is not above the limit by rounding.
    promise = _review_promise(losses, min(risk * (1 + 1e-9), 1 - 1e-12), target)
    tried = (_tried_limit(best, new, target, passed=True),)
    return ReviewTest(best, promise.model_copy(update={"method": "bound"}), tried=tried)


def _tried_limit(limit: float, new: Sequence[ReviewAnswers], target: ReviewTarget, *, passed: bool) -> TriedLimit:
    """Return the figures of the predictions whose review risk has the highest bound."""
    bound, one = max(((risk_bound(one.losses(limit), target.confidence), one) for one in new), key=lambda pair: pair[0])
    losses, reviewed = one.losses(limit), 1 - one.unreviewed(limit).mean()
    return TriedLimit(limit=limit, reviewed=float(reviewed), risk=float(losses.mean()), bound=bound, passed=passed)


def _review_promise(losses: Sequence[Floats], risk: float, target: ReviewTarget) -> ReviewPromise:
    """Return the promise with the figures of the predictions that came closest to failing."""
    worst = max(losses, key=lambda one: risk_p_value(one, risk))
    return ReviewPromise(
        risk=risk,
        confidence=target.confidence,
        patients=len(worst),
        errors=float(worst.sum()),
        p_value=risk_p_value(worst, risk),
    )


def _decision_promise(losses: Sequence[Floats], point: OperatingPoint) -> DecisionPromise:
    risk = 1 - (point.value or 0.0)
    worst = max(losses, key=lambda one: risk_p_value(one, risk))
    return DecisionPromise.model_validate(
        {
            "criterion": point.criterion,
            "value": point.value,
            "patients": len(worst),
            "errors": float(worst.sum()),
            "p_value": risk_p_value(worst, risk),
        }
    )


def promise_text(promise: ReviewPromise) -> str:
    """Return the promise and its figures in a sentence."""
    text = (
        f"review risk: at most {promise.risk:.2%} of new patients like those tested, with {promise.confidence:.0%} "
        f"confidence ({promise.status}): {promise.errors:g} errors in {promise.patients:,} certification patients with "
        f"an unreviewed prediction"
    )
    if promise.decision is None:
        return text
    one = promise.decision
    return (
        f"{text}; together with {_article(one.criterion)} {_name(one.criterion)} of at least {one.value:.2%}: "
        f"{one.errors:g} errors in {one.patients:,} patients"
    )


def _name(criterion: str) -> str:
    return criterion.upper() if criterion == "npv" else criterion


def _article(criterion: str) -> str:
    return "an" if criterion == "npv" else "a"


@dataclass(frozen=True)
class _Claim:
    """Something to promise: a limit of mean losses.

    Attributes:
        risk: Largest mean loss.
        what: Name and target, in words.
        patients: Name of the patients with a loss.
        is_risk: True if the target is `risk`, False if it is `1 - risk`.
    """

    risk: float
    what: str
    patients: str
    is_risk: bool = True

    def amount(self, risk: float) -> str:
        return f"{risk if self.is_risk else 1 - risk:.2%}"


def _claims(target: ReviewTarget, forms: int) -> list[_Claim]:
    """Return what is claimed of each form's predictions: the review risks first, then the operating point's value."""
    claims = []
    if target.risk is not None:
        claims += [_Claim(target.risk, f"review risk: no promise of {target.risk:.2%}", "unreviewed patients")] * forms
    point = target.point
    if point is not None and target.decision_risk is not None:
        what = f"{_name(point.criterion)}: no promise of {point.value:.2%}"
        claims += [_Claim(target.decision_risk, what, "patients", is_risk=False)] * forms
    return claims


def _refusal(
    found: SequenceResult, losses: Sequence[Sequence[Floats]], claims: Sequence[_Claim], confidence: float
) -> str:
    """Return why no limit passed, in words: too few patients, or too many errors."""
    places = range(len(claims))
    if found.start is not None:
        first = losses[found.start]
        place = max(places, key=lambda place: risk_p_value(first[place], claims[place].risk))
        claim, total = claims[place], float(first[place].sum())
        return (
            f"{claim.what} with {confidence:.0%} confidence: the first threshold tested has {total:g} "
            f"errors in {len(first[place]):,} patients. Its own bound is "
            f"{claim.amount(risk_bound(first[place], confidence))}; for another promise, certify on new patients"
        )
    most = [max(len(configuration[place]) for configuration in losses) for place in places]
    needed = [[count_required_patients(claim.risk, confidence, errors) for errors in range(3)] for claim in claims]
    place = max(places, key=lambda place: needed[place][0] - most[place])
    claim, (none, one, two) = claims[place], needed[place]
    return (
        f"{claim.what} with {confidence:.0%} confidence: it needs {none:,} {claim.patients} without an error, {one:,} "
        f"with one or {two:,} with two; there are {most[place]:,}, so {none - most[place]:,} are missing. They can "
        f"promise at best {claim.amount(smallest_promise(most[place], confidence))}"
    )
