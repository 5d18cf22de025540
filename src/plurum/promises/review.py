"""Review limits with a promise: listed from validation images, tested once on certification patients.

The fit tests with PyTorch's predictions, and export again with those of the graphs that are served. A limit is the
confidence from which a prediction needs no review. For two classes with an operating point, it stands for the review
interval outside of which the decisions have that confidence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from plurum.predictions.arrays import Bools, Floats, Ints
from plurum.predictions.scores import confidence_of
from plurum.promises.risk_control import (
    count_required_patients,
    patient_losses,
    risk_bound,
    risk_p_value,
    smallest_promise,
    try_in_order,
)
from plurum.spec import ClassPromise, DecisionPromise, Metadata, OperatingPoint, RefusedPromise, ReviewPromise
from plurum.voting import Verdict, VotingRule

__all__ = [
    "Claim",
    "ReviewAnswers",
    "ReviewTarget",
    "ReviewTest",
    "TriedLimit",
    "certify_limit",
    "interval_from_limit",
    "list_claims",
    "list_limits",
    "promise_from_claims",
    "promise_text",
    "refuse_few",
    "refuse_first",
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
        classes: Names of the classes, in the order of the labels, for whose patients the same risk is promised too;
            empty promises it for all patients together.
    """

    risk: float | None
    confidence: float
    point: OperatingPoint | None = None
    classes: tuple[str, ...] = ()

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
        labels: True class of each image, `[images]`.
        groups: Group of each image, `[images]`; images of one patient share a group.
        decision_losses: Losses of the patients whom the operating point's requested value is about, `[patients]`; None
            if it requests none.
    """

    confidence: Floats
    open: Bools
    wrong: Bools
    labels: Ints
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
        return cls(confidence_of(verdict), ~verdict.review, verdict.label != labels, labels, groups, losses)

    def unreviewed(self, limit: float) -> Bools:
        """Return the mask of predictions without review at a limit, `[images]`."""
        return self.open & (self.confidence >= limit)

    def losses(self, limit: float, label: int | None = None) -> Floats:
        """Return the losses of the patients with an unreviewed prediction, for images of a class, `[patients]`."""
        unreviewed = self.unreviewed(limit)
        return patient_losses(
            self.wrong, unreviewed if label is None else unreviewed & (self.labels == label), self.groups
        )


class TriedLimit(Metadata):
    """Review limit that was tested on certification patients.

    Attributes:
        limit: Confidence from which a prediction needs no review.
        reviewed: Fraction of certification images that need review.
        risk: Mean loss of the certification patients with an unreviewed prediction; of those of the class with the
            highest bound, if the risk is promised by class.
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
        refused: Figures of the refusal; None with a promise.
        tried: Limits that were tested, the strictest first.
    """

    limit: float | None = None
    promise: ReviewPromise | None = None
    refusal: str = ""
    refused: RefusedPromise | None = None
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
    limits = list_limits(seen.confidence)
    if target.risk is None:
        return _bound_one(seen, new, limits, target)
    claims = list_claims(target, target.risk)
    losses = [[claim.losses(one, limit) for claim in claims for one in new] for limit in limits]
    found = try_in_order(losses, [claim.risk for claim in claims for _ in new], target.confidence)
    start = found.start or 0
    tried = tuple(
        _tried_limit(limits[start + step], new, target, passed=p_value <= 1 - target.confidence)
        for step, p_value in enumerate(found.p_values)
    )
    if found.passed is None:
        each = [claim for claim in claims for _ in new]
        if found.start is None:
            return refuse_few(losses, each, target.confidence)
        refused = refuse_first(limits[found.start], losses[found.start], each, target.confidence)
        return replace(refused, tried=tried)
    return ReviewTest(limits[found.passed], promise_from_claims(claims, new, limits[found.passed], target), tried=tried)


def list_limits(confidence: Floats) -> list[float]:
    """Return limits to test, the strictest first: quantiles of the confidence in validation images, `[images]`."""
    steps = np.quantile(confidence, np.linspace(1, 0, _LIMITS), method="lower")
    return [max(step - _ROUNDING, 0.0) for step in np.unique(steps)[::-1].tolist()]


def _bound_one(
    seen: ReviewAnswers, new: Sequence[ReviewAnswers], limits: list[float], target: ReviewTarget
) -> ReviewTest:
    claims = list_claims(target, 1.0)

    def bound(answers: ReviewAnswers, limit: float) -> float:
        return max(risk_bound(claim.losses(answers, limit), target.confidence) for claim in claims)

    best = min(limits, key=lambda limit: bound(seen, limit))
    # The class with the highest true risk exceeds this maximum only if it exceeds its own bound.
    risk = max(bound(one, best) for one in new)
    if risk >= 1:
        few = "every certification patient" if not target.classes else "every certification patient of a class"
        refused = RefusedPromise(what="review risk", target=None, confidence=target.confidence, limit=None, patients=0)
        return ReviewTest(refusal=f"review risk: no promise, because {few} needs review", refused=refused)
    # Just above the bound, where the p-value is not above the limit by rounding.
    claims = list_claims(target, min(risk * (1 + 1e-9), 1 - 1e-12))
    promise = promise_from_claims(claims, new, best, target).model_copy(update={"method": "bound"})
    return ReviewTest(best, promise, tried=(_tried_limit(best, new, target, passed=True),))


def _tried_limit(limit: float, new: Sequence[ReviewAnswers], target: ReviewTarget, *, passed: bool) -> TriedLimit:
    """Return the figures of the predictions, and of the class, whose review risk has the highest bound."""
    of = [None, *range(len(target.classes))]
    found = [(one, losses) for one in new for label in of if len(losses := one.losses(limit, label))]
    bounds = [risk_bound(losses, target.confidence) for _, losses in found]
    one, losses = found[int(np.argmax(bounds))]
    reviewed = 1 - float(one.unreviewed(limit).mean())
    return TriedLimit(limit=limit, reviewed=reviewed, risk=float(losses.mean()), bound=max(bounds), passed=passed)


@dataclass(frozen=True)
class Claim:
    """Something to promise: a limit of the mean of patients' losses.

    Attributes:
        risk: Largest mean loss.
        what: Name, in words.
        patients: Name of the patients with a loss.
        losses: Function that returns these losses of a form's predictions at a review limit.
        is_risk: True if the target is `risk`, False if it is `1 - risk`.
    """

    risk: float
    what: str
    patients: str
    losses: Callable[[ReviewAnswers, float], Floats]
    is_risk: bool = True

    def amount(self, risk: float) -> str:
        """Return a risk as it is requested, in words."""
        return f"{self.target(risk):.2%}"

    def target(self, risk: float) -> float:
        """Return a risk as it is requested: a risk, or a sensitivity, specificity or NPV."""
        return risk if self.is_risk else 1 - risk

    def figures(self, losses: Sequence[Floats]) -> dict[str, float]:
        """Return the figures of the losses that came closest to failing."""
        worst = max(losses, key=lambda one: risk_p_value(one, self.risk))
        return {"patients": len(worst), "errors": float(worst.sum()), "p_value": risk_p_value(worst, self.risk)}


def list_claims(target: ReviewTarget, risk: float) -> list[Claim]:
    """Return what is claimed of each form's predictions: review risk, that of each class, the point's value."""

    def losses_of_class(label: int) -> Callable[[ReviewAnswers, float], Floats]:
        return lambda answers, limit: answers.losses(limit, label)

    claims = [Claim(risk, "review risk", "unreviewed patients", lambda answers, limit: answers.losses(limit))]
    claims += [
        Claim(risk, f"review risk of class {name}", f"unreviewed patients of class {name}", losses_of_class(label))
        for label, name in enumerate(target.classes)
    ]
    if target.point is not None and target.decision_risk is not None:
        name = _name(target.point.criterion)
        claims.append(Claim(target.decision_risk, name, "patients", _decision_losses, is_risk=False))
    return claims


def _decision_losses(answers: ReviewAnswers, limit: float) -> Floats:  # noqa: ARG001 - reviews change no decision
    if answers.decision_losses is None:
        raise ValueError("expected the losses of the operating point's decisions")
    return answers.decision_losses


def promise_from_claims(
    claims: Sequence[Claim], new: Sequence[ReviewAnswers], limit: float, target: ReviewTarget
) -> ReviewPromise:
    """Return the promise of all claims at a limit that passed."""
    review, *others = [(claim, claim.figures([claim.losses(one, limit) for one in new])) for claim in claims]
    by_class, decision, point = others[: len(target.classes)], others[len(target.classes) :], target.point
    parts: dict[str, object] = {"risk": review[0].risk, "confidence": target.confidence, **review[1]}
    if by_class:
        pairs = zip(target.classes, by_class, strict=True)
        parts["by_class"] = [ClassPromise.model_validate({"name": name, **figures}) for name, (_, figures) in pairs]
    if decision and point is not None:
        about = {"criterion": point.criterion, "value": point.value}
        parts["decision"] = DecisionPromise.model_validate({**about, **decision[0][1]})
    return ReviewPromise.model_validate(parts)


def promise_text(promise: ReviewPromise) -> str:
    """Return the promise and its figures in a sentence."""
    text = (
        f"review risk: at most {promise.risk:.2%} of new patients like those tested, with {promise.confidence:.0%} "
        f"confidence ({promise.status}): {promise.errors:g} errors in {promise.patients:,} certification patients with "
        f"an unreviewed prediction"
    )
    if promise.by_class:
        each = ", ".join(f"{one.errors:g} errors in {one.patients:,} of {one.name}" for one in promise.by_class)
        text = f"{text}; the same for each class: {each}"
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


def refuse_first(limit: float, losses: Sequence[Floats], claims: Sequence[Claim], confidence: float) -> ReviewTest:
    """Return why the first limit that was tested did not pass: too many errors."""
    claim, worst = max(zip(claims, losses, strict=True), key=lambda pair: risk_p_value(pair[1], pair[0].risk))
    figures = claim.figures([worst])
    refusal = (
        f"{claim.what}: no promise of {claim.amount(claim.risk)} with {confidence:.0%} confidence: the first threshold "
        f"tested has {figures['errors']:g} errors in {len(worst):,} patients. Its own bound is "
        f"{claim.amount(risk_bound(worst, confidence))}; for another promise, certify on new patients"
    )
    about = {"what": claim.what, "target": claim.target(claim.risk), "confidence": confidence, "limit": limit}
    return ReviewTest(refusal=refusal, refused=RefusedPromise.model_validate({**about, **figures}))


def refuse_few(losses: Sequence[Sequence[Floats]], claims: Sequence[Claim], confidence: float) -> ReviewTest:
    """Return why no limit could be tested: too few patients."""
    places = range(len(claims))
    most = [max(len(configuration[place]) for configuration in losses) for place in places]
    needed = [[count_required_patients(claim.risk, confidence, errors) for errors in range(3)] for claim in claims]
    place = max(places, key=lambda place: needed[place][0] - most[place])
    claim, (none, one, two), patients = claims[place], needed[place], most[place]
    refusal = (
        f"{claim.what}: no promise of {claim.amount(claim.risk)} with {confidence:.0%} confidence: it needs {none:,} "
        f"{claim.patients} without an error, {one:,} with one or {two:,} with two; there are {patients:,}, so "
        f"{none - patients:,} are missing. They can promise at best "
        f"{claim.amount(smallest_promise(patients, confidence))}"
    )
    refused = RefusedPromise(
        what=claim.what, target=claim.target(claim.risk), confidence=confidence, limit=None, patients=patients
    )
    return ReviewTest(refusal=refusal, refused=refused)
