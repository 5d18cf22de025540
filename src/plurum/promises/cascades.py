"""Exits of a cascade with a promise: listed from validation images, tested once on certification patients.

A patient is hurt if the label of an image differs from that of the whole vote where the vote is correct, or if the
whole vote reviews an image and the cascade does not. The fraction of hurt patients is bounded together with the review
risk and the operating point's value of the cascade's own predictions.

Configurations are pairs of a review limit and an exit, tested in a fixed order until the first failure: first the whole
vote at stricter review limits, down to the one that validation images chose; then that limit with exits from the
strictest on. Each passes only if all its promises do, so that they hold together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from plurum.predictions.arrays import Bools, Floats, Ints
from plurum.predictions.scores import confidence_of
from plurum.promises.review import (
    Claim,
    ReviewAnswers,
    ReviewTarget,
    ReviewTest,
    list_claims,
    list_limits,
    promise_from_claims,
    refuse_few,
    refuse_first,
    rule_without_limit,
)
from plurum.promises.risk_control import (
    count_required_patients,
    risk_bound,
    risk_p_value,
    smallest_promise,
    try_in_order,
)
from plurum.spec import CascadeCost, CascadePromise, CascadeRule, RefusedPromise
from plurum.voting import Cascade, Verdict, VotingRule, decide, merge_verdicts

__all__ = [
    "CascadeTarget",
    "CascadeTest",
    "StagedAnswers",
    "cascade_texts",
    "cascade_without_limit",
    "certify_cascade",
    "cost_of_cascade",
    "few_patients_text",
    "hurt_text",
    "list_exits",
]

_EXITS = 50
_Z95 = 1.959964
_UNITS = {"multiply_adds": "multiply–adds", "time": "computing time"}


@dataclass(frozen=True)
class CascadeTarget:
    """Promise to make about a cascade.

    Attributes:
        risk: Largest fraction of hurt patients.
        confidence: Probability with which all promises hold.
        rule: Rule of the whole vote.
        review: Promise on the review risk to make together with this one; None makes none.
    """

    risk: float
    confidence: float
    rule: VotingRule
    review: ReviewTarget | None = None


@dataclass(frozen=True)
class StagedAnswers:
    """Predictions of the whole vote, and of an early stage, for the same labelled images.

    Attributes:
        whole: Predictions of all members; without its review limit, if limits are tested.
        stage: Predictions of the stage, likewise.
        may_leave: Mask of images that leave at the stage if they are confident enough, `[images]`.
        labels: True class of each image, `[images]`; -1 if unknown.
        groups: Group of each image, `[images]`; images of one patient share a group.
    """

    whole: Verdict
    stage: Verdict
    may_leave: Bools
    labels: Ints
    groups: Ints

    @classmethod
    def from_members(
        cls, members: Floats, novelty: Floats | None, cascade: Cascade, labels: Ints, groups: Ints
    ) -> StagedAnswers:
        """Return the predictions of a cascade of one early stage.

        Args:
            members: Probabilities of all members, `[images, members, classes]`.
            novelty: Novelty by member, `[images, members]`; None tests no outliers.
            cascade: The cascade.
            labels: True class of each image.
            groups: Group of each image.
        """
        (stage,) = cascade.stages
        return cls(decide(members, cascade.rule, novelty), *stage.decide(members, novelty), labels, groups)

    @cached_property
    def confidence(self) -> npt.NDArray[np.float32]:
        """Probability of the stage's label, float32 `[images]`, as graphs compare it."""
        return confidence_of(self.stage).astype(np.float32)

    def left(self, leave: float | None) -> Bools:
        """Return the mask of images that leave at the exit `leave`, `[images]`; none without an exit."""
        return np.zeros_like(self.may_leave) if leave is None else self.may_leave & (self.confidence >= leave)

    def verdict(self, leave: float | None) -> Verdict:
        """Return the cascade's predictions with the exit `leave`; probabilities of members are those of all."""
        early = replace(self.stage, member_probabilities=self.whole.member_probabilities)
        return merge_verdicts(self.left(leave), early, self.whole)

    def hurt(self, leave: float | None, limit: float) -> Floats:
        """Return 1 for each patient that the exit hurts at a review limit, else 0, `[patients]`."""
        left, whole = self.left(leave), self.whole
        is_lost = whole.review | (confidence_of(whole) < limit)
        differs = (self.stage.label != whole.label) & ((whole.label == self.labels) | (self.labels < 0))
        return np.asarray((np.bincount(self.groups, left & (is_lost | differs)) > 0).astype(np.float64))


