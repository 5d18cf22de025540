"""Two-sample tests: statistics as SciPy's, p-values as those of all permutations, and the number of false alarms."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import chi2_contingency, ks_2samp

from plurum.predictions.arrays import Bools, Floats, Ints
from plurum.training.drift.permutation import BinnedOutput, CountedOutput, bin_numbers, counted_shifts, permuted_shifts

SAMPLES = np.repeat([True, False], 40)
IMAGES = np.arange(80)


def test_the_distance_of_numbers_is_kolmogorovs() -> None:
    rng = np.random.default_rng(0)
    # As many values as there are quantiles, so that none is passed over.
    values = np.concatenate([rng.integers(0, 40, 40), rng.integers(10, 50, 40)]).astype(np.float64)
    (shift,) = permuted_shifts([bin_numbers("x", values)], SAMPLES, IMAGES, 100, 0)
    assert shift.distance == pytest.approx(ks_2samp(values[:40], values[40:]).statistic)


def test_the_distance_of_categories_is_the_fraction_that_changes() -> None:
    labels = np.array([0] * 30 + [1] * 10 + [0] * 10 + [2] * 30)
    (shift,) = permuted_shifts([BinnedOutput("labels", "category", labels, 3)], SAMPLES, IMAGES, 100, 0)
    assert shift.distance == pytest.approx(0.75)
    (shift,) = counted_shifts(
        [CountedOutput("labels", "category", np.array([30, 10, 0]), np.array([100, 0, 300]))], 100, 0
    )
    assert shift.distance == pytest.approx(0.75)
    assert shift.p_value == pytest.approx(1 / 101)


def statistic(values: Floats, groups: Ints, inside: Bools) -> float:
    """Return Kolmogorov's statistic divided by its scale, with patients as units."""
    fractions, variances = [], []
    for sample in (inside, ~inside):
        upto = values[sample][:, None] <= np.unique(values)
        fraction = upto.mean(axis=0)
        pooled = (values[:, None] <= np.unique(values)).mean(axis=0)
        sums = [(upto[groups[sample] == group] - pooled).sum(axis=0) for group in np.unique(groups[sample])]
        fractions.append(fraction)
        variances.append((np.array(sums) ** 2).sum(axis=0) / sample.sum() ** 2)
    return float(np.abs(fractions[0] - fractions[1]).max() / np.sqrt((variances[0] + variances[1]).max()))


def exact_p_value(values: Floats, groups: Ints, first: int) -> float:
    """Return the p-value over all assignments of groups to samples; the first groups are the observed reference."""
    found = [
        statistic(values, groups, np.isin(groups, chosen))
        for chosen in itertools.combinations(np.unique(groups), first)
    ]
    return float(np.mean(np.array(found) >= found[0] - 1e-9))


def test_p_values_are_those_of_all_permutations_of_patients() -> None:
    rng = np.random.default_rng(3)
    groups = np.array([0, 0, 0, 1, 2, 2, 3, 4, 5, 5, 5, 5, 6, 7, 7, 8])
    values = rng.normal(0, 1, 16) + groups * 0.15
    (shift,) = permuted_shifts([bin_numbers("x", values)], groups < 4, groups, 10_000, 0)
    assert shift.p_value == pytest.approx(exact_p_value(values, groups, 4), abs=0.02)


def test_p_values_of_counts_are_those_of_pearsons_test() -> None:
    reference, answers = np.array([420, 310, 270]), np.array([185, 160, 155])
    (shift,) = counted_shifts([CountedOutput("labels", "category", reference, answers)], 10_000, 0)
    expected = chi2_contingency([reference, answers]).pvalue
    assert 0.05 < expected < 0.2
    assert shift.p_value == pytest.approx(expected, abs=0.01)


def test_a_shift_of_one_output_is_found_among_many() -> None:
    rng = np.random.default_rng(0)
    outputs = [bin_numbers(f"x{index}", rng.normal(0, 1, 80)) for index in range(30)]
    shifted = bin_numbers("shifted", np.concatenate([rng.normal(0, 1, 40), rng.normal(1.5, 1, 40)]))
    found = permuted_shifts([*outputs, shifted], SAMPLES, IMAGES, 1000, 0)
    assert [shift.name for shift in found if shift.p_value <= 0.01] == ["shifted"]


def test_samples_that_differ_completely_are_found() -> None:
    values = np.repeat([0.9, 0.8], 40)
    for groups in (IMAGES, IMAGES // 2):
        (shift,) = permuted_shifts([bin_numbers("x", values)], SAMPLES, groups, 100, 0)
        assert shift.distance == 1.0
        assert shift.p_value == pytest.approx(1 / 101)


def test_units_of_other_sizes_are_no_shift() -> None:
    rng = np.random.default_rng(0)
    groups = np.concatenate([np.repeat(np.arange(40), 8), np.arange(40, 80)])
    alarms = 0
    for seed in range(60):
        # Images of a patient are independent here, so that a patient of eight images varies less than one of one.
        output = bin_numbers("x", rng.normal(0, 1, len(groups)))
        (shift,) = permuted_shifts([output], groups < 40, groups, 200, seed)
        alarms += shift.p_value <= 0.05
    # Above eight with a probability of one in a hundred; a test of the difference alone gives more than 20.
    assert alarms <= 8


def test_an_output_that_never_varies_does_not_differ() -> None:
    constant = bin_numbers("x", np.ones(80))
    empty = BinnedOutput("labels", "category", np.zeros(80, dtype=np.int64), 3)
    assert [shift.p_value for shift in permuted_shifts([constant, empty], SAMPLES, IMAGES, 100, 0)] == [1.0, 1.0]


def test_counts_of_a_server_may_be_huge() -> None:
    reference, answers = np.array([600, 400]), np.array([6 * 10**11, 4 * 10**11])
    (shift,) = counted_shifts([CountedOutput("labels", "category", reference, answers)], 100, 0)
    assert shift.distance == pytest.approx(0)
    assert shift.p_value == 1.0


def test_several_outputs_of_noise_seldom_alarm() -> None:
    rng = np.random.default_rng(1)
    alarms = 0
    for seed in range(100):
        one = rng.normal(0, 1, 80)
        outputs = [bin_numbers("one", one), bin_numbers("same", one + 0.1 * rng.normal(0, 1, 80))]
        outputs += [
            bin_numbers("other", rng.normal(0, 1, 80)),
            BinnedOutput("c", "category", rng.integers(0, 4, 80), 4),
        ]
        found = permuted_shifts(outputs, SAMPLES, IMAGES, 200, seed)
        alarms += min(shift.p_value for shift in found) <= 0.1
    # Above 17 with a probability of one in a hundred.
    assert 2 <= alarms <= 17
