"""Certification of a fit's review rule, provisional until export repeats it with the predictions that are served."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from plurum.promises.review import (
    ReviewAnswers,
    ReviewTarget,
    ReviewTest,
    TriedLimit,
    certify_limit,
    interval_from_limit,
    promise_text,
    rule_without_limit,
)
from plurum.settings.fitting import FitSettings
from plurum.spec import RefusedPromise, ReviewPromise
from plurum.training.fitting.points import CONFIDENCE
from plurum.training.fitting.votes import FittedVote, ValidationPredictions, vote_at_point

__all__ = ["Certification", "certification_from_test", "certify_review", "review_target"]


@dataclass(frozen=True)
class Certification:
    """Result of a certification.

    Attributes:
        vote: Vote with the review limit that may be served.
        promise: ReviewPromise that it holds; None if no limit passed.
        line: Result in a sentence.
        tried: Review limits that were tested, the strictest first.
        refused: Figures of a refusal; None with a promise.
    """

    vote: FittedVote
    promise: ReviewPromise | None
    line: str
    tried: tuple[TriedLimit, ...]
    refused: RefusedPromise | None = None

    @property
    def findings(self) -> dict[str, object]:
        """Values of the fit's report."""
        return {"promise_line": self.line, "tried_limits": self.tried, "refused_promise": self.refused}


def review_target(vote: FittedVote, classes: Sequence[str], settings: FitSettings) -> ReviewTarget:
    """Return the promise on the review risk that the settings request."""
    risk = None if settings.risk == "auto" else settings.risk
    by_class = tuple(classes) if settings.risk_by_class else ()
    return ReviewTarget(risk, settings.confidence or CONFIDENCE, vote.point, by_class)


def certify_review(
    vote: FittedVote, validation: ValidationPredictions, certification: ValidationPredictions, settings: FitSettings
) -> Certification:
    """Return the vote with the review limit that the certification patients allow, and what it promises.

    If no limit passes, that of `vote` stays, and nothing is promised.

    Args:
        vote: Vote with prediction sets and a review limit.
        validation: Predictions for validation images, which choose the limits to test.
        certification: Predictions for certification images, which choose nothing else.
        settings: Target risk and its confidence.
    """
    target = review_target(vote, certification.classes, settings)
    unlimited = replace(vote, rule=rule_without_limit(vote.rule))
    known = unlimited.validation_verdict(validation.predictions, validation.novelty)
    seen = ReviewAnswers.from_verdict(known, validation.labels, validation.groups, vote.rule, target)
    verdict = unlimited.verdict(certification.predictions, certification.novelty)
    new = ReviewAnswers.from_verdict(verdict, certification.labels, certification.groups, vote.rule, target)
    return certification_from_test(vote, certify_limit(seen, [new], target), validation)


def certification_from_test(vote: FittedVote, found: ReviewTest, validation: ValidationPredictions) -> Certification:
    """Return the vote with the limit that passed; without one, the vote as it is, and the reason."""
    if found.limit is None or found.promise is None:
        return Certification(vote, None, found.refusal, found.tried, found.refused)
    promised = _vote_with_limit(vote, found.limit, validation)
    return Certification(promised, found.promise, promise_text(found.promise), found.tried)


def _vote_with_limit(vote: FittedVote, limit: float, known: ValidationPredictions) -> FittedVote:
    if vote.point is None or vote.point.positive is None:
        return replace(vote, rule=replace(vote.rule, review_threshold=limit))
    point = vote.point.model_copy(update={"review_interval": interval_from_limit(vote.point, limit)})
    return vote_at_point(vote, point, known.classes)
