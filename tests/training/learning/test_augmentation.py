"""Augmentation stays within its limits, and treats each image separately."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from plurum.training import TrainSettings
from plurum.training.learning.augmentation import augment, erase, mix_pairs


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def settings(**values: Any) -> TrainSettings:
    return TrainSettings(**{"archs": ("a",), "shift": 0.0, **values})


def test_images_are_moved_by_at_most_their_share_and_never_mixed() -> None:
    # Each value encodes its position: image 100 · i, row 10 · y, column x.
    grid = 10 * np.arange(8)[:, None] + np.arange(10)[None]
    pixels = np.stack([grid, 100 + grid])[..., None].repeat(3, axis=-1).astype(np.uint8)
    batch = torch.from_numpy(np.tile(pixels, (50, 1, 1, 1)))
    moved = augment(batch, settings(shift=0.25)).numpy().astype(int)
    assert (moved // 100 == batch.numpy() // 100).all()
    inner = moved[:, 4, 5, 0] % 100
    assert set(inner // 10 - 4) == {-2, -1, 0, 1, 2}
    assert set(inner % 10 - 5) == {-2, -1, 0, 1, 2}
    assert torch.equal(augment(batch, settings()), batch.float())


def test_flip_mirrors_half_of_the_images() -> None:
    batch = torch.arange(6, dtype=torch.uint8).reshape(1, 1, 6, 1).expand(400, 2, 6, 3)
    flipped = augment(batch, settings(flip=True))[:, 0, :, 0]
    mirrored = (flipped == torch.arange(5, -1, -1)).all(dim=1)
    assert ((flipped == torch.arange(6)).all(dim=1) ^ mirrored).all()
    assert 150 < mirrored.sum() < 250


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 80)])
def test_images_are_turned_by_up_to_the_angle_about_their_centre(height: int, width: int) -> None:
    """After a rotation, a dot keeps its distance from the centre, at an angle within the limits."""
    batch = torch.zeros(200, height, width, 3, dtype=torch.uint8)
    batch[:, height // 2 - 1 : height // 2 + 1, width // 2 + 14 : width // 2 + 16] = 255
    turned = augment(batch, settings(rotate=60))[..., 0]
    y, x = torch.meshgrid(torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2, indexing="ij")
    total = turned.sum(dim=(1, 2))
    dot_x, dot_y = ((turned * axis).sum(dim=(1, 2)) / total for axis in (x, y))
    assert (torch.hypot(dot_x, dot_y) - 15).abs().max() < 0.1
    angles = torch.rad2deg(torch.atan2(dot_y, dot_x))
    assert -61 < angles.min() < -45
    assert 45 < angles.max() < 61


def test_colours_are_changed_image_by_image() -> None:
    batch = torch.full((8, 4, 4, 3), 100, dtype=torch.uint8)
    changed = augment(batch, settings(jitter=0.5))
    means = changed.mean(dim=(1, 2, 3))
    assert means.unique().numel() == 8
    assert 49 <= means.min() <= means.max() <= 151
    assert changed.dtype == torch.float32


def test_gamma_changes_the_middle_and_keeps_black_and_white() -> None:
    batch = torch.tensor([0, 64, 255], dtype=torch.uint8).reshape(1, 1, 3, 1).expand(300, 4, 3, 3)
    changed = augment(batch, settings(gamma=0.5))
    assert torch.equal(changed[:, :, [0, 2]], batch[:, :, [0, 2]].float())
    middle = changed[:, 0, 1, 0]
    assert 255 * (64 / 255) ** 1.5 - 1 < middle.min() < 40
    assert 90 < middle.max() < 255 * (64 / 255) ** (1 / 1.5) + 1


def test_blur_spreads_a_dot_by_at_most_its_deviation() -> None:
    batch = torch.zeros(100, 33, 33, 3, dtype=torch.uint8)
    batch[:, 16, 16] = 255
    blurred = augment(batch, settings(blur=2.0))[..., 0]
    torch.testing.assert_close(blurred.sum(dim=(1, 2)), torch.full((100,), 255.0))
    squares = (torch.arange(33) - 16.0).square()
    deviations = ((blurred.sum(dim=1) * squares).sum(dim=1) / 255).sqrt()
    assert deviations.min() < 0.5
    assert 1.5 < deviations.max() < 2.0


@pytest.mark.parametrize("colour", ["rgb", "grey"])
def test_noise_has_at_most_its_deviation_and_grey_stays_grey(colour: str) -> None:
    batch = torch.full((50, 32, 32, 3), 128, dtype=torch.uint8)
    noisy = augment(batch, settings(noise=0.1, colour=colour))
    deviations = noisy.std(dim=(1, 2, 3))
    assert deviations.min() < 5
    assert 20 < deviations.max() < 26.5
    assert torch.equal(noisy[..., 0], noisy[..., 1]) == (colour == "grey")
    extreme = augment(torch.full((20, 8, 8, 3), 255, dtype=torch.uint8), settings(noise=1.0))
    assert 0 <= extreme.min() < extreme.max() == 255


def test_elastic_distortion_moves_points_smoothly_and_not_too_far() -> None:
    # Each pixel's value is its column, or its row.
    columns = torch.arange(64).reshape(1, 1, 64, 1).expand(60, 64, 64, 3)
    for batch in (columns, columns.transpose(1, 2)):
        moved = augment(batch.to(torch.uint8), settings(elastic=0.1)) - batch
        assert 5 < moved.abs().max() <= 6.4 + 1e-3
        assert moved.abs().amax(dim=(1, 2, 3)).min() < 1.5
        for axis in (1, 2):
            assert moved.diff(dim=axis).abs().max() < 4


def test_erasing_sets_a_rectangle_of_some_images_to_the_mean() -> None:
    images = torch.ones(400, 3, 16, 16)
    erased = erase(images, settings(erase=0.25))
    is_changed = (erased == 0).any(dim=(1, 2, 3))
    assert 70 < is_changed.sum() < 130
    rectangle = erased[is_changed][0, 0] == 0
    rows, columns = rectangle.any(dim=1).sum(), rectangle.any(dim=0).sum()
    assert rectangle.sum() == rows * columns < 256
    assert erase(images, settings()) is images


def test_trivial_augment_changes_images_one_by_one() -> None:
    batch = torch.randint(0, 256, (1, 16, 16, 3), dtype=torch.uint8).expand(40, -1, -1, -1)
    changed = augment(batch, settings(trivial_augment=True))
    assert 10 < len(torch.unique(changed, dim=0)) <= 40
    assert 0 <= changed.min() < changed.max() <= 255


def test_every_change_together_is_repeated_by_the_seed() -> None:
    values = dict.fromkeys(("shift", "jitter", "gamma", "blur", "noise", "elastic"), 0.1)
    everything = settings(**values, flip=True, rotate=20, trivial_augment=True)
    batch = torch.randint(0, 256, (4, 24, 20, 3), dtype=torch.uint8)
    results = []
    for _ in range(2):
        torch.manual_seed(7)
        results.append(augment(batch, everything))
    assert torch.equal(*results)
    assert results[0].shape == batch.shape


def test_mixup_and_cutmix_mix_pairs_with_their_labels() -> None:
    """Image i has the value i and the class i, so mixed images and targets must show the same fractions."""
    labels = torch.arange(8)
    images = labels.float()[:, None, None, None].expand(8, 3, 16, 16)
    partners = images.roll(1, 0)
    for values in ({"mixup": 1.0}, {"cutmix": 1.0}):
        inputs, targets = mix_pairs(images, labels, 8, settings(**values))
        share = targets[torch.arange(8), labels]
        expected = share[:, None] * labels.float()[:, None] + (1 - share)[:, None] * partners[:, :1, 0, 0]
        torch.testing.assert_close(inputs.mean(dim=(1, 2, 3))[:, None], expected)
        assert 0 < share[0] < 1
        torch.testing.assert_close(targets.sum(dim=1), torch.ones(8))
        assert (inputs[0].unique().numel() > 1) == ("cutmix" in values)
    inputs, targets = mix_pairs(images, labels, 8, settings())
    assert inputs is images
    assert targets is labels


def test_with_mixup_and_cutmix_each_batch_gets_one_of_them() -> None:
    images, labels = torch.rand(4, 3, 16, 16), torch.arange(4)
    was_cut = []
    for _ in range(40):
        inputs, _ = mix_pairs(images, labels, 4, settings(mixup=1.0, cutmix=1.0))
        was_cut.append(bool((inputs[0] == images[0]).any()))
    assert 8 < sum(was_cut) < 32
