"""Fit a cascade: choose its first stage on validation images, and certify its exit on certification patients.

Legend: members are numbered as in the vote; probabilities of members are `[images, members, classes]`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from plurum.errors import SettingsError
from plurum.models import flops_of_model, model_from_checkpoint
from plurum.onnx_graphs.costs import multiply_adds
from plurum.promises.cascades import (
    CascadeTarget,
    CascadeTest,
    StagedAnswers,
    cascade_texts,
    cascade_without_limit,
    certify_cascade,
    cost_of_cascade,
    few_patients_text,
    list_exits,
)
from plurum.promises.review import ReviewTarget
from plurum.promises.risk_control import smallest_promise
from plurum.run import Run, Split, UnlabelledImages
from plurum.settings.fitting import FitSettings
from plurum.spec import CascadeRule, Conformal, EarlyStage, Ensemble, Member, OutlierRule, Voting
from plurum.training.fitting.baseline import baseline_from_verdict
from plurum.training.fitting.certification import Certification, certification_from_test
from plurum.training.fitting.points import CONFIDENCE
from plurum.training.fitting.report import CascadeFit
from plurum.training.fitting.votes import FittedVote, ValidationPredictions
from plurum.training.inference.predictions import predict_unlabelled
from plurum.training.statistics.bootstrap import Bootstrap
from plurum.training.statistics.calibration import conformal_quantiles, fit_temperature
from plurum.training.statistics.cascades import score_cascade
from plurum.training.statistics.wording import cascade_line
from plurum.voting import (
    Cascade,
    CascadeStage,
    VotingRule,
    cascade_from_ensemble,
    decide,
    decide_cascade,
    outlier_test_from_ensemble,
    soft_vote,
)

__all__ = [
    "CascadeInputs",
    "CascadePlan",
    "FittedCascade",
    "cascade_fit",
    "cost_fractions",
    "fit_cascade",
    "fit_run_cascade",
    "multiply_adds_of_member",
    "plan_cascade",
    "predict_unlabelled_patients",
    "with_cascade",
]

# Alphas of the stage's outlier test, as multiples of the whole vote's: with a higher one, fewer outliers leave.
_ALPHAS = (1, 2, 5, 10, 20)
_HIGHEST_ALPHA = 0.5
# A cascade that saves less is not worth a second graph.
_LEAST_SAVED = 0.05
# Fitted limits equal the value of some image; other programs may sum in another order.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class CascadeInputs:
    """Vote to make a cascade of, and the predictions that choose and certify it.

    Attributes:
        vote: Soft vote with prediction sets and review.
        parts: Predictions by split, `validation` and `certification` among them.
        members: Members of the vote.
        costs: Cost of each member as a fraction of that of all.
        outliers: Outlier test of the whole vote; None tests none.
        unlabelled: Predictions for images of further patients; None without any.
    """

    vote: FittedVote
    parts: Mapping[Split, ValidationPredictions]
    members: Sequence[Member] = ()
    costs: Sequence[float] = ()
    outliers: OutlierRule | None = None
    unlabelled: ValidationPredictions | None = None

    @property
    def patients(self) -> int:
        """Number of patients who certify the cascade."""
        parts = [self.parts["certification"], *([] if self.unlabelled is None else [self.unlabelled])]
        return sum(len(np.unique(part.groups)) for part in parts)

    def answers(self, known: ValidationPredictions, cascade: Cascade) -> StagedAnswers:
        """Return the predictions of a cascade for images."""
        members = known.predictions[:, self.vote.kept]
        return StagedAnswers.from_members(members, known.novelty, cascade, known.labels, known.groups)


@dataclass(frozen=True)
class CascadePlan:
    """First stage of a cascade, chosen on validation images.

    Attributes:
        order: Members in the order in which they run.
        stage: Stage, with its exit on validation images.
        outliers: Outlier test of the stage; None tests none.
        early: Cost of the stage's members as a fraction of that of all members.
        cost: Mean cost of a validation image, likewise.
    """

    order: tuple[int, ...]
    stage: CascadeStage
    outliers: OutlierRule | None
    early: float
    cost: float


@dataclass(frozen=True)
class FittedCascade:
    """Result of fitting a cascade.

    Attributes:
        lines: Results as lines of text.
        rule: Cascade; None if none was fitted.
        certification: Result of the review risk, which was tested together with the cascade; None if it was not.
    """

    lines: tuple[str, ...]
    rule: CascadeRule | None = None
    certification: Certification | None = None


def cost_fractions(run: Run, members: Sequence[Member]) -> tuple[float, ...]:
    """Return the multiply–adds of each member as a fraction of those of all.

    Raises:
        MetadataError: a member is invalid.
        MissingExtraError: PyTorch, timm or safetensors is not installed.
    """
    # A model without convolutions and matrices counts nothing.
    work = [max(multiply_adds_of_member(run, member), 1) for member in members]
    return tuple(one / sum(work) for one in work)


def multiply_adds_of_member(run: Run, member: Member) -> int:
    """Return the multiply–adds of a member for one image.

    Raises:
        MetadataError: the member is invalid.
        MissingExtraError: PyTorch, timm or safetensors is not installed.
    """
    import torch

    checkpoint = run.checkpoint(member)
    if member.format == "onnx":
        return multiply_adds(checkpoint)
    pixels = torch.zeros(1, 3, member.image.height, member.image.width)
    return flops_of_model(model_from_checkpoint(member, checkpoint), pixels) // 2


def predict_unlabelled_patients(
    run: Run, members: Sequence[Member], vote: FittedVote, outliers: OutlierRule | None, images: UnlabelledImages
) -> ValidationPredictions:
    """Return the predictions of all members, whose labels are -1, as they are unknown.

    Args:
        run: Run of the members.
        members: Members of the run.
        vote: Vote of some of them.
        outliers: Outlier test of the vote; None tests none.
        images: Images to predict.
    """
    detectors: list[str | None] = [None] * len(members)
    for place, member in enumerate(vote.kept.tolist()):
        detectors[member] = None if outliers is None else outliers.detectors[place]
    found = predict_unlabelled(run, members, detectors, images.pixels)
    novelty = None if outliers is None else found.novelty[:, vote.kept]
    unknown = np.full(len(images.groups), -1)
    return ValidationPredictions(found.probabilities, unknown, images.groups, run.data().classes, novelty)


def plan_cascade(inputs: CascadeInputs, order: Sequence[int], risk: float, alpha: float) -> CascadePlan | None:
    """Return the cascade with the lowest cost on validation images; None if no validation image may leave.

    Its exit there hurts at most half of the risk of validation patients.

    Args:
        inputs: Vote and predictions.
        order: Members in the order in which they run.
        risk: Largest fraction of hurt patients.
        alpha: Target fraction of prediction sets that miss the true class.
    """
    plans, rule = [], inputs.vote.rule
    for number in range(1, len(order)):
        chosen = tuple(order[:number])
        early = sum(inputs.costs[member] for member in chosen)
        first = _stage_rule(inputs, chosen, alpha)
        for outliers in _stage_outliers(inputs, chosen):
            test = None if outliers is None else outlier_test_from_ensemble({"outliers": outliers.model_dump()})
            stage = CascadeStage(chosen, replace(first, outliers=test), 1.0)
            seen = inputs.answers(inputs.parts["validation"], Cascade((stage,), rule))
            harmless = (leave for leave in reversed(list_exits(seen, 0.0)) if seen.hurt(leave, 0.0).mean() <= risk / 2)
            if (leave := next(harmless, None)) is not None:
                cost = cost_of_cascade(seen.left(leave), seen.groups, early).value
                plans.append(CascadePlan(tuple(order), replace(stage, leave=leave), outliers, early, cost))
    return min(plans, key=lambda plan: plan.cost, default=None)


def _stage_rule(inputs: CascadeInputs, chosen: tuple[int, ...], alpha: float) -> VotingRule:
    """Return the rule of the first members: the vote's, with weights, temperature and prediction sets of their own."""
    vote, known = inputs.vote, inputs.parts["validation"]
    columns = vote.kept[list(chosen)]
    weights = np.array([vote.rule.weights[member] for member in chosen])
    weights /= weights.sum()
    temperature = fit_temperature(soft_vote(known.predictions[:, columns], weights), known.labels)
    rule = replace(vote.rule, weights=tuple(weights.tolist()), temperature=temperature, quantiles=None, outliers=None)
    reference = inputs.parts.get("calibration", known)
    probabilities = decide(reference.predictions[:, columns], rule).probabilities
    quantiles = conformal_quantiles(probabilities, reference.labels, reference.groups, alpha)
    return replace(rule, quantiles=tuple(min(one + _ROUNDING, 1.0) for one in quantiles))


