"""Fractions of decisions, and their intervals by patient."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from plurum.training.statistics.bootstrap import Bootstrap, mean_interval
from plurum.training.statistics.decisions import decision_figures, estimate_fractions

# Two images of each of 30 patients.
PATIENTS = np.repeat(np.arange(30), 2)


@pytest.mark.parametrize("value", [0, 1])
def test_a_fraction_without_variation_is_no_certainty(value: int) -> None:
    among = PATIENTS < 12
    (found,) = estimate_fractions([np.full(60, bool(value))], [among], Bootstrap(PATIENTS, 100, 0))
    interval = binomtest(12 * value, 12).proportion_ci(0.95, method="wilson")
    assert (found.value, found.low, found.high) == pytest.approx((value, interval.low, interval.high))


def test_other_fractions_have_the_interval_of_drawn_patients() -> None:
    bootstrap, correct = Bootstrap(PATIENTS, 400, 0), PATIENTS % 5 > 0
    (found,) = estimate_fractions([correct], [np.ones(60, dtype=np.bool_)], bootstrap)
    assert found.value == 0.8
    assert (found.low, found.high) == pytest.approx(mean_interval(correct.astype(np.float64), bootstrap))


def test_a_fraction_of_nothing_has_no_value() -> None:
    everything = np.ones(60, dtype=np.bool_)
    found = decision_figures(~everything, ~everything, everything, Bootstrap(PATIENTS, 100, 0))
    assert (found.sensitivity.value, found.ppv.low, found.number) == (None, None, 60)
    assert found.npv.value == 1
