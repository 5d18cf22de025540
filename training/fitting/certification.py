"""Review limits with a promise: chosen on validation images, tested once on the run's certification patients."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from plurum.predictions.arrays import Bools, Floats, Ints
from plurum.settings.training import FitSettings
from plurum.spec import ReviewPromise
from plurum.training.fitting.points import CONFIDENCE
from plurum.training.fitting.votes import FittedVote, ValidationPredictions, confidence_of
from plurum.training.statistics.risk_control import (
    SequenceResult,
    count_required_patients,
    patient_losses,
    risk_bound,
    risk_p_value,
    smallest_promise,
    try_in_order,
)
from plurum.voting import Verdict

__all__ = ["Certification", "certify_review"]

# Limits to test: few enough that most steps pass, many enough to review little more than needed.
_LIMITS = 50
# Fitted limits equal the confidence of some image; other programs may sum in another order.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class Certification:
    """Result of a certification.

    Attributes:
        vote: Vote with the review threshold that may be served.
        promise: ReviewPromise that it holds; None if no threshold passed.
        line: Result in a sentence.
    """

    vote: FittedVote
    promise: ReviewPromise | None
    line: str


@dataclass(frozen=True)
class _Answers:
    """Predictions of a vote, with the review rule apart from the threshold."""

    confidence: Floats
    open: Bools
    wrong: Bools
    groups: Ints

    @classmethod
    def of(cls, verdict: Verdict, labels: Ints, groups: Ints) -> _Answers:
        """Return the predictions of a verdict that was given without a review threshold."""
        return cls(confidence_of(verdict), ~verdict.review, verdict.label != labels, groups)

    def losses(self, threshold: float) -> Floats:
        return patient_losses(self.wrong, self.open & (self.confidence >= threshold), self.groups)


def certify_review(
    vote: FittedVote, validation: ValidationPredictions, certification: ValidationPredictions, settings: FitSettings
) -> Certification:
    """Test review thresholds on certification patients, the strictest first, and return the last that passed.

    The thresholds are quantiles of the confidence in validation images. The whole review rule is tested, with
    prediction sets. If no threshold passes, that of `vote` stays, and nothing is promised. With `--risk auto`, the
    threshold that promises least on validation images is tested alone, and its bound is the promise.

    Args:
        vote: Vote with prediction sets and a review threshold.
        validation: Predictions for validation images, which choose the thresholds.
        certification: Predictions for certification images, which choose nothing else.
        settings: Target risk and its confidence.
    """
    unlimited = replace(vote, rule=replace(vote.rule, review_threshold=0.0))
    seen = _Answers.of(unlimited.validation_verdict(validation.predictions), validation.labels, validation.groups)
    new = _Answers.of(unlimited.verdict(certification.predictions), certification.labels, certification.groups)
    steps = np.quantile(seen.confidence, np.linspace(1, 0, _LIMITS), method="lower")
    thresholds = np.maximum(np.unique(steps)[::-1] - _ROUNDING, 0.0).tolist()
    confidence = settings.confidence or CONFIDENCE
    if settings.risk == "auto":
        return _bound_one(vote, seen, new, thresholds, confidence)
    losses = [new.losses(threshold) for threshold in thresholds]
    found = try_in_order([[one] for one in losses], [settings.risk], confidence)
    if found.passed is None:
        return Certification(vote, None, _no_promise(found, losses, settings.risk, confidence))
    return _promise(vote, thresholds[found.passed], losses[found.passed], settings.risk, confidence)


def _bound_one(
    vote: FittedVote, seen: _Answers, new: _Answers, thresholds: list[float], confidence: float
) -> Certification:
    """ReviewPromise the bound of the threshold that promises least on validation images."""
    best = min(thresholds, key=lambda threshold: risk_bound(seen.losses(threshold), confidence))
    losses = new.losses(best)
    risk = risk_bound(losses, confidence)
    if risk >= 1:
        return Certification(vote, None, "review risk: no promise, because every certification patient needs review")
    # Just above the bound, where the p-value is not above the limit by rounding.
    return _promise(vote, best, losses, min(risk * (1 + 1e-9), 1 - 1e-12), confidence)


def _promise(vote: FittedVote, threshold: float, losses: Floats, risk: float, confidence: float) -> Certification:
    promise = ReviewPromise(
        risk=risk,
        confidence=confidence,
        patients=len(losses),
        errors=float(losses.sum()),
        p_value=risk_p_value(losses, risk),
    )
    line = (
        f"review risk: at most {risk:.2%} of new patients like these, with {confidence:.0%} confidence (provisional): "
        f"{promise.errors:g} errors in {promise.patients:,} certification patients with an unreviewed prediction"
    )
    certified = replace(vote, rule=replace(vote.rule, review_threshold=threshold))
    return Certification(certified, promise, line)


def _no_promise(found: SequenceResult, losses: list[Floats], risk: float, confidence: float) -> str:
    needed = [count_required_patients(risk, confidence, errors) for errors in range(3)]
    if found.start is None:
        most = max(len(one) for one in losses)
        return (
            f"review risk: no promise of {risk:.2%} with {confidence:.0%} confidence: it needs {needed[0]:,} "
            f"unreviewed patients without an error, {needed[1]:,} with one or {needed[2]:,} with two; there are "
            f"{most:,}, so {needed[0] - most:,} are missing. They can promise at best "
            f"{smallest_promise(most, confidence):.2%}"
        )
    first = losses[found.start]
    return (
        f"review risk: no promise of {risk:.2%} with {confidence:.0%} confidence: the strictest threshold that could "
        f"pass has {float(first.sum()):g} errors in {len(first):,} patients. Its own bound is "
        f"{risk_bound(first, confidence):.2%}; for another promise, certify with --risk auto on new patients"
    )
