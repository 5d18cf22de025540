"""Fit prediction sets, operating point and review to a site's calibrated probabilities, or keep the old ones.

A few images can't show that fewer sets, decisions or reviews are enough. What they can't show stays as it was, and is
said. What needs a stated confidence is shown by a sample of weighted images that needs no weights.

Legend: probabilities are `[images, classes]`, float64; labels and groups are `[images]`, int64.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from plurum.errors import SettingsError
from plurum.predictions.arrays import Floats
from plurum.promises.risk_control import patient_losses, risk_bound
from plurum.settings.fitting import FitSettings
from plurum.spec import Conformal, OperatingPoint, OutlierRule, Review, Voting
from plurum.training.calibration.correction import Correction
from plurum.training.fitting.points import CONFIDENCE, LabelledScores, fit_point, fit_review_interval
from plurum.training.statistics.calibration import conformal_quantiles, review_threshold
from plurum.training.statistics.patients import draw_equally, effective_patients
from plurum.voting import Verdict, VotingRule, decide, outlier_test_from_ensemble, point_from_ensemble

__all__ = ["LEAST_FOR_SETS", "SiteRule", "correct_voting", "decide_probabilities", "fit_site_rule"]

# Patients of a class from which its prediction sets are fitted to them.
LEAST_FOR_SETS = 20
# Fitted limits equal the value of some image; other programs may sum in another order.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class SiteRule:
    """Parts of a voting rule that follow the probabilities.

    Attributes:
        conformal: Prediction sets; None if the old rule has none.
        review: Condition for review.
        point: Operating point; None decides for the most probable class.
        lines: What was fitted and what stayed, one sentence each.
    """

    conformal: Conformal | None
    review: Review
    point: OperatingPoint | None
    lines: tuple[str, ...] = ()


def correct_voting(voting: Voting, correction: Correction) -> Voting:
    """Return the vote whose probabilities are the corrected ones of `voting`.

    The slope divides the temperature. It is also the exponent of the ratio, which follows the temperature.
    """
    old = np.ones(len(correction.offsets)) if voting.prior_ratio is None else np.asarray(voting.prior_ratio)
    logs = correction.slope * np.log(old) + np.asarray(correction.offsets)
    ratio = np.exp(logs - logs.mean())
    return voting.model_copy(
        update={"temperature": voting.temperature / correction.slope, "prior_ratio": tuple(ratio.tolist())}
    )


def decide_probabilities(
    probabilities: Floats,
    rule: SiteRule,
    classes: tuple[str, ...],
    outliers: OutlierRule | None = None,
    novelty: Floats | None = None,
) -> Verdict:
    """Return the verdict of a rule on calibrated probabilities, as if one member had voted them.

    Args:
        probabilities: Probabilities of the vote.
        rule: Sets, review and operating point.
        classes: Names of the classes.
        outliers: Outlier test; None tests none.
        novelty: Novelty of each image by member, `[images, members]`.
    """
    point = None
    if rule.point is not None:
        point = point_from_ensemble({"classes": list(classes), "operating_point": rule.point.model_dump()})
    quantiles = None if rule.conformal is None else rule.conformal.quantiles
    test = None if outliers is None else outlier_test_from_ensemble({"outliers": outliers.model_dump()})
    single = VotingRule((1.0,), quantiles=quantiles, review_threshold=rule.review.threshold, point=point, outliers=test)
    return decide(probabilities[:, None], single, novelty)


def fit_site_rule(old: SiteRule, site: LabelledScores, correction: Correction, seed: int = 0) -> SiteRule:
    """Return sets, operating point and review for a site.

    Args:
        old: Rule as fitted before.
        site: Probabilities of the site's images, each corrected by a fit without its patient.
        correction: Correction that was fitted to all of the site's images.
        seed: Random seed of the sample that needs no weights, if the images have some.
    """
    even = _equal_sample(site, seed)
    conformal, set_lines = _fit_sets(old.conformal, site)
    point, point_lines = _fit_point(old.point, even, correction)
    rule, review_lines = _fit_review(replace(old, conformal=conformal, point=point), old, site, even)
    return replace(rule, lines=(*set_lines, *point_lines, *review_lines))


def _equal_sample(site: LabelledScores, seed: int) -> LabelledScores:
    """Return the images, or those of weighted images that are a sample without weights; see `draw_equally`."""
    if site.weights is None:
        return site
    rows = draw_equally(site.weights, seed)
    groups = np.unique(site.groups[rows], return_inverse=True)[1]
    return LabelledScores(site.probabilities[rows], site.labels[rows], groups, site.classes)


def _fit_sets(old: Conformal | None, site: LabelledScores) -> tuple[Conformal | None, list[str]]:
    if old is None:
        return None, []
    fitted = conformal_quantiles(site.probabilities, site.labels, site.groups, old.alpha, site.weights)
    quantiles, lines = [], []
    for index, name in enumerate(site.classes):
        patients, text, whom = _count_patients(site, index)
        # Weights may leave too little for a limit, although their number is enough.
        if patients < LEAST_FOR_SETS or (site.weights is not None and fitted[index] == 1):
            quantiles.append(old.quantiles[index])
            few = f"{text} of {LEAST_FOR_SETS} {whom}" if patients < LEAST_FOR_SETS else "too few audits"
            lines.append(f"prediction sets: no promise for class {name}: {few}; the old sets stay")
        else:
            quantiles.append(min(fitted[index] + _ROUNDING, 1.0))
            lines.append(
                f"prediction sets: fitted to {text} {whom} of class {name}, to cover {1 - old.alpha:.1%} of it"
            )
    return Conformal(alpha=old.alpha, quantiles=tuple(quantiles)), lines


def _count_patients(site: LabelledScores, label: int) -> tuple[float, str, str]:
    """Return the number of patients of a class as number and text, and their name: effective ones with weights."""
    rows = site.labels == label
    if site.weights is None:
        patients = len(np.unique(site.groups[rows]))
        return patients, f"{patients:,}", "patients"
    effective = effective_patients(site.weights[rows], site.groups[rows])
    return effective, f"{effective:,.1f}", "effective patients"


def _fit_point(
    old: OperatingPoint | None, site: LabelledScores, correction: Correction
) -> tuple[OperatingPoint | None, list[str]]:
    if old is None or old.criterion == "costs" or old.positive is None or old.threshold is None:
        # Costs choose the same threshold for all probabilities that are calibrated.
        return old, []
    settings = FitSettings(positive=old.positive, confidence=old.confidence, **{old.criterion: old.value})
    name = "NPV" if old.criterion == "npv" else old.criterion
    try:
        point = fit_point(site, settings, None)
    except SettingsError:
        index = site.classes.index(old.positive)
        limits = np.array([old.threshold, 1 - old.threshold])[[index, 1 - index]][None]
        threshold = float(correction.apply(limits)[0, index])
        line = (
            f"operating point: these images can't show {name} {old.value:g} at {old.confidence:.0%} confidence; the "
            f"old decisions stay, now from a probability of {old.positive} of {threshold:.4f} on"
        )
        return old.model_copy(update={"threshold": threshold, "review_interval": None}), [line]
    if point is None:
        raise ValueError("expected an operating point")
    line = (
        f"operating point: {old.positive} from a probability of {point.threshold:.4f} on: {name} of at least "
        f"{old.value:g} for new patients like these, at {old.confidence:.0%} confidence"
    )
    return point, [line]


def _fit_review(
    rule: SiteRule, old: SiteRule, site: LabelledScores, even: LabelledScores
) -> tuple[SiteRule, list[str]]:
    """Return the rule with its review limits; only images that show the target risk make them less strict."""
    risk, point = old.review.risk, rule.point
    if risk is None or (point is not None and point.review_cost is not None):
        return rule, []
    if point is not None and point.positive is not None:
        fitted = replace(rule, point=fit_review_interval(site, point, FitSettings(risk=risk)))
    else:
        fitted = replace(rule, review=Review(threshold=_fit_threshold(rule, site, risk), risk=risk))
    verdict = decide_probabilities(even.probabilities, fitted, tuple(site.classes))
    losses = patient_losses(verdict.label != even.labels, ~verdict.review, even.groups)
    # No promise, because the same images chose the limits, but a hurdle that 30 images without an error do not take.
    if risk_bound(losses, CONFIDENCE) <= risk:
        return fitted, [f"review: fitted to these images, for a risk of {risk:.2%}"]
    return _keep_strictest(fitted, old), [
        f"review: these images can't show a risk of {risk:.2%}, so the limits may only become stricter"
    ]


def _fit_threshold(rule: SiteRule, site: LabelledScores, risk: float) -> float:
    verdict = decide_probabilities(site.probabilities, rule, tuple(site.classes))
    confidence = np.take_along_axis(verdict.probabilities, verdict.label[:, None], axis=-1)[:, 0]
    found = review_threshold(confidence, verdict.label != site.labels, risk, site.weights)
    return 1.0 if found == 1 else max(found - _ROUNDING, 0.0)


def _keep_strictest(fitted: SiteRule, old: SiteRule) -> SiteRule:
    """Return the fitted rule, with reviews where one of the two rules has them."""
    threshold = max(fitted.review.threshold, old.review.threshold)
    kept = replace(fitted, review=Review(threshold=threshold, risk=fitted.review.risk))
    before = None if old.point is None else old.point.review_interval
    if fitted.point is None or fitted.point.threshold is None or before is None:
        return kept
    at = fitted.point.threshold
    now = fitted.point.review_interval or (at, at)
    interval = min(now[0], before[0], at), max(now[1], before[1], at)
    return replace(kept, point=fitted.point.model_copy(update={"review_interval": interval}))