@dataclass(frozen=True)
class CascadeTest:
    """Result of the tests of a cascade.

    Attributes:
        review: Result for the review limit; its promise is about the cascade's predictions. None without a target.
        leave: Exit that may be served; None if no exit passed.
        promise: Promise that it holds; None if no exit passed.
        refusal: Reason for no exit, in words; empty with a promise.
        refused: Figures of the refusal, of the last configuration that was tested; None with a promise, or without a
            tested exit.
    """

    review: ReviewTest | None
    leave: float | None = None
    promise: CascadePromise | None = None
    refusal: str = ""
    refused: RefusedPromise | None = None


def cascade_without_limit(cascade: Cascade) -> Cascade:
    """Return the cascade without the review limits of its rules."""
    stages = tuple(replace(stage, rule=rule_without_limit(stage.rule)) for stage in cascade.stages)
    return Cascade(stages, rule_without_limit(cascade.rule))


def list_exits(seen: StagedAnswers, limit: float) -> list[float]:
    """Return exits to test at a review limit, the strictest first: quantiles of the confidence in validation images."""
    confidence = seen.confidence[seen.left(limit)]
    if not len(confidence):
        return []
    steps = np.quantile(confidence, np.linspace(1, 0, _EXITS), method="lower")
    return [float(step) for step in np.unique(steps)[::-1]]


def certify_cascade(
    seen: StagedAnswers, new: Sequence[StagedAnswers], target: CascadeTarget, unlabelled: Sequence[StagedAnswers] = ()
) -> CascadeTest:
    """Test review limits and exits on certification patients, and return the last that passed.

    Args:
        seen: Predictions for validation images, which choose what is tested.
        new: Predictions for certification images, which choose nothing else, by each form that will serve. They are at
            least as many patients as the risk needs, with `unlabelled`; see `few_patients_text`.
        target: Promises to make.
        unlabelled: Predictions for images of further patients, by the same forms; they count for the fraction of hurt
            patients only. Empty without any.
    """
    forms = [_Form(one, target) for one in new]
    claims = [] if target.review is None else list_claims(target.review, target.review.risk or 0.0)
    limits = [0.0] if target.review is None else list_limits(confidence_of(seen.whole))
    planned = _plan_limit(_Form(seen, target), forms, claims, limits, target)
    path: list[tuple[float, float | None]] = [(limit, None) for limit in limits[: planned + 1]]
    path += [(limits[planned], leave) for leave in list_exits(seen, limits[planned])]
    each = [claim for claim in claims for _ in forms]
    of_hurt = list(zip(new, unlabelled, strict=True)) if unlabelled else [(one,) for one in new]
    losses = [
        [
            *(claim.losses(form.answers(leave), limit) for claim in claims for form in forms),
            *(np.concatenate([one.hurt(leave, limit) for one in parts]) for parts in of_hurt),
        ]
        for limit, leave in path
    ]
    risks = [*(claim.risk for claim in each), *(target.risk for _ in forms)]
    found = try_in_order(losses, risks, target.confidence)
    if found.passed is None:
        reviewed = [one[: len(each)] for one in losses]
        return _refuse_review(reviewed, each, limits, found.start, target)
    limit, leave = path[found.passed]
    review = None
    if target.review is not None:
        answers = [form.answers(leave) for form in forms]
        review = ReviewTest(limit, promise_from_claims(claims, answers, limit, target.review))
    if leave is not None:
        return CascadeTest(review, leave, _promise_of_exit(losses[found.passed][len(each) :], target))
    if found.passed < planned:
        refusal = "fewer predictions can skip review than validation images promised, so no exit was tested"
    elif len(path) == planned + 1:
        refusal = "no validation image may leave early"
    else:
        refusal = f"the strictest exit has a p-value of {found.p_values[-1]:.2g}"
    tested = min(found.passed + 1, len(path) - 1)
    worst = max(losses[tested][len(each) :], key=lambda one: float(one.sum()))
    refused = RefusedPromise(
        what="fraction of patients that the cascade hurts",
        target=target.risk,
        confidence=target.confidence,
        limit=path[tested][0],
        patients=len(worst),
        errors=float(worst.sum()),
        p_value=found.p_values[-1],
    )
    return CascadeTest(review, refusal=refusal, refused=refused)


class _Form:
    """Predictions of a form that will serve, as review and operating point see them."""

    def __init__(self, staged: StagedAnswers, target: CascadeTarget) -> None:
        self.staged = staged
        self._target = target
        self._known: dict[float | None, ReviewAnswers] = {}

    def answers(self, leave: float | None) -> ReviewAnswers:
        """Return the cascade's predictions with the exit `leave`."""
        if self._target.review is None:
            raise ValueError("expected a target of the review risk")
        if leave not in self._known:
            one = self.staged
            self._known[leave] = ReviewAnswers.from_verdict(
                one.verdict(leave), one.labels, one.groups, self._target.rule, self._target.review
            )
        return self._known[leave]


