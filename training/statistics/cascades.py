"""Figures of a cascade beside those of the whole vote."""

from __future__ import annotations

import numpy as np

from plurum.predictions.arrays import Floats, Ints
from plurum.predictions.scores import compute_losses
from plurum.spec import CascadeRule
from plurum.training.statistics.bootstrap import Bootstrap
from plurum.training.statistics.estimates import Estimate, estimate_mean
from plurum.training.statistics.results import CascadeScores
from plurum.voting import CascadeVerdict, Verdict

__all__ = ["score_cascade"]


def score_cascade(
    found: CascadeVerdict, whole: Verdict, rule: CascadeRule, labels: Ints, bootstrap: Bootstrap
) -> CascadeScores:
    """Return the figures of a cascade on labelled images, with 95 % intervals by patient.

    Args:
        found: Predictions of the cascade.
        whole: Predictions of all members for the same images.
        rule: The cascade.
        labels: True classes, `[images]`.
        bootstrap: Bootstrap over the groups of these images.
    """
    verdict = found.verdict
    left = found.stage < len(rule.stages)
    differs = (verdict.label != whole.label) & (whole.label == labels)
    is_hurt = np.bincount(bootstrap.groups, differs | (whole.review & ~verdict.review)) > 0

    def figure(values: Floats) -> Estimate:
        return estimate_mean(values, bootstrap)

    losses = [compute_losses(one.probabilities, labels) for one in (verdict, whole)]
    correct = [(one.label == labels).astype(np.float64) for one in (verdict, whole)]
    return CascadeScores(
        share=figure(left.astype(np.float64)),
        cost=figure(found.members_used @ np.asarray(rule.costs)),
        accuracy=figure(correct[0]),
        nll=figure(losses[0]),
        differences={"accuracy": figure(correct[0] - correct[1]), "nll": figure(losses[0] - losses[1])},
        review=figure(verdict.review.astype(np.float64)),
        patients=len(is_hurt),
        hurt=int(is_hurt.sum()),
    )
