"""How far a site's images are trusted, on simulated sites with known truth."""

from __future__ import annotations

import numpy as np
import pytest

from plurum.benchmarks.claims.sites import SHIFTS, simulate
from plurum.predictions.scores import compute_losses
from plurum.training.calibration.shrinkage import fit_site, list_strengths
from tests.training.calibration.drawn_answers import draw

DRAWS = 25


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("shift", ["no", "small"])
def test_30_images_cost_no_accuracy(classes: int, shift: str) -> None:
    """A small version of `python -m plurum.benchmarks.claims.sites`."""
    found = simulate(classes, shift, 30, draws=DRAWS)
    assert found["accuracy change"] > -0.002
    assert found["lose over 0.5 points"] <= 0.1
    assert found["worst"] > -0.02
    assert found["NLL change"] < 0.01


@pytest.mark.parametrize("classes", [2, 3])
def test_100_images_find_a_large_shift(classes: int) -> None:
    found = simulate(classes, "large", 100, draws=DRAWS)
    # Something to find.
    assert found["accuracy before"] < 0.85
    assert found["ECE before"] > 0.07
    assert found["gap to best"] <= 0.01
    assert found["ECE"] <= 0.04
    assert found["coverage"] is not None
    assert found["coverage"] >= 0.9 - 0.01
    assert found["outside the band"] is not None
    # Of some 40 classes, 1 % are outside by chance.
    assert found["outside the band"] <= 0.1


def test_images_of_a_patient_say_no_more_than_one() -> None:
    probabilities, labels = draw(60, 2)
    once = fit_site(probabilities, labels, np.arange(60))
    repeated = fit_site(np.repeat(probabilities, 5, axis=0), np.repeat(labels, 5), np.repeat(np.arange(60), 5))
    assert np.isfinite(once.strength)
    assert repeated.strength == once.strength
    np.testing.assert_allclose(repeated.correction.offsets, once.correction.offsets, atol=1e-3)
    np.testing.assert_allclose(repeated.judged[::5], once.judged, atol=1e-3)


def test_without_a_gain_nothing_changes() -> None:
    rng = np.random.default_rng(0)
    positive = rng.uniform(size=60)
    probabilities = np.stack([1 - positive, positive], axis=1)
    labels = (rng.uniform(size=60) < positive).astype(np.int64)
    found = fit_site(probabilities, labels, np.arange(60))
    assert found.strength == np.inf
    np.testing.assert_array_equal(found.correction.apply(probabilities), probabilities)
    np.testing.assert_array_equal(found.cross_fitted, probabilities)


def test_cross_fitted_probabilities_do_not_know_their_label() -> None:
    """In-sample, the NLL of a fit is below that of other fits; out of sample it is above."""
    probabilities, labels = draw(80, 3, seed=2)
    found = fit_site(probabilities, labels, np.arange(80))
    assert np.isfinite(found.strength)
    within = compute_losses(found.correction.apply(probabilities), labels).mean()
    for other in (found.cross_fitted, found.judged):
        assert within < compute_losses(other, labels).mean() < compute_losses(probabilities, labels).mean()


def test_the_weakest_shrinkage_falls_with_the_patients() -> None:
    few, many = list_strengths(30), list_strengths(3000)
    assert few[0] == many[0] == np.inf
    np.testing.assert_allclose(few[1:] / many[1:], 10)
    assert few[-1] == pytest.approx(8, abs=0.1)


def test_every_shift_has_as_many_frequencies_as_classes() -> None:
    for classes, shifts in SHIFTS.items():
        for shift in shifts.values():
            assert len(shift.frequencies) == len(shift.offsets) == classes
            assert sum(shift.frequencies) == pytest.approx(1)
