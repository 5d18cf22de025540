"""Fit a vote to members' predictions for validation images: selection, weights, prediction sets and review.

Legend: predictions are the members' probabilities `[images, members, classes]`, float64; labels and groups are
`[images]`, int64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace

import numpy as np

from plurum.predictions.arrays import Floats, Ints
from plurum.predictions.scores import confidence_of
from plurum.settings.fitting import FitSettings
from plurum.spec import OperatingPoint
from plurum.training.fitting.costs import Costs
from plurum.training.fitting.points import LabelledScores, fit_point, fit_review_interval
from plurum.training.fitting.selection import Selection, measure_contributions, select_backward
from plurum.training.fitting.stacking import StackingFold, cross_fit, fit_stack, predict_out_of_fold
from plurum.training.fitting.weights import (
    equal_weights,
    fit_weights,
    greedy_weights,
    improvement_interval,
    soft_losses,
)
from plurum.training.statistics.bootstrap import Bootstrap, mean_interval
from plurum.training.statistics.calibration import (
    conformal_quantiles,
    fit_temperature,
    review_threshold,
    tempered_losses,
)
from plurum.voting import MODES, Verdict, VotingRule, decide, point_from_ensemble, soft_vote

__all__ = ["FittedVote", "ValidationPredictions", "fit_sets_and_review", "fit_vote", "vote_at_point"]


# Fitted limits equal the value of some validation image. This margin keeps that image within them if another program
# sums in another order.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class ValidationPredictions:
    """Members' predictions for labelled images.

    Attributes:
        predictions: Probabilities of all members, `[images, members, classes]`.
        labels: True classes, `[images]`.
        groups: Group of each image, `[images]`; images of one patient share a group.
        classes: Class names, in the order of the labels.
        novelty: Novelty by the selected members, `[images, selected]`; None tests no outliers.
    """

    predictions: Floats
    labels: Ints
    groups: Ints
    classes: Sequence[str]
    novelty: Floats | None = None

    def of(self, members: Ints) -> ValidationPredictions:
        """Return the predictions of some members."""
        return replace(self, predictions=self.predictions[:, members])


@dataclass(frozen=True)
class FittedVote:
    """Vote of the selected members.

    Attributes:
        rule: Voting rule.
        kept: Indices of the selected members.
        selection: Result of the member selection.
        weights_tried: Weights fitted for the selected members, by index, whether or not they are used; None for a
            stacked vote.
        nll_saved: 95 % interval of the validation NLL that these weights, or stacking, save against equal weights, in
            nats; each image is predicted by a fit without its patient.
        folds: Folds of stacking, which predict each validation image by a regression without it; empty for other votes.
        point: Operating point; the rule has it too. None decides for the most probable class.
    """

    rule: VotingRule
    kept: Ints
    selection: Selection
    weights_tried: dict[int, float] | None
    nll_saved: tuple[float, float]
    folds: tuple[StackingFold, ...]
    point: OperatingPoint | None = None

    def verdict(self, predictions: Floats, novelty: Floats | None = None) -> Verdict:
        """Return the verdict on new images.

        Args:
            predictions: Probabilities of all members, `[images, members, classes]`.
            novelty: Novelty by the selected members, `[images, selected]`; None tests no outliers.
        """
        return decide(predictions[:, self.kept], self.rule, novelty)

    def validation_verdict(self, predictions: Floats, novelty: Floats | None = None) -> Verdict:
        """Return the verdict on the validation images; stacking predicts each by a regression without it."""
        if not self.folds:
            return self.verdict(predictions, novelty)
        parts = [
            decide(
                predictions[fold.rows][:, self.kept],
                _rule_with_regression(self.rule, fold),
                None if novelty is None else novelty[fold.rows],
            )
            for fold in self.folds
        ]
        order = np.argsort(np.concatenate([fold.rows for fold in self.folds]))
        return Verdict(*(np.concatenate(values)[order] for values in zip(*map(astuple, parts), strict=True)))


def fit_vote(known: ValidationPredictions, settings: FitSettings) -> FittedVote:
    """Select members and fit their vote, without prediction sets and review threshold.

    Raises:
        DataError: a class has too few patients for stacking.
    """
    bootstrap = Bootstrap(known.groups, settings.draws, settings.seed)
    selection = _select_members(known, settings, bootstrap)
    kept = np.flatnonzero(selection.weights)
    chosen = known.of(kept)
    if settings.mode == "stack":
        return _fit_stacked_vote(chosen, kept, selection, settings, bootstrap)
    greedy = settings.select == "greedy"
    tried = selection.weights[kept] if greedy else fit_weights(chosen.predictions, known.labels)
    fit = greedy_weights if greedy else fit_weights
    saved = improvement_interval(chosen.predictions, known.labels, fit, bootstrap)
    by_member = dict(zip(kept.tolist(), tried.tolist(), strict=True))
    mode = MODES[settings.mode]
    weights = tried if mode.has_weights and (greedy or saved[0] > 0) else equal_weights(len(kept))
    if settings.select == "backward":
        # Members with a weight of 0 need not be served.
        chosen, kept, weights = chosen.of(np.flatnonzero(weights)), kept[weights > 0], weights[weights > 0]
    rule = VotingRule(tuple(weights.tolist()), settings.mode)
    if mode.has_probabilities:
        vote = mode.vote(chosen.predictions, soft_vote(chosen.predictions, weights), rule)
        rule = replace(rule, temperature=fit_temperature(vote, known.labels))
    return FittedVote(rule, kept, selection, by_member, saved, ())


def fit_sets_and_review(
    vote: FittedVote,
    known: ValidationPredictions,
    settings: FitSettings,
    ratio: tuple[float, ...] | None = None,
    costs: Costs | None = None,
    calibration: ValidationPredictions | None = None,
) -> FittedVote:
    """Return the vote with operating point, prediction sets and review, corrected for class frequencies.

    Args:
        vote: Vote fitted to `known`.
        known: Predictions for the validation images.
        settings: Targets of operating point, prediction sets and review.
        ratio: Frequency of each class in service divided by that in `known`; it also weights the images when the risk
            is computed. None corrects nothing.
        costs: Costs of decisions, if the settings choose the point by them.
        calibration: Predictions for images that are set aside for the prediction sets; None takes `known`.

    Raises:
        SettingsError: the requested operating point is not reachable.
    """
    corrected = replace(vote, rule=replace(vote.rule, prior_ratio=ratio))
    labels = known.labels
    weights = None if ratio is None else np.asarray(ratio)[labels]
    probabilities = corrected.validation_verdict(known.predictions).probabilities
    if calibration is None:
        quantiles = conformal_quantiles(probabilities, labels, known.groups, settings.alpha)
    else:
        aside = corrected.verdict(calibration.predictions).probabilities
        quantiles = conformal_quantiles(aside, calibration.labels, calibration.groups, settings.alpha)
    corrected = replace(
        corrected, rule=replace(corrected.rule, quantiles=tuple(min(one + _ROUNDING, 1.0) for one in quantiles))
    )
    scores = LabelledScores(probabilities, labels, known.groups, known.classes, weights)
    point = fit_point(scores, settings, costs)
    if point is not None:
        point = fit_review_interval(scores, point, settings)
        corrected = vote_at_point(corrected, point, known.classes)
        if point.positive is not None or point.review_cost is not None:
            return corrected
    verdict = corrected.validation_verdict(known.predictions)
    threshold = review_threshold(confidence_of(verdict), verdict.label != labels, settings.estimated_risk, weights)
    limit = max(threshold - _ROUNDING, 0.0) if threshold < 1 else 1.0
    return replace(corrected, rule=replace(corrected.rule, review_threshold=limit))


def vote_at_point(vote: FittedVote, point: OperatingPoint, classes: Sequence[str]) -> FittedVote:
    """Return the vote with an operating point."""
    decision = point_from_ensemble({"classes": list(classes), "operating_point": point.model_dump()})
    return replace(vote, rule=replace(vote.rule, point=decision), point=point)


def _select_members(known: ValidationPredictions, settings: FitSettings, bootstrap: Bootstrap) -> Selection:
    number = known.predictions.shape[1]

    def vote(weights: Floats) -> Floats:
        if settings.mode != "stack":
            # Also for hard votes: their shares can be 0 for the true class, which would give an NLL of 708.
            return soft_vote(known.predictions, weights)
        chosen = known.of(np.flatnonzero(weights))
        return predict_out_of_fold(chosen.predictions, _folds(chosen, settings))

    if settings.select == "backward":
        return select_backward(vote, known.labels, number, bootstrap)
    greedy = settings.select == "greedy"
    weights = greedy_weights(known.predictions, known.labels) if greedy else equal_weights(number)
    found = measure_contributions(vote, known.labels, weights, bootstrap)
    return Selection(weights, tuple(found.get(member) for member in range(number)))


def _fit_stacked_vote(
    chosen: ValidationPredictions, kept: Ints, selection: Selection, settings: FitSettings, bootstrap: Bootstrap
) -> FittedVote:
    folds = _folds(chosen, settings)
    predictions = predict_out_of_fold(chosen.predictions, folds)
    weights = equal_weights(len(kept))
    saved = soft_losses(chosen.predictions, chosen.labels, weights) - tempered_losses(predictions, chosen.labels)
    rule = VotingRule(tuple(weights.tolist()), "stack", fit_temperature(predictions, chosen.labels))
    whole = StackingFold(np.arange(len(chosen.labels)), fit_stack(chosen.predictions, chosen.labels, settings.l2))
    return FittedVote(_rule_with_regression(rule, whole), kept, selection, None, mean_interval(saved, bootstrap), folds)


def _folds(chosen: ValidationPredictions, settings: FitSettings) -> tuple[StackingFold, ...]:
    return cross_fit(
        chosen.predictions, chosen.labels, chosen.groups, chosen.classes, l2=settings.l2, seed=settings.seed
    )


def _rule_with_regression(rule: VotingRule, fold: StackingFold) -> VotingRule:
    """Return the rule with the coefficients of the fold's regression."""
    rows = tuple(map(tuple, fold.stack.coefficients.tolist()))
    return replace(rule, coefficients=rows, intercepts=tuple(fold.stack.intercepts.tolist()))
