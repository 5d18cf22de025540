"""Random augmentation of training images, drawn from PyTorch's global generators."""

from __future__ import annotations

import math

import torch
from torch.nn import functional
from torchvision.transforms import v2

from plurum.settings.training import TrainSettings

__all__ = ["augment", "erase", "mix_pairs"]

# Extent of elastic distortions, as a fraction of the image size: neighbouring points move together.
_ELASTIC_EXTENT = 0.06


def augment(pixels: torch.Tensor, settings: TrainSettings) -> torch.Tensor:
    """Augment each image of uint8 pixels `[batch, height, width, 3]` and return float32 pixels, 0 to 255.

    TrivialAugment comes first, then brightness, contrast, saturation and hue, gamma, and blur. Then a single map per
    image shifts, rotates, mirrors and distorts it; uncovered areas repeat the edge. Shifts are whole pixels, so that
    without rotation and distortion nothing is blurred. Noise comes last; in grey images all channels share it.
    """
    images = pixels.permute(0, 3, 1, 2)
    if settings.trivial_augment:
        images = _change_each(images, v2.TrivialAugmentWide(interpolation=v2.InterpolationMode.BILINEAR))
    if settings.jitter:
        strength = settings.jitter
        images = _change_each(images, v2.ColorJitter(strength, strength, strength, hue=strength / 8))
    images = images.float()
    if settings.gamma:
        images = 255 * (images / 255) ** _draw_gamma(images, settings.gamma)
    if settings.blur:
        images = _change_each(images, v2.GaussianBlur(_kernel(settings.blur, images), (1e-3, settings.blur)))
    if settings.shift or settings.rotate or settings.flip or settings.elastic:
        images = _move(images, settings)
    if settings.noise:
        images = (images + _draw_noise(images, settings)).clamp(0, 255)
    return images.permute(0, 2, 3, 1)


def erase(images: torch.Tensor, settings: TrainSettings) -> torch.Tensor:
    """Return normalised images, `[batch, 3, height, width]`, in some of which a rectangle is 0, the mean."""
    return _change_each(images, v2.RandomErasing(settings.erase)) if settings.erase else images


def mix_pairs(
    images: torch.Tensor, labels: torch.Tensor, classes: int, settings: TrainSettings
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images and their targets, mixed in pairs by MixUp or CutMix.

    Targets are `labels` without mixing, else class fractions, float32 `[batch, classes]`.

    Args:
        images: Normalised images, `[batch, 3, height, width]`.
        labels: Classes, int64 `[batch]`, or class fractions, float32 `[batch, classes]`.
        classes: Number of classes.
        settings: Training settings; with `mixup` and `cutmix`, each batch gets one of them.
    """
    kinds = [
        kind(alpha=alpha, num_classes=classes)
        for kind, alpha in ((v2.MixUp, settings.mixup), (v2.CutMix, settings.cutmix))
        if alpha
    ]
    if not kinds:
        return images, labels
    mix = kinds[int(torch.randint(len(kinds), ()))]
    both: tuple[torch.Tensor, torch.Tensor] = mix(images, labels)
    return both


def _move(images: torch.Tensor, settings: TrainSettings) -> torch.Tensor:
    count, _, height, width = images.shape
    down, right = (_draw_shifts(count, round(settings.shift * size)) for size in (height, width))
    angle = (2 * torch.rand(count) - 1) * math.radians(settings.rotate)
    mirror = torch.where(torch.rand(count) < 0.5, -1.0, 1.0) if settings.flip else torch.ones(count)
    cos, sin, aspect = angle.cos(), angle.sin(), height / width
    # The map goes from a pixel's position to that of its source, both in -1 to 1 over the image.
    across = torch.stack([mirror * cos, -mirror * sin * aspect, -2 * right / width], dim=1)
    along = torch.stack([sin / aspect, cos, -2 * down / height], dim=1)
    grid = functional.affine_grid(torch.stack([across, along], dim=1), list(images.shape), align_corners=False)
    if settings.elastic:
        grid = grid + 2 * settings.elastic * _draw_distortions(count, height, width)
    mode = "bilinear" if settings.rotate or settings.elastic else "nearest"
    return functional.grid_sample(images, grid.to(images.device), mode, padding_mode="border", align_corners=False)


def _draw_shifts(count: int, reach: int) -> torch.Tensor:
    return torch.randint(-reach, reach + 1, (count,)).float()


def _draw_distortions(count: int, height: int, width: int) -> torch.Tensor:
    """Return smooth random fields of up to 1 in some point, `[count, height, width, 2]`, each with its own strength."""
    fields = 2 * torch.rand(count, 2, height, width) - 1
    extent = _ELASTIC_EXTENT * min(height, width)
    smooth: torch.Tensor = v2.functional.gaussian_blur(fields, [_kernel(extent, fields)] * 2, [extent] * 2)
    largest = smooth.abs().amax(dim=(1, 2, 3), keepdim=True)
    return (torch.rand(count, 1, 1, 1) * smooth / largest).permute(0, 2, 3, 1)


def _draw_gamma(images: torch.Tensor, most: float) -> torch.Tensor:
    """Return an exponent for each image, `[batch, 1, 1, 1]`; one and its inverse are equally likely."""
    exponents = (2 * torch.rand(len(images), 1, 1, 1) - 1) * math.log1p(most)
    return exponents.exp().to(images.device)


def _draw_noise(images: torch.Tensor, settings: TrainSettings) -> torch.Tensor:
    count, channels, height, width = images.shape
    shape = (count, 1 if settings.colour == "grey" else channels, height, width)
    noise = 255 * settings.noise * torch.rand(count, 1, 1, 1) * torch.randn(shape)
    return noise.to(images.device)


def _kernel(deviation: float, images: torch.Tensor) -> int:
    """Return the side of a Gaussian kernel of three standard deviations, as far as the images allow."""
    return 2 * min(math.ceil(3 * deviation), min(images.shape[2:]) - 1) + 1


def _change_each(images: torch.Tensor, transform: v2.Transform) -> torch.Tensor:
    """Apply a transform to each image by itself, because it draws once per call."""
    return torch.stack([transform(image) for image in images])
