"""Figures of a decision, against scikit-learn, statsmodels, SciPy and published examples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn import metrics

from plurum.predictions.arrays import Bools, Ints
from plurum.training.statistics.bootstrap import Bootstrap
from plurum.training.statistics.decision_curves import THRESHOLDS, DecisionCurve, decision_curve
from plurum.training.statistics.diagnoses import FIGURES, Diagnosis, diagnose
from plurum.training.statistics.estimates import wilson_interval


def masks(tp: int, fn: int, fp: int, tn: int) -> tuple[Bools, Bools]:
    """Return predicted and true positives for these counts."""
    predicted = np.repeat([True, False, True, False], [tp, fn, fp, tn])
    return predicted, np.repeat([True, True, False, False], [tp, fn, fp, tn])


def by_image(tp: int, fn: int, fp: int, tn: int, prevalence: float | None = None) -> Diagnosis:
    bootstrap = Bootstrap(np.arange(tp + fn + fp + tn), 100, 0)
    return diagnose("CE", masks(tp, fn, fp, tn), bootstrap, prevalence=prevalence)


def figure(found: Diagnosis, name: str) -> tuple[float, float, float]:
    one = found.figures[name]
    assert one.value is not None
    assert one.low is not None
    assert one.high is not None
    return one.value, one.low, one.high


def ends(found: Diagnosis, name: str) -> Any:
    return pytest.approx(figure(found, name)[1:], abs=1e-9)


def test_values_are_scikit_learns() -> None:
    predicted, true = masks(45, 12, 7, 88)
    found = by_image(45, 12, 7, 88)
    assert figure(found, "sensitivity")[0] == pytest.approx(metrics.recall_score(true, predicted))
    assert figure(found, "specificity")[0] == pytest.approx(metrics.recall_score(~true, ~predicted))
    assert figure(found, "ppv")[0] == pytest.approx(metrics.precision_score(true, predicted))
    assert figure(found, "npv")[0] == pytest.approx(metrics.precision_score(~true, ~predicted))
    positive, negative = metrics.class_likelihood_ratios(true, predicted)
    assert figure(found, "lr_positive")[0] == pytest.approx(positive)
    assert figure(found, "lr_negative")[0] == pytest.approx(negative)
    youden = metrics.balanced_accuracy_score(true, predicted, adjusted=True)
    assert figure(found, "youden")[0] == pytest.approx(youden)
    assert (found.true_positives, found.false_negatives, found.false_positives, found.true_negatives) == (45, 12, 7, 88)
    assert found.intervals == "by image"


@pytest.mark.parametrize(("hits", "total"), [(0, 7), (7, 7), (1, 3), (151, 234), (386, 390)])
def test_wilson_is_scipys(hits: int, total: int) -> None:
    theirs = binomtest(hits, total).proportion_ci(0.95, method="wilson")
    assert wilson_interval(hits, total) == pytest.approx(tuple(theirs), abs=1e-12)


@pytest.mark.parametrize("cells", [(45, 12, 7, 88), (386, 4, 83, 151), (10, 2, 0, 30)])
def test_intervals_are_those_of_statsmodels(cells: tuple[int, int, int, int]) -> None:
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    tp, fn, fp, tn = cells
    found = by_image(*cells)
    for name, hits, total in (("sensitivity", tp, tp + fn), ("ppv", tp, tp + fp), ("npv", tn, tn + fn)):
        assert proportion.proportion_confint(hits, total, method="wilson") == ends(found, name)
    between = proportion.confint_proportions_2indep
    # J is the difference of the positive rates; Newcombe's interval is that of two proportions.
    assert between(tp, tp + fn, fp, tn + fp, compare="diff", method="newcomb") == ends(found, "youden")
    walter = {"compare": "ratio", "method": "log-adjusted"}
    assert between(fn, tp + fn, tn, tn + fp, **walter) == ends(found, "lr_negative")
    if fp:
        assert between(tp, tp + fn, fp, tn + fp, **walter) == ends(found, "lr_positive")


def test_values_at_a_prevalence_follow_bayes_rule() -> None:
    found = by_image(90, 10, 20, 80, prevalence=0.1)
    # Of 1,000 patients 100 have it: 90 of them and 180 of the others are positive.
    assert figure(found, "ppv_at_prevalence")[0] == pytest.approx(90 / 270)
    assert figure(found, "npv_at_prevalence")[0] == pytest.approx(720 / 730)
    for name in ("ppv_at_prevalence", "npv_at_prevalence"):
        value, low, high = figure(found, name)
        assert low < value < high
    own = by_image(90, 10, 20, 80, prevalence=0.5)
    assert figure(own, "ppv_at_prevalence")[0] == pytest.approx(figure(own, "ppv")[0])
    assert list(own.figures) == list(FIGURES)


def test_what_is_undefined_or_infinite_has_no_value() -> None:
    perfect = by_image(20, 0, 0, 30, prevalence=0.2)
    assert perfect.figures["lr_positive"].value is None
    assert figure(perfect, "ppv_at_prevalence")[::2] == (1, 1)
    assert figure(perfect, "lr_negative")[:2] == (0, 0)
    assert figure(perfect, "sensitivity")[1] == pytest.approx(wilson_interval(20, 20)[0])
    without = by_image(0, 0, 4, 30)
    assert without.figures["sensitivity"].value is None
    assert without.figures["sensitivity"].low is None
    assert figure(without, "specificity")[0] == pytest.approx(30 / 34)


def simulated(patients: int, images: int, seed: int) -> tuple[Bools, Bools, Ints]:
    """Return predictions, truth and groups; images of one patient share most of their error."""
    rng = np.random.default_rng(seed)
    true = np.repeat(rng.random(patients) < 0.5, images)
    hard = np.repeat(rng.beta(0.8, 3.2, patients), images)
    return true ^ (rng.random(patients * images) < hard), true, np.repeat(np.arange(patients), images)


def test_intervals_by_patient_cover_and_those_by_image_do_not() -> None:
    # Errors have a mean of 0.2, so the sensitivity is 0.8.
    missed = {"by patient": 0, "by image": 0}
    for seed in range(200):
        predicted, true, groups = simulated(100, 10, seed)
        found = {
            "by patient": diagnose("CE", (predicted, true), Bootstrap(groups, 200, 0)),
            "by image": diagnose("CE", (predicted, true), Bootstrap(np.arange(1000), 200, 0)),
        }
        for name, one in found.items():
            assert one.intervals == name
            _, low, high = figure(one, "sensitivity")
            missed[name] += not low <= 0.8 <= high
    # 5 % are 10 of 200; 22 is the 99.9th percentile of their number.
    assert missed["by patient"] <= 22
    assert missed["by image"] > 40


def test_without_an_error_each_patient_is_one_observation() -> None:
    true = np.repeat([True, False], 50)
    groups = np.repeat(np.arange(20), 5)
    found = diagnose("CE", (true, true), Bootstrap(groups, 100, 0))
    # Ten patients of each class.
    assert figure(found, "sensitivity") == pytest.approx((1.0, *wilson_interval(10, 10)))
    assert found.figures["lr_positive"].value is None


def test_predictions_with_review_do_not_count() -> None:
    predicted, true = masks(45, 12, 7, 88)
    among = np.ones_like(true)
    among[45:57] = False
    found = diagnose("CE", (predicted, true), Bootstrap(np.arange(152), 100, 0), among=among)
    assert (found.answers, found.false_negatives) == ("unreviewed", 0)
    assert figure(found, "sensitivity")[0] == 1


def curve(probabilities: list[float], true: list[int], prevalence: float | None = None) -> DecisionCurve:
    values, truth = np.array(probabilities), np.array(true, dtype=np.bool_)
    found = decision_curve(values, truth, Bootstrap(np.arange(len(truth)), 100, 0), prevalence)
    assert found is not None
    return found


def test_net_benefit_by_hand() -> None:
    # Vickers & Elkin 2006, formula (1). At 0.25, 3 of 4 positives and 2 of 6 negatives are decided as positive.
    found = curve([0.9, 0.6, 0.3, 0.1, 0.7, 0.4, 0.2, 0.2, 0.1, 0.1], [1, 1, 1, 1, 0, 0, 0, 0, 0, 0])
    at = THRESHOLDS.index(0.25)
    assert found.net_benefit[at] == pytest.approx(3 / 10 - 2 / 10 * 0.25 / 0.75)
    assert found.treat_all[at] == pytest.approx(4 / 10 - 6 / 10 * 0.25 / 0.75)
    at = THRESHOLDS.index(0.6)
    # A probability equal to the threshold is decided as positive.
    assert found.net_benefit[at] == pytest.approx(2 / 10 - 1 / 10 * 0.6 / 0.4)
    assert found.prevalence == pytest.approx(0.4)
    assert all(low <= high for low, high in zip(found.low, found.high, strict=True))
    # With a prevalence of 0.1: 3 / 4 of 0.1 are found, and 2 / 6 of 0.9 are false alarms.
    other = curve([0.9, 0.6, 0.3, 0.1, 0.7, 0.4, 0.2, 0.2, 0.1, 0.1], [1, 1, 1, 1, 0, 0, 0, 0, 0, 0], 0.1)
    assert other.net_benefit[THRESHOLDS.index(0.25)] == pytest.approx(0.075 - 0.3 / 3)


def test_a_curve_needs_both_classes() -> None:
    true = np.ones(3, dtype=np.bool_)
    assert decision_curve(np.full(3, 0.5), true, Bootstrap(np.arange(3), 100, 0)) is None
