"""Operating points and review intervals, on simulated votes with known probabilities."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from plurum.errors import SettingsError
from plurum.settings.fitting import FitSettings
from plurum.settings.options import settings_from
from plurum.training.fitting.costs import Costs, read_costs
from plurum.training.fitting.points import (
    LabelledScores,
    check_point_options,
    costs_of,
    figures_of_scores,
    fit_point,
    fit_review_interval,
)

CLASSES = ("CE", "LAA")


def known(images: int = 800, seed: int = 0, spread: float = 2.0) -> LabelledScores:
    """Draw calibrated probabilities of CE and labels that follow them."""
    rng = np.random.default_rng(seed)
    ce = 1 / (1 + np.exp(-rng.normal(scale=spread, size=images)))
    labels = (rng.uniform(size=images) > ce).astype(np.int64)
    return LabelledScores(np.stack([ce, 1 - ce], axis=1), labels, np.arange(images), CLASSES)


@pytest.mark.parametrize("positive", CLASSES)
@pytest.mark.parametrize(("criterion", "value"), [("sensitivity", 0.9), ("specificity", 0.9), ("npv", 0.9)])
def test_a_point_keeps_its_promise_on_the_images_with_room(criterion: str, value: float, positive: str) -> None:
    scores, settings = known(), FitSettings(positive=positive, **{criterion: value})
    point = fit_point(scores, settings, None)
    assert point is not None
    assert (point.criterion, point.value, point.confidence, point.positive) == (criterion, value, 0.95, positive)
    figures = figures_of_scores(scores, point, settings)
    reached = getattr(figures, criterion).value
    # Above the target by what the bound needs, and not by much more.
    assert value < reached < value + 0.08
    # No image is at the threshold itself, so rounding changes no decision.
    gap = np.abs(scores.probabilities[:, CLASSES.index(positive)] - (point.threshold or 0)).min()
    assert gap > 1e-9


def test_review_is_an_interval_around_the_point_with_few_errors_on_both_sides() -> None:
    scores, settings = known(spread=4.0), FitSettings(positive="CE", sensitivity=0.9, risk=0.05)
    point = fit_point(scores, settings, None)
    assert point is not None
    point = fit_review_interval(scores, point, settings)
    assert point.review_interval is not None
    (low, high), ce, is_ce = point.review_interval, scores.probabilities[:, 0], scores.labels == 0
    assert low < (point.threshold or 0) < high
    assert is_ce[ce < low].mean() <= 0.05
    assert (~is_ce)[ce > high].mean() <= 0.05
    certified = fit_review_interval(scores, point, settings.model_copy(update={"confidence": 0.95}))
    assert certified.review_interval is not None
    assert certified.review_interval[0] < low
    assert certified.review_interval[1] > high


def test_a_side_that_can_not_be_promised_goes_to_review_and_a_good_one_does_not() -> None:
    scores = known(spread=4.0)
    strict = FitSettings(positive="CE", sensitivity=0.9, risk=0.001, confidence=0.95)
    point = fit_point(scores, strict, None)
    assert point is not None
    assert fit_review_interval(scores, point, strict).review_interval == (0.0, 1.0)
    lax = strict.model_copy(update={"risk": 1.0})
    assert fit_review_interval(scores, point, lax).review_interval is None


def test_with_too_few_patients_the_message_says_what_they_allow() -> None:
    few = known(60)
    with pytest.raises(SettingsError, match="--sensitivity: not reachable with these validation") as caught:
        fit_point(few, FitSettings(positive="CE", sensitivity=0.99), None)
    number = int((few.labels == 0).sum())
    assert f"0.99 at 95% confidence needs at least 299 patients, got {number}, which" in str(caught.value)
    assert f"allow at most {0.05 ** (1 / number):.3f}. " in str(caught.value)


def test_members_that_know_nothing_reach_no_point() -> None:
    rng = np.random.default_rng(0)
    ce = rng.uniform(size=600)
    scores = LabelledScores(np.stack([ce, 1 - ce], axis=1), rng.integers(0, 2, 600), np.arange(600), CLASSES)
    message = r"--sensitivity: not reachable with these members: at 0\.95 sensitivity specificity is \d.*%\), no better"
    with pytest.raises(SettingsError, match=message):
        fit_point(scores, FitSettings(positive="CE", sensitivity=0.95), None)
    with pytest.raises(SettingsError, match="--npv: not reachable with these members"):
        fit_point(scores, FitSettings(positive="CE", npv=0.95), None)


def test_costs_of_two_classes_are_a_threshold_and_an_interval() -> None:
    """A miss costs 9 times as much as a false alarm: 0.1; a review pays where both are expected to cost more."""
    settings, costs = FitSettings(positive="CE", costs="costs.csv"), Costs(((0.0, 9.0), (1.0, 0.0)), 0.5)
    point = fit_point(known(), settings, costs)
    assert point is not None
    assert point.threshold == pytest.approx(0.1)
    point = fit_review_interval(known(), point, settings)
    assert point.review_interval == pytest.approx((0.5 / 9, 0.5))
    dear = fit_review_interval(
        known(), point.model_copy(update={"review_cost": 2.0, "review_interval": None}), settings
    )
    assert dear.review_interval is None
    senseless = Costs(((1.0, 0.0), (1.0, 0.0)), None)
    with pytest.raises(SettingsError, match="--costs: expected a wrong decision to cost more than the correct one"):
        fit_point(known(), settings, senseless)


def test_costs_of_several_classes_are_stored() -> None:
    matrix = ((0.0, 1.0, 2.0), (1.0, 0.0, 1.0), (5.0, 1.0, 0.0))
    scores = LabelledScores(np.full((3, 3), 1 / 3), np.arange(3), np.arange(3), ("a", "b", "c"))
    point = fit_point(scores, FitSettings(costs="costs.csv"), Costs(matrix, 0.2))
    assert point is not None
    assert (point.costs, point.review_cost, point.positive) == (matrix, 0.2, None)


def test_costs_are_read_from_a_table(tmp_path: Path) -> None:
    path = tmp_path / "costs.csv"
    path.write_text("decided,true,cost\nLAA,CE,10\nCE,LAA,1\nreview,,0.5\n", encoding="utf-8-sig")
    assert read_costs(path, CLASSES) == Costs(((0.0, 10.0), (1.0, 0.0)), 0.5)
    settings = FitSettings(positive="CE", costs=str(path))
    assert costs_of(settings, CLASSES).review == 0.5
    with pytest.raises(SettingsError, match="--risk: can't be combined with the cost of a review in"):
        costs_of(settings.model_copy(update={"risk": 0.02}), CLASSES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("true,decided,cost\nCE,LAA,10\n", "expected a cost of deciding 'CE' for 'LAA', got none"),
        ("true,decided,cost\n", "expected a cost of deciding 'LAA' for 'CE' and of 1 more pairs, got none"),
        ("true,decided,cost\nCE,review,1\n", "line 2: expected no true class for a review, got 'CE'"),
        ("true,decided,cost\nCE,other,10\n", "line 2 names the unknown class 'other'; available: CE, LAA"),
        ("true,decided,cost\nCE,LAA,-1\n", "line 2: expected a cost of at least 0, got '-1'"),
        ("true,decided,cost\nCE,LAA,much\n", "line 2: expected a cost of at least 0, got 'much'"),
        ("true,decided,cost\nCE,LAA,1\nCE,LAA,2\n", "line 3 states the cost of deciding 'LAA' for 'CE' a second time"),
        ("a,b\n1,2\n", "expected the columns true, decided, cost, got a, b"),
        ("", "expected the columns true, decided, cost, got no columns"),
        ("\ud800", "is not a CSV file in UTF-8"),
    ],
)
def test_costs_that_do_not_fit_are_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "costs.csv"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(SettingsError) as caught:
        read_costs(path, CLASSES)
    assert str(caught.value).startswith(f"--costs: {path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="can't be read: No such file"):
        read_costs(tmp_path / "nowhere.csv", CLASSES)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"positive": "CE", "sensitivity": 1.5}, "--sensitivity: expected a number less than 1, got 1.5"),
        ({"positive": "CE", "sensitivity": 0.9, "npv": 0.9}, "--sensitivity: can't be combined with --npv"),
        ({"sensitivity": 0.9}, "--sensitivity: expected --positive with it, got none"),
        ({"positive": "CE"}, "--positive: expected one of --sensitivity, --specificity, --npv, --costs with it"),
        (
            {"positive": "CE", "sensitivity": 0.9, "mode": "hard"},
            "--sensitivity: chooses a probability, and --mode hard",
        ),
        ({"positive": "CE", "npv": 0.9, "prior": ["CE=0.5", "LAA=0.5"]}, "--npv: can't be combined with --prior"),
    ],
)
def test_options_that_contradict_each_other_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        settings_from(FitSettings, **values)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("values", "classes", "message"),
    [
        ({"positive": "ce", "sensitivity": 0.9}, CLASSES, "--positive: unknown class 'ce'; available: CE, LAA."),
        ({"positive": "a", "sensitivity": 0.9}, ("a", "b", "c"), "--sensitivity: expected two classes, got 3."),
        ({"positive": "a", "costs": "c.csv"}, ("a", "b", "c"), "--positive: expected two classes, got 3."),
        ({"costs": "c.csv"}, CLASSES, "--costs: expected --positive with it, one of CE, LAA, got none."),
    ],
)
def test_options_that_do_not_fit_the_classes_are_refused(
    values: dict[str, object], classes: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        check_point_options(settings_from(FitSettings, **values), classes)
    assert message in str(caught.value)
