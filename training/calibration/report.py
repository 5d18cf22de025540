"""Report of a calibration at a site."""

from __future__ import annotations

from typing import Literal

import numpy as np

from plurum.predictions.arrays import Floats, Ints
from plurum.spec import Ensemble, Metadata
from plurum.training.calibration.site_rule import SiteRule
from plurum.training.statistics.bootstrap import Bootstrap
from plurum.training.statistics.decisions import DecisionFigures, decision_figures
from plurum.training.statistics.estimates import Estimate, estimate_from_draws
from plurum.training.statistics.metrics import LabelledPredictions, Scorer
from plurum.voting import Verdict

__all__ = ["FIGURES", "CalibrationReport", "SiteChange", "compare_verdicts", "figures_of_point"]

FIGURES = ("nll", "accuracy", "ece")


class SiteChange(Metadata):
    """Change of a figure by the calibration, on the site's images.

    Attributes:
        before: Figure with the old calibration.
        after: Figure with the new one, where each image is predicted by a calibration without its patient.
        difference: After minus before, paired by bootstrap draws of patients.
    """

    before: Estimate
    after: Estimate
    difference: Estimate


class CalibrationReport(Metadata):
    """Report of a calibration at a site.

    Attributes:
        version: Version of the file format.
        ensemble: Contents of the site's `ensemble.json`.
        by_class: Number of images by class.
        changes: Changes by figure: `nll`, `accuracy` and `ece`. They judge the procedure, with the choice of the
            strength in it.
        is_changed: False if temperature and prior ratio stayed, because no gain was found.
        decisions: Figures of the decisions at the operating point, before and after; None without a positive class.
        reviewed: Fraction of the site's predictions that need review, before and after.
        lines: What else was fitted and what stayed, one sentence each.
    """

    version: Literal[1] = 1
    ensemble: Ensemble
    by_class: dict[str, int]
    changes: dict[str, SiteChange]
    is_changed: bool
    decisions: dict[Literal["before", "after"], DecisionFigures] | None
    reviewed: dict[Literal["before", "after"], float]
    lines: tuple[str, ...]


def compare_verdicts(before: Verdict, after: Verdict, labels: Ints, bootstrap: Bootstrap) -> dict[str, SiteChange]:
    """Return the changes from `before` to `after` by figure, with intervals by patient."""
    scorers = [Scorer(LabelledPredictions(one.probabilities, one.label, labels)) for one in (before, after)]
    once = np.ones((len(labels), 1), dtype=np.float32)
    values = [scorer(once).overall for scorer in scorers]
    drawn: list[list[dict[str, Floats]]] = [[], []]
    for counts in bootstrap.blocks():
        for draws, scorer in zip(drawn, scorers, strict=True):
            draws.append(scorer(counts).overall)
    changes = {}
    for name in FIGURES:
        old, new = (np.concatenate([one[name] for one in draws]) for draws in drawn)
        first, second = (float(one[name][0]) for one in values)
        changes[name] = SiteChange(
            before=estimate_from_draws(first, old),
            after=estimate_from_draws(second, new),
            difference=estimate_from_draws(second - first, new - old),
        )
    return changes


def figures_of_point(
    rule: SiteRule, verdict: Verdict, labels: Ints, classes: tuple[str, ...], bootstrap: Bootstrap
) -> DecisionFigures | None:
    """Return the figures of the decisions for the positive class; None without one."""
    if rule.point is None or rule.point.positive is None:
        return None
    positive = classes.index(rule.point.positive)
    everything = np.ones(len(labels), dtype=np.bool_)
    return decision_figures(labels == positive, verdict.label == positive, everything, bootstrap)
