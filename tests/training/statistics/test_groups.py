"""Figures by group, against statsmodels, SciPy and simulations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, fisher_exact

from plurum.predictions.arrays import Bools
from plurum.training.statistics.bootstrap import Bootstrap
from plurum.training.statistics.groups import GroupedFigures, correct_holm, split_by_column


def test_holm_is_that_of_statsmodels() -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    rng = np.random.default_rng(0)
    for number in (1, 2, 7, 30):
        p_values = rng.random(number) ** 3
        assert correct_holm(p_values.tolist()) == pytest.approx(multitest.multipletests(p_values, method="holm")[1])
    assert correct_holm([]) == []


def split(correct: Bools, sites: list[str], groups: object = None) -> GroupedFigures:
    everything = np.ones_like(correct)
    numbers = np.arange(len(correct)) if groups is None else np.asarray(groups)
    fractions = {"accuracy": (everything, correct)}
    (found,) = split_by_column({"site": sites}, fractions, Bootstrap(numbers, 200, 0), higher_is_better=["accuracy"])
    return found


def test_a_difference_has_about_fishers_p_value() -> None:
    # 30 of 40 at one site, 55 of 60 at the other.
    correct = np.repeat([True, False, True, False], [30, 10, 55, 5])
    found = split(correct, ["A"] * 40 + ["B"] * 60)
    expected = fisher_exact([[30, 10], [55, 5]]).pvalue
    assert found.groups[0].p_values["accuracy"] == pytest.approx(expected, abs=0.02)
    # Of two groups, one comparison is enough.
    assert found.groups[1].p_values == {}
    assert found.worst == {"accuracy": "A"}
    assert found.groups[0].figures["accuracy"].value == 0.75
    assert (found.groups[0].images, found.groups[0].patients) == (40, 40)


def test_small_and_unknown_groups_are_kept_and_not_judged() -> None:
    sites = ["A"] * 40 + ["B"] * 40 + ["C"] * 5 + ["", "NaN"] * 2
    found = split(np.arange(89) % 3 > 0, sites)
    assert [(one.name, one.images, one.is_judged) for one in found.groups] == [
        ("A", 40, True),
        ("B", 40, True),
        ("C", 5, False),
        ("unknown", 4, False),
    ]
    assert found.groups[2].p_values == {}
    assert found.groups[2].figures["accuracy"].value is not None
    assert set(found.groups[0].p_values) == {"accuracy"}


def test_images_of_one_patient_are_one_unit() -> None:
    # Ten images per patient: two bad patients of 25 at one site, none of 25 at the other.
    correct = np.repeat(np.arange(50) > 1, 10)
    sites = ["A"] * 250 + ["B"] * 250
    by_patient = split(correct, sites, np.repeat(np.arange(50), 10)).groups[0].p_values["accuracy"]
    by_image = split(correct, sites).groups[0].p_values["accuracy"]
    assert by_image < 0.001
    assert by_patient > 0.3


def test_false_alarms_keep_the_level() -> None:
    rng = np.random.default_rng(0)
    studies, alarms = 200, 0
    for _ in range(studies):
        wrong = np.repeat(rng.beta(0.5, 4, 80), 3)
        correct = rng.random(240) > wrong
        sites = np.repeat(rng.choice(["A", "B", "C"], 80), 3).tolist()
        found = split(correct, sites, np.repeat(np.arange(80), 3))
        alarms += any(p_value <= 0.05 for one in found.groups for p_value in one.p_values.values())
    assert alarms <= binom.ppf(0.999, studies, 0.05)


def test_a_single_group_has_nothing_to_compare_with() -> None:
    found = split(np.ones(30, dtype=np.bool_), ["A"] * 30)
    assert found.groups[0].p_values == {}
    assert found.worst == {}
