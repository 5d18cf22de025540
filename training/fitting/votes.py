"""From members' answers to validation images to a fitted vote: who is in it, how they vote, and what its answers mean.

Legend: answers are probabilities `[images, members, classes]`, float64; labels and groups are `[images]`, int64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace

import numpy as np
import numpy.typing as npt

from plurum.training.fitting.selection import Selection, backward_selection, contributions_of
from plurum.training.fitting.stacking import Fold, cross_fitted, fitted_stack, out_of_fold
from plurum.training.fitting.weights import (
    equal_weights,
    fitted_weights,
    greedy_weights,
    improvement_interval,
    soft_losses,
)
from plurum.training.settings import FitSettings
from plurum.training.statistics.bootstrap import Bootstrap, mean_interval
from plurum.training.statistics.calibration import (
    conformal_quantiles,
    fitted_temperature,
    review_threshold,
    tempered_losses,
)
from plurum.voting import Verdict, VotingRule, decide, soft_vote

__all__ = ["FittedVote", "Known", "confidence_of", "fitted_vote", "with_meaning"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# Limits are some validation image's own figure. They are set this much beyond it, so that it stays within them when
# another program adds up in another order.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class Known:
    """Answers to images whose truth is known.

    Attributes:
        answers: Of all members.
        labels: The truth.
        groups: Images of one patient share a number.
        classes: Names, in the order of the labels.
    """

    answers: Floats
    labels: Ints
    groups: Ints
    classes: Sequence[str]

    def of(self, members: Ints) -> Known:
        """Return the answers of some members alone."""
        return replace(self, answers=self.answers[:, members])


@dataclass(frozen=True)
class FittedVote:
    """A vote of those members that are kept.

    Attributes:
        rule: How they vote.
        kept: Indices of those members.
        selection: How they were chosen.
        weights_tried: What was fitted for those selected, by index, taken or not. None where the vote is stacked.
        nll_saved: 95 % interval of the validation NLL that these weights, or stacking, save against equal ones, nats,
            where each image is answered by a fit that has not seen its patient.
        folds: Of stacking, by which validation images are judged by a regression that has not seen them; else empty.
    """

    rule: VotingRule
    kept: Ints
    selection: Selection
    weights_tried: dict[int, float] | None
    nll_saved: tuple[float, float]
    folds: tuple[Fold, ...]

    def verdict(self, answers: Floats) -> Verdict:
        """Return the verdict on images that the vote has not seen, by the answers of all members."""
        return decide(answers[:, self.kept], self.rule)

    def fitted_verdict(self, answers: Floats) -> Verdict:
        """Return the verdict on the very images the vote was fitted to, none of them by a regression that saw it."""
        if not self.folds:
            return self.verdict(answers)
        parts = [decide(answers[fold.rows][:, self.kept], _stacked(self.rule, fold)) for fold in self.folds]
        order = np.argsort(np.concatenate([fold.rows for fold in self.folds]))
        return Verdict(*(np.concatenate(values)[order] for values in zip(*map(astuple, parts), strict=True)))


def fitted_vote(known: Known, settings: FitSettings) -> FittedVote:
    """Choose who votes and fit how; prediction sets and review are not fitted yet.

    Raises:
        DataError: stacking, and a class has too few patients.
    """
    bootstrap = Bootstrap(known.groups, settings.draws, settings.seed)
    selection = _selected(known, settings, bootstrap)
    kept = np.flatnonzero(selection.weights)
    chosen = known.of(kept)
    if settings.mode == "stack":
        return _stacked_vote(chosen, kept, selection, settings, bootstrap)
    greedy = settings.select == "greedy"
    tried = selection.weights[kept] if greedy else fitted_weights(chosen.answers, known.labels)
    fit = greedy_weights if greedy else fitted_weights
    saved = improvement_interval(chosen.answers, known.labels, fit, bootstrap)
    by_member = dict(zip(kept.tolist(), tried.tolist(), strict=True))
    soft = settings.mode == "soft"
    weights = tried if soft and (greedy or saved[0] > 0) else equal_weights(len(kept))
    if settings.select == "backward":
        # Who has no say need not be served.
        chosen, kept, weights = chosen.of(np.flatnonzero(weights)), kept[weights > 0], weights[weights > 0]
    temperature = fitted_temperature(soft_vote(chosen.answers, weights), known.labels) if soft else 1.0
    rule = VotingRule(tuple(weights.tolist()), settings.mode, temperature)
    return FittedVote(rule, kept, selection, by_member, saved, ())


def with_meaning(
    vote: FittedVote, known: Known, settings: FitSettings, ratio: tuple[float, ...] | None = None
) -> FittedVote:
    """Return the vote with its prediction sets and its review threshold, corrected for the classes' shares.

    Args:
        vote: Fitted to `known`.
        known: The validation images.
        settings: Which sets and which risk are wished for.
        ratio: One per class: its share among the images to be served over that among these. As many such images each
            of these stands for, when the risk is computed.
    """
    corrected = replace(vote, rule=replace(vote.rule, prior_ratio=ratio))
    verdict, labels = corrected.fitted_verdict(known.answers), known.labels
    weights = None if ratio is None else np.asarray(ratio)[labels]
    quantiles = conformal_quantiles(verdict.probabilities, labels, known.groups, settings.alpha)
    threshold = review_threshold(confidence_of(verdict), verdict.label != labels, settings.risk, weights)
    rule = replace(
        corrected.rule,
        quantiles=tuple(min(quantile + _ROUNDING, 1.0) for quantile in quantiles),
        review_threshold=max(threshold - _ROUNDING, 0.0) if threshold < 1 else 1.0,
    )
    return replace(corrected, rule=rule)


def confidence_of(verdict: Verdict) -> Floats:
    """Return the winners' probabilities, `[images]`."""
    return np.take_along_axis(verdict.probabilities, verdict.label[:, None], axis=-1)[:, 0]