def _plan_limit(
    seen: _Form, new: Sequence[_Form], claims: Sequence[Claim], limits: list[float], target: CascadeTarget
) -> int:
    """Return the index of the review limit whose exits are tested, which validation images choose.

    It is the loosest limit that would pass if certification patients had more errors than validation patients by two
    standard deviations of the difference; else the first that can be tested.
    """

    def is_likely(limit: float) -> bool:
        for claim in claims:
            known = claim.losses(seen.answers(None), limit)
            patients = min(len(claim.losses(form.answers(None), limit)) for form in new)
            # Half an error more, as no error is no proof that there can be none.
            expected = patients * (float(known.sum()) + 0.5) / (len(known) + 0.5)
            spread = np.sqrt(expected * (1 + patients / (len(known) + 0.5)))
            errors = min(np.ceil(expected + 2 * spread), patients)
            # Whole errors are the most that a sum of losses is likely to be.
            likely = np.repeat([1.0, 0.0], [int(errors), patients - int(errors)])
            if risk_p_value(likely, claim.risk) > 1 - target.confidence:
                return False
        return True

    if (last := next((index for index in reversed(range(len(limits))) if is_likely(limits[index])), None)) is not None:
        return last
    needed = [count_required_patients(claim.risk, target.confidence) for claim in claims]
    for index, limit in enumerate(limits):
        counts = [min(len(claim.losses(form.answers(None), limit)) for form in new) for claim in claims]
        if all(count >= number for count, number in zip(counts, needed, strict=True)):
            return index
    return len(limits) - 1


def _refuse_review(
    losses: Sequence[Sequence[Floats]],
    claims: Sequence[Claim],
    limits: list[float],
    start: int | None,
    target: CascadeTarget,
) -> CascadeTest:
    """Return why the first configuration, a whole vote, did not pass."""
    if start is None:
        review = refuse_few(losses, claims, target.confidence)
    else:
        review = refuse_first(limits[start], losses[start], claims, target.confidence)
    return CascadeTest(review, refusal="no review limit passed, so no exit was tested")


def _promise_of_exit(hurt: Sequence[Floats], target: CascadeTarget) -> CascadePromise:
    worst = max(hurt, key=lambda one: float(one.sum()))
    return CascadePromise(
        risk=target.risk,
        confidence=target.confidence,
        patients=len(worst),
        hurt=int(worst.sum()),
        bound=risk_bound(worst, target.confidence),
        p_value=risk_p_value(worst, target.risk),
    )


def cost_of_cascade(left: Bools, groups: Ints, early: float) -> CascadeCost:
    """Return the mean cost of an image, with a 95 % interval by patient: the ratio estimator's normal approximation.

    Args:
        left: Mask of images that leave at the early stage, `[images]`.
        groups: Group of each image, `[images]`; images of one patient share a group.
        early: Cost of the stage's members as a fraction of that of all.
    """
    costs = 1 - left * (1 - early)
    mean = float(costs.mean())
    sums = np.bincount(groups, costs - mean)
    patients = len(sums)
    spread = 1.0 if patients < 2 else _Z95 * np.sqrt(patients / (patients - 1) * np.square(sums).sum()) / len(costs)
    return CascadeCost(value=mean, low=float(max(mean - spread, early)), high=float(min(mean + spread, 1.0)))


def few_patients_text(patients: int, risk: float, confidence: float) -> str:
    """Return how many certification patients a risk needs and how many are missing; empty if there are enough."""
    none, one = (count_required_patients(risk, confidence, hurt) for hurt in range(2))
    if patients >= none:
        return ""
    return (
        f"a promise of {risk:.2%} with {confidence:.0%} confidence needs {none:,} certification patients of whom none "
        f"is hurt, or {one:,} with one; there are {patients:,}, so {none - patients:,} are missing. They can promise "
        f"at best {smallest_promise(patients, confidence):.2%}: --cascade-risk auto"
    )


def cascade_texts(rule: CascadeRule, names: Sequence[str]) -> list[str]:
    """Return sentences on a cascade of one early stage: what it saves, and what it promises.

    Args:
        rule: The cascade.
        names: Names of the members, in the order of the ensemble.
    """
    (stage,), cost = rule.stages, rule.cost
    first = ", ".join(names[member] for member in rule.order[: stage.members])
    saves = (
        f"{first} {'settles' if stage.members == 1 else 'settle'} {stage.share:.1%} of certification images; the mean "
        f"cost is {cost.value:.1%} of the whole vote's {_UNITS[rule.costs_by]} ({cost.low:.1%} to {cost.high:.1%})"
    )
    return [saves, "no promise on hurt patients" if rule.promise is None else hurt_text(rule.promise)]


def hurt_text(promise: CascadePromise) -> str:
    """Return the promise and its figures in a sentence."""
    return (
        f"at most {promise.risk:.2%} of new patients like those tested are hurt, with {promise.confidence:.0%} "
        f"confidence ({promise.status}): {promise.hurt:,} of {promise.patients:,} certification patients, bound "
        f"{promise.bound:.2%}"
    )
