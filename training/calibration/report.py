"""Report of a calibration at a site."""

from __future__ import annotations

from typing import Literal

import numpy as np

from plurum.figures import SiteChange, SiteFigures
from plurum.predictions.arrays import Floats, Ints
from plurum.spec import Ensemble
from plurum.training.calibration.site_rule import SiteRule
from plurum.training.statistics.bootstrap import Bootstrap
from plurum.training.statistics.decisions import DecisionFigures, decision_figures
from plurum.training.statistics.estimates import estimate_from_draws
from plurum.training.statistics.metrics import LabelledPredictions, Scorer
from plurum.voting import Verdict

__all__ = ["FIGURES", "CalibrationReport", "compare_verdicts", "figures_of_point"]

FIGURES = ("nll", "accuracy", "ece")


class CalibrationReport(SiteFigures):
    """Report of a calibration at a site, stored in `calibration.json`.

    Attributes:
        version: Version of the file format.
        ensemble: Contents of the site's `ensemble.json`.
        is_changed: False if temperature and prior ratio stayed, because no gain was found.
    """

    version: Literal[1] = 1
    ensemble: Ensemble
    is_changed: bool


def compare_verdicts(
    before: Verdict, after: Verdict, labels: Ints, bootstrap: Bootstrap, weights: Floats | None = None
) -> dict[str, SiteChange]:
    """Return the changes from `before` to `after` by figure, with intervals by patient."""
    scorers = [Scorer(LabelledPredictions(one.probabilities, one.label, labels)) for one in (before, after)]
    # These figures are sums over images, so that counts may be weights.
    each = (np.ones(len(labels)) if weights is None else weights / weights.mean()).astype(np.float32)[:, None]
    values = [scorer(each).overall for scorer in scorers]
    drawn: list[list[dict[str, Floats]]] = [[], []]
    for counts in bootstrap.blocks():
        for draws, scorer in zip(drawn, scorers, strict=True):
            draws.append(scorer(counts * each).overall)
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
    rule: SiteRule,
    verdict: Verdict,
    labels: Ints,
    classes: tuple[str, ...],
    bootstrap: Bootstrap,
    weights: Floats | None = None,
) -> DecisionFigures | None:
    """Return the figures of the decisions for the positive class; None without one."""
    if rule.point is None or rule.point.positive is None:
        return None
    positive = classes.index(rule.point.positive)
    everything = np.ones(len(labels), dtype=np.bool_)
    return decision_figures(labels == positive, verdict.label == positive, everything, bootstrap, weights)
