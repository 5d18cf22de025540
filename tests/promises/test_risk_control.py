"""Promises on the review risk, against SciPy, MAPIE, cases by hand and simulated studies with known truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from plurum.benchmarks.claims.guarantees import simulate, simulate_classes, simulate_sensitivity
from plurum.predictions.arrays import Floats
from plurum.promises.risk_control import (
    count_required_patients,
    patient_losses,
    risk_bound,
    risk_p_value,
    smallest_promise,
    try_in_order,
)


def binary(errors: int, patients: int) -> Floats:
    return (np.arange(patients) < errors).astype(np.float64)


@pytest.mark.parametrize(("errors", "patients"), [(0, 299), (1, 473), (2, 628)])
def test_patients_that_one_per_cent_needs(errors: int, patients: int) -> None:
    assert count_required_patients(0.01, 0.95, errors) == patients
    assert risk_p_value(binary(errors, patients), 0.01) <= 0.05
    assert risk_p_value(binary(errors, patients - 1), 0.01) > 0.05


def test_the_smallest_promise_is_the_risk_that_the_patients_suffice_for() -> None:
    for patients in (1, 30, 100, 299):
        risk = smallest_promise(patients, 0.95)
        assert (1 - risk) ** patients == pytest.approx(0.05)
        assert count_required_patients(risk + 1e-9, 0.95) == patients
    assert smallest_promise(30, 0.95) == pytest.approx(0.095, abs=5e-4)
    assert smallest_promise(0, 0.95) == 1


def test_a_patients_loss_is_the_fraction_of_unreviewed_errors() -> None:
    groups = np.array([0, 0, 0, 1, 1, 2, 3])
    unreviewed = np.array([1, 1, 0, 0, 0, 1, 1], dtype=np.bool_)
    wrong = np.array([1, 0, 1, 1, 1, 1, 0], dtype=np.bool_)
    # The second patient has no unreviewed prediction and no loss.
    assert patient_losses(wrong, unreviewed, groups).tolist() == [0.5, 1.0, 0.0]
    assert len(patient_losses(wrong, np.zeros(7, dtype=np.bool_), groups)) == 0


@pytest.mark.parametrize(("errors", "patients"), [(0, 299), (3, 500), (40, 900)])
def test_binary_losses_have_the_exact_binomial_p_value_and_bound(errors: int, patients: int) -> None:
    losses = binary(errors, patients)
    theirs = binomtest(errors, patients, 0.05, alternative="less")
    assert risk_p_value(losses, 0.05) == pytest.approx(theirs.pvalue, abs=1e-12)
    upper = binomtest(errors, patients, alternative="less").proportion_ci(0.95).high
    assert risk_bound(losses, 0.95) == pytest.approx(upper, abs=1e-9)


def test_fractions_have_hoeffding_bentkus_by_hand() -> None:
    losses = np.array([0.5, 0.5] + [0.0] * 398)
    # Mean 0.0025, so one error in the binomial tail: e times it is smaller than Hoeffding's.
    hoeffding = math.exp(-400 * (0.0025 * math.log(0.0025 / 0.02) + 0.9975 * math.log(0.9975 / 0.98)))
    bentkus = math.e * binom.cdf(1, 400, 0.02)
    assert risk_p_value(losses, 0.02) == pytest.approx(min(hoeffding, bentkus))
    assert risk_p_value(losses, 0.001) == 1
    assert risk_p_value(losses, risk_bound(losses, 0.95)) == pytest.approx(0.05, abs=1e-6)


def test_limits() -> None:
    none = np.zeros(0)
    assert (risk_p_value(none, 0.5), risk_bound(none, 0.95)) == (1.0, 1.0)
    assert risk_p_value(binary(0, 5), 0.0) == 1
    assert risk_p_value(binary(5, 5), 1.0) == 0
    assert risk_bound(binary(5, 5), 0.95) == 1


def test_tests_stop_at_the_first_failure() -> None:
    losses = [[binary(0, number)] for number in (100, 299, 400)] + [[binary(9, 500)], [binary(0, 900)]]
    found = try_in_order(losses, [0.01], 0.95)
    # The last would pass, and comes after a failure.
    assert (found.start, found.passed, len(found.p_values)) == (1, 2, 3)
    none = try_in_order(losses[:1], [0.01], 0.95)
    assert (none.start, none.passed, none.p_values) == (None, None, ())


def test_all_promises_have_to_pass() -> None:
    both = [[binary(0, 400), binary(0, 59)], [binary(0, 400), binary(2, 60)]]
    found = try_in_order(both, [0.01, 0.05], 0.95)
    assert (found.start, found.passed) == (0, 0)
    assert found.p_values == pytest.approx([max(0.99**400, 0.95**59), binom.cdf(2, 60, 0.05)])


@pytest.mark.filterwarnings("ignore:Fixed sequence testing requires a monotonic risk")
@pytest.mark.parametrize("seed", range(3))
def test_independent_images_get_the_result_of_mapie(seed: int) -> None:
    """Precision of positives: wrong among accepted, with the same grid, by fixed-sequence testing."""
    risk_control = pytest.importorskip("mapie.risk_control")
    rng = np.random.default_rng(seed)
    images = 3000
    probabilities = rng.beta(4, 1, images)
    true = rng.random(images) < probabilities**0.3
    grid = np.linspace(0.99, 0.3, 60)
    theirs = risk_control.BinaryClassificationController(
        lambda values: np.column_stack([1 - values, values]),
        risk="precision",
        target_level=0.95,
        confidence_level=0.95,
        list_predict_params=grid,
        fwer_method="fixed_sequence",
    )
    theirs.calibrate(probabilities, true.astype(int))
    groups = np.arange(images)
    losses = [[patient_losses(~true, probabilities >= limit, groups)] for limit in grid]
    for [one], found in zip(losses, np.ravel(theirs.p_values), strict=True):
        # In some, its rounding turns e errors into e + 1, on the safe side.
        rounded = binom.cdf(one.sum() + 1, len(one), 0.05)
        assert found in (pytest.approx(risk_p_value(one, 0.05)), pytest.approx(rounded))
    ours = try_in_order(losses, [0.05], 0.95)
    assert ours.passed is not None
    # Ours begins where a pass is possible; theirs at the first, which has enough images here.
    assert ours.start == 0
    np.testing.assert_allclose(np.ravel(theirs.valid_predict_params), grid[: ours.passed + 1])


@pytest.mark.parametrize("images", [1, 5])
def test_promises_hold_in_simulated_studies(images: int) -> None:
    studies = 200
    found = simulate(images, studies=studies, patients=600, truth=50_000)
    # 5 % plus the noise of so many studies.
    most = binom.ppf(0.999, studies, 0.05) / studies
    for method in ("patients", "with sensitivity"):
        assert found[method]["violated"] <= most
        # A method that never promises violates nothing.
        assert found[method]["promised"] > 0.2
    assert found["naive"]["violated"] > most
    if images == 5:
        assert found["images"]["violated"] > most


@pytest.mark.parametrize("images", [1, 5])
def test_promises_by_class_hold_for_a_rare_class(images: int) -> None:
    studies = 150
    found = simulate_classes(images, studies=studies, truth=100_000)
    most = binom.ppf(0.999, studies, 0.05) / studies
    assert found["each class"]["violated"] <= most
    assert found["each class"]["promised"] > 0.5
    # The promise for all patients together says nothing about the rare ones.
    assert found["all patients"]["violated"] > 0.5
    sensitivity = simulate_sensitivity(images, studies=studies, truth=50_000)
    assert sensitivity["chosen"] > 0.9
    assert sensitivity["reached"] >= 1 - most