def _selected(known: Known, settings: FitSettings, bootstrap: Bootstrap) -> Selection:
    number = known.answers.shape[1]

    def vote(weights: Floats) -> Floats:
        if settings.mode != "stack":
            # Of hard votes too: a class without a vote has no probability there, and any such image an NLL of 708.
            return soft_vote(known.answers, weights)
        chosen = known.of(np.flatnonzero(weights))
        return out_of_fold(chosen.answers, _folds(chosen, settings))

    if settings.select == "backward":
        return backward_selection(vote, known.labels, number, bootstrap)
    greedy = settings.select == "greedy"
    weights = greedy_weights(known.answers, known.labels) if greedy else equal_weights(number)
    found = contributions_of(vote, known.labels, weights, bootstrap)
    return Selection(weights, tuple(found.get(member) for member in range(number)))


def _stacked_vote(
    chosen: Known, kept: Ints, selection: Selection, settings: FitSettings, bootstrap: Bootstrap
) -> FittedVote:
    folds = _folds(chosen, settings)
    answers = out_of_fold(chosen.answers, folds)
    weights = equal_weights(len(kept))
    saved = soft_losses(chosen.answers, chosen.labels, weights) - tempered_losses(answers, chosen.labels)
    rule = VotingRule(tuple(weights.tolist()), "stack", fitted_temperature(answers, chosen.labels))
    whole = Fold(np.arange(len(chosen.labels)), fitted_stack(chosen.answers, chosen.labels, settings.l2))
    return FittedVote(_stacked(rule, whole), kept, selection, None, mean_interval(saved, bootstrap), folds)


def _folds(chosen: Known, settings: FitSettings) -> tuple[Fold, ...]:
    return cross_fitted(
        chosen.answers, chosen.labels, chosen.groups, chosen.classes, l2=settings.l2, seed=settings.seed
    )


def _stacked(rule: VotingRule, fold: Fold) -> VotingRule:
    """Return the rule with the fold's regression."""
    rows = tuple(map(tuple, fold.stack.coefficients.tolist()))
    return replace(rule, coefficients=rows, intercepts=tuple(fold.stack.intercepts.tolist()))
