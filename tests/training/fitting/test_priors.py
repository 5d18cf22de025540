"""Correction for class frequencies, on simulations with a known best correction."""

from __future__ import annotations

import numpy as np
import pytest

from plurum.errors import DataError, SettingsError
from plurum.predictions.arrays import Floats, Ints
from plurum.predictions.scores import compute_losses
from plurum.training.fitting.priors import class_frequencies, estimate_frequencies, frequencies_from_prior, prior_ratio
from plurum.training.statistics.calibration import conformal_quantiles, review_threshold
from plurum.voting import with_prior

HERE, THERE = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.3, 0.6])
MEANS = np.array([[1.5, 0.0], [0.0, 1.5], [-1.0, -1.0]])


def posterior(points: Floats, shares: Floats) -> Floats:
    """Bayes' rule for three Gaussian clusters, calibrated by construction."""
    density = np.exp(-0.5 * np.square(points[:, None] - MEANS).sum(axis=2))
    return np.asarray(density * shares / (density @ shares)[:, None])


def drawn(images: int, shares: Floats, seed: int) -> tuple[Floats, Ints]:
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, images, p=shares)
    return rng.normal(size=(images, 2)) + MEANS[labels], labels


def test_shares_are_found_from_unlabelled_images_and_mend_the_nll() -> None:
    points, labels = drawn(4000, THERE, seed=1)
    predictions = posterior(points, HERE)
    found = estimate_frequencies(predictions, HERE)
    np.testing.assert_allclose(found, THERE, atol=0.03)
    corrected = with_prior(predictions, prior_ratio(found, HERE, "abc"))
    best = compute_losses(posterior(points, THERE), labels).mean()
    assert compute_losses(predictions, labels).mean() > best + 0.1
    assert compute_losses(corrected, labels).mean() == pytest.approx(best, abs=0.003)


def test_the_estimate_has_the_highest_likelihood() -> None:
    predictions = posterior(drawn(300, THERE, seed=2)[0], HERE)
    found = estimate_frequencies(predictions, HERE)

    def likelihood(shares: Floats) -> float:
        return float(np.log(predictions @ (shares / HERE)).mean())

    steps = np.linspace(0.01, 0.98, 98)
    grid = [np.array([a, b, 1 - a - b]) for a in steps for b in steps if a + b <= 0.99]
    assert likelihood(found) >= max(map(likelihood, grid))


def test_without_a_shift_none_is_found() -> None:
    np.testing.assert_allclose(estimate_frequencies(posterior(drawn(4000, HERE, 3)[0], HERE), HERE), HERE, atol=0.03)


def test_a_class_that_shows_nowhere_keeps_half_an_image() -> None:
    predictions = np.tile([[1.0, 0.0]], (50, 1))
    np.testing.assert_allclose(estimate_frequencies(predictions, np.array([0.5, 0.5])), [1 / 1.01, 0.01 / 1.01])


def test_the_stated_shares_exact_correction_is_bayes_rule() -> None:
    points, _ = drawn(50, THERE, seed=4)
    ratio = prior_ratio(frequencies_from_prior({"c": 0.6, "a": 0.1, "b": 0.3}, "abc"), HERE, "abc")
    np.testing.assert_allclose(with_prior(posterior(points, HERE), ratio), posterior(points, THERE))


def test_sets_and_review_fitted_here_hold_there() -> None:
    """Class-conditional sets do not change, and the threshold uses weighted images."""
    here, there = drawn(4000, HERE, seed=5), drawn(4000, THERE, seed=6)
    ratio = prior_ratio(THERE, HERE, "abc")
    ours, theirs = (with_prior(posterior(points, HERE), ratio) for points, _ in (here, there))
    quantiles = np.array(conformal_quantiles(ours, here[1], np.arange(4000), 0.1))
    for index in range(3):
        rows = there[1] == index
        assert (1 - theirs[rows, index] <= quantiles[index]).mean() == pytest.approx(0.9, abs=0.04)
    wrong = ours.argmax(axis=1) != here[1]
    weighed = review_threshold(ours.max(axis=1), wrong, 0.05, np.array(ratio)[here[1]])
    kept = theirs.max(axis=1) >= weighed
    assert (theirs.argmax(axis=1) != there[1])[kept].mean() == pytest.approx(0.05, abs=0.015)
    assert review_threshold(ours.max(axis=1), wrong, 0.05) != pytest.approx(weighed, abs=0.01)


def test_shares_are_counted() -> None:
    assert class_frequencies(np.array([0, 0, 2, 0]), 4).tolist() == [0.75, 0, 0.25, 0]


def test_other_classes_and_unknown_ones_are_refused() -> None:
    with pytest.raises(SettingsError, match="--prior: unknown class CEE; available: CE, LAA"):
        frequencies_from_prior({"CEE": 0.5, "LAA": 0.5}, ("CE", "LAA"))
    with pytest.raises(SettingsError, match="--prior: expected a frequency for each class, got none for LAA"):
        frequencies_from_prior({"CE": 1.0}, ("CE", "LAA"))
    with pytest.raises(DataError, match="class 'LAA' has no validation image, so its frequency can't be corrected"):
        prior_ratio(np.array([0.5, 0.5]), np.array([1.0, 0.0]), ("CE", "LAA"))