def _stage_outliers(inputs: CascadeInputs, chosen: tuple[int, ...]) -> list[OutlierRule | None]:
    """Return outlier tests of the first members to choose from; without detectors, only none."""
    whole = inputs.outliers
    found = None if whole is None else whole.of_members(chosen, whole.alpha)
    test = None if found is None else outlier_test_from_ensemble({"outliers": found.model_dump()})
    if whole is None or found is None or test is None:
        return [None]
    # The images that are the reference of the whole vote, too.
    reference = inputs.parts.get("calibration", inputs.parts["validation"])
    if reference.novelty is None:
        raise ValueError("expected the novelty of reference images")
    found = found.with_reference(test.score(reference.novelty[:, list(chosen)]), reference.groups)
    alphas = sorted({min(whole.alpha * times, max(_HIGHEST_ALPHA, whole.alpha)) for times in _ALPHAS})
    return [found.model_copy(update={"alpha": alpha}) for alpha in alphas]


def fit_run_cascade(
    run: Run,
    members: Sequence[Member],
    inputs: CascadeInputs,
    unlabelled: UnlabelledImages | None,
    settings: FitSettings,
    review: ReviewTarget | None,
) -> FittedCascade:
    """Return the cascade of a run's vote; see `fit_cascade`.

    Args:
        run: Run of the members.
        members: Members of the run.
        inputs: Vote and predictions, without members and their costs.
        unlabelled: Images of further patients; None without any.
        settings: Settings of the fit.
        review: Promise on the review risk to make together with the cascade's; None makes none.

    Raises:
        MetadataError: a member is invalid.
        SettingsError: the settings order other members than the vote has.
    """
    vote = inputs.vote
    chosen = tuple(members[index] for index in vote.kept)
    inputs = replace(inputs, members=chosen, costs=cost_fractions(run, chosen))
    if unlabelled is not None:
        more = predict_unlabelled_patients(run, members, vote, inputs.outliers, unlabelled)
        inputs = replace(inputs, unlabelled=more)
    return fit_cascade(inputs, settings, review)


