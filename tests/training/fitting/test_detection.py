"""Fitting a member's detector, checked against covariances by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.covariance import EmpiricalCovariance
from torch import Tensor

from plurum.training.fitting.detection import fit_detector

CLASSES, WIDTH = 3, 12


def draw(images: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return features of three classes, which differ most in few directions, and the classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % CLASSES
    deviations = torch.linspace(0.2, 2, WIDTH)
    centres = torch.zeros(CLASSES, WIDTH)
    centres[1, 0], centres[2, 5] = 6.0, -6.0
    return centres[labels] + torch.randn(images, WIDTH, generator=generator) * deviations + 3.0, labels


def test_with_nearly_all_axes_it_ranks_as_the_mahalanobis_distance_of_scikit_learn() -> None:
    features, labels = draw(6000)
    new = torch.cat([draw(200, 1)[0], 4 * torch.randn(200, WIDTH, generator=torch.Generator().manual_seed(2))])
    found = fit_detector(features, labels, draw(300, 3)[0], axes=WIDTH)(new)[:, 0].numpy()
    means = np.stack([features[labels == one].mean(dim=0).numpy() for one in range(CLASSES)])
    covariance = EmpiricalCovariance().fit(features.numpy() - means[labels])
    expected = np.min([covariance.mahalanobis(new.numpy() - mean + covariance.location_) for mean in means], axis=0)
    assert np.corrcoef(np.argsort(np.argsort(found)), np.argsort(np.argsort(expected)))[0, 1] > 0.99


def test_the_validation_images_have_a_mean_of_0_and_a_deviation_of_1() -> None:
    features, labels = draw(600)
    validation = draw(90, 1)[0]
    novelty = fit_detector(features, labels, validation, axes=4)(validation)
    assert novelty.mean().item() == pytest.approx(0, abs=1e-4)
    assert novelty.std(unbiased=False).item() == pytest.approx(1, abs=1e-4)


def test_a_direction_without_an_axis_counts_too() -> None:
    features, labels = draw(600)
    detector = fit_detector(features, labels, draw(90, 1)[0], axes=4)
    away = torch.zeros(1, WIDTH)
    away[0, 1] = 5.0
    assert detector.axes.shape == (WIDTH, 4)
    assert detector(features[:1] + away) > detector(features[:1]) + 2


@pytest.mark.parametrize("images", [6, 3])
def test_fewer_images_than_features_and_constant_features_give_finite_numbers(images: int) -> None:
    features, labels = draw(images)
    features[:, 4:] = 1.5
    detector = fit_detector(features, labels, features[:1])
    novelty = detector(torch.cat([features, torch.zeros(1, WIDTH)]))
    assert novelty.isfinite().all()
    assert novelty[-1] > novelty[:-1].max()


def test_a_class_without_training_images_is_nobody_s_nearest() -> None:
    features, labels = draw(600)
    rows = labels != 1
    detector = fit_detector(features[rows], labels[rows], features[:60])
    assert detector.means.shape[0] == CLASSES - 1
    assert detector(features[~rows]).median() > detector(features[rows]).max()
