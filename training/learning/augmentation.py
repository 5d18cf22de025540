"""Random augmentation of training images, drawn from PyTorch's global generators."""

from __future__ import annotations

import math

import torch
from torch.nn import functional
from torchvision.transforms import v2

from plurum.settings.training import TrainSettings

__all__ = ["augment", "mix_pairs"]


def augment(pixels: torch.Tensor, settings: TrainSettings) -> torch.Tensor:
    """Augment each image of uint8 pixels `[batch, height, width, 3]` and return float32 pixels, 0 to 255.

    Brightness, contrast, saturation and hue change first. Then a single affine map per image shifts, rotates and
    mirrors it; uncovered areas repeat the edge. Shifts are whole pixels, so that without rotation nothing is blurred.
    """
    if settings.jitter:
        pixels = _jitter(pixels, settings.jitter)
    changed = pixels.float()
    if settings.shift or settings.rotate or settings.flip:
        changed = _move(changed.permute(0, 3, 1, 2), settings).permute(0, 2, 3, 1)
    return changed


def mix_pairs(
    images: torch.Tensor, labels: torch.Tensor, classes: int, settings: TrainSettings
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images and their targets, mixed in pairs by MixUp or CutMix.

    Targets are `labels` without mixing, else class fractions `[batch, classes]`.

    Args:
        images: Normalised images, `[batch, 3, height, width]`.
        labels: Classes, int64 `[batch]`.
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
    mode = "bilinear" if settings.rotate else "nearest"
    return functional.grid_sample(images, grid.to(images.device), mode, padding_mode="border", align_corners=False)


def _draw_shifts(count: int, reach: int) -> torch.Tensor:
    return torch.randint(-reach, reach + 1, (count,)).float()


def _jitter(pixels: torch.Tensor, strength: float) -> torch.Tensor:
    jitter = v2.ColorJitter(brightness=strength, contrast=strength, saturation=strength, hue=strength / 8)
    # A transform draws once per call, so call it once per image.
    return torch.stack([jitter(image) for image in pixels.permute(0, 3, 1, 2)]).permute(0, 2, 3, 1)