def fit_cascade(inputs: CascadeInputs, settings: FitSettings, review: ReviewTarget | None) -> FittedCascade:
    """Return the cascade that may be served, and the review limit that was tested together with it.

    Args:
        inputs: Vote and predictions.
        settings: Risk, its confidence, and the order of the members.
        review: Promise on the review risk to make together with the cascade's; None makes none.

    Raises:
        SettingsError: the settings order other members than the vote has.
    """
    order = _order_members(inputs, settings)
    confidence, patients = settings.confidence or CONFIDENCE, inputs.patients
    risk = settings.cascade_risk
    if risk == "auto":
        # Just above the smallest promise, where the p-value is not above its limit by rounding.
        risk = smallest_promise(patients, confidence) * (1 + 1e-9)
    if len(order) == 1:
        return _no_cascade("the vote has a single member")
    if few := few_patients_text(patients, risk, confidence):
        return _no_cascade(few)
    plan = plan_cascade(inputs, order, risk, settings.alpha)
    if plan is None:
        return _no_cascade("no stage settles validation images without hurting patients")
    if plan.cost > 1 - _LEAST_SAVED:
        return _no_cascade(f"nothing is gained: it costs {plan.cost:.1%} of the whole vote on validation images")
    return _certify(inputs, plan, CascadeTarget(risk, confidence, inputs.vote.rule, review), settings.alpha)


def _no_cascade(reason: str) -> FittedCascade:
    return FittedCascade((f"cascade: none, because {reason}",))


def _order_members(inputs: CascadeInputs, settings: FitSettings) -> list[int]:
    """Return the members in the requested order; else the cheapest first, of equal ones the better first."""
    names, known = [member.name for member in inputs.members], inputs.parts["validation"]
    if settings.cascade_order:
        if sorted(settings.cascade_order) != sorted(names):
            raise SettingsError(
                f"--cascade-order: expected each member of the vote once ({', '.join(names)}), got "
                f"{', '.join(settings.cascade_order)}. Repeat it for every member."
            )
        return [names.index(name) for name in settings.cascade_order]
    correct = known.predictions[:, inputs.vote.kept].argmax(axis=-1) == known.labels[:, None]
    accuracies = correct.mean(axis=0)
    return sorted(range(len(names)), key=lambda member: (round(inputs.costs[member], 6), -accuracies[member], member))


def _certify(inputs: CascadeInputs, plan: CascadePlan, target: CascadeTarget, alpha: float) -> FittedCascade:
    """Return the cascade with the exit that certification patients allow."""

    def test_with(target: CascadeTarget) -> tuple[CascadeTest, StagedAnswers]:
        cascade = Cascade((plan.stage,), inputs.vote.rule)
        if target.review is not None:
            cascade = cascade_without_limit(cascade)
        seen, new = (
            inputs.answers(part, cascade) for part in (inputs.parts["validation"], inputs.parts["certification"])
        )
        more = [] if inputs.unlabelled is None else [inputs.answers(inputs.unlabelled, cascade)]
        return certify_cascade(seen, [new], target, more), new

    test, new = test_with(target)
    kept = None
    if test.review is not None:
        kept = certification_from_test(inputs.vote, test.review, inputs.parts["validation"])
        if kept.refused is not None and kept.refused.limit is None:
            # Too few patients for the review risk, which is known without their errors.
            test, new = test_with(replace(target, review=None))
    if test.leave is None or test.promise is None:
        return replace(_no_cascade(test.refusal), certification=kept)
    left = new.left(test.leave)
    cost = cost_of_cascade(left, new.groups, plan.early)
    if cost.value > 1 - _LEAST_SAVED:
        gained = f"nothing is gained: with the exit that passed, it costs {cost.value:.1%} of the whole vote"
        return replace(_no_cascade(gained), certification=kept)
    rule = plan.stage.rule
    stage = EarlyStage(
        members=len(plan.stage.members),
        voting=Voting.model_validate(rule, from_attributes=True),
        conformal=Conformal(alpha=alpha, quantiles=rule.quantiles or ()),
        outliers=plan.outliers,
        leave=test.leave,
        share=float(left.mean()),
    )
    found = CascadeRule(order=plan.order, stages=(stage,), costs=tuple(inputs.costs), cost=cost, promise=test.promise)
    names = [member.name for member in inputs.members]
    return FittedCascade(tuple(f"cascade: {line}" for line in cascade_texts(found, names)), found, kept)


def with_cascade(
    ensemble: Ensemble, cascade: FittedCascade, vote: FittedVote, known: ValidationPredictions
) -> Ensemble:
    """Return the ensemble with the cascade, and with a baseline of the cascade's predictions."""
    changed = ensemble.with_cascade(cascade.rule)
    rule = cascade_from_ensemble(changed.model_dump())
    if rule is None:
        return ensemble
    found = decide_cascade(known.predictions[:, vote.kept], rule, known.novelty)
    baseline = baseline_from_verdict(found.verdict, vote.rule, used=found.members_used)
    return changed.model_copy(update={"baseline": baseline})


def cascade_fit(
    ensemble: Ensemble, cascade: FittedCascade, vote: FittedVote, test: ValidationPredictions, settings: FitSettings
) -> CascadeFit:
    """Return the result of the cascade, with its figures on test images."""
    rule = cascade_from_ensemble(ensemble.model_dump())
    if rule is None or ensemble.cascade is None:
        return CascadeFit(lines=cascade.lines)
    bootstrap = Bootstrap(test.groups, settings.draws, settings.seed)
    found = decide_cascade(test.predictions[:, vote.kept], rule, test.novelty)
    whole = vote.verdict(test.predictions, test.novelty)
    scores = score_cascade(found, whole, ensemble.cascade, test.labels, bootstrap)
    return CascadeFit(lines=(*cascade.lines, f"on test images: {cascade_line(scores)}"), scores=scores)
