"""Training images, changed at random so that members learn what does not matter.

All is drawn from PyTorch's own generators.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional
from torchvision.transforms import v2

from plurum.training.settings import TrainSettings

__all__ = ["augmented", "mixed"]


def augmented(pixels: torch.Tensor, settings: TrainSettings) -> torch.Tensor:
    """Return uint8 pixels `[batch, height, width, 3]` as float32 ones, 0 to 255, each image changed on its own.

    Shifted, turned and mirrored in one go, by an affine map of its own; what a move uncovers is filled with the edge.
    Shifts are of whole pixels, so that without a rotation no pixel is blurred. Then brightness, contrast, saturation
    and hue.
    """
    if settings.jitter:
        pixels = _jittered(pixels, settings.jitter)
    changed = pixels.float()
    if settings.shift or settings.rotate or settings.flip:
        changed = _moved(changed.permute(0, 3, 1, 2), settings).permute(0, 2, 3, 1)
    return changed


def mixed(
    images: torch.Tensor, labels: torch.Tensor, classes: int, settings: TrainSettings
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images and their targets, mixed in pairs as the settings ask for.

    Args:
        images: `[batch, 3, height, width]`, normalised.
        labels: `[batch]`, int64; they come back so where nothing is mixed, else as shares `[batch, classes]`.
        classes: How many there are.
        settings: With `mixup` and `cutmix` both, each batch takes one or the other.
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


def _moved(images: torch.Tensor, settings: TrainSettings) -> torch.Tensor:
    count, _, height, width = images.shape
    down, right = (_whole_shifts(count, round(settings.shift * size)) for size in (height, width))
    angle = (2 * torch.rand(count) - 1) * math.radians(settings.rotate)
    mirror = torch.where(torch.rand(count) < 0.5, -1.0, 1.0) if settings.flip else torch.ones(count)
    cos, sin, aspect = angle.cos(), angle.sin(), height / width
    # The map goes from where a pixel lies to where it came from, both in -1 to 1 over the image.
    across = torch.stack([mirror * cos, -mirror * sin * aspect, -2 * right / width], dim=1)
    along = torch.stack([sin / aspect, cos, -2 * down / height], dim=1)
    grid = functional.affine_grid(torch.stack([across, along], dim=1), list(images.shape), align_corners=False)
    mode = "bilinear" if settings.rotate else "nearest"
    return functional.grid_sample(images, grid.to(images.device), mode, padding_mode="border", align_corners=False)


def _whole_shifts(count: int, reach: int) -> torch.Tensor:
    return torch.randint(-reach, reach + 1, (count,)).float()


def _jittered(pixels: torch.Tensor, strength: float) -> torch.Tensor:
    jitter = v2.ColorJitter(brightness=strength, contrast=strength, saturation=strength, hue=strength / 8)
    # A transform draws once per call, and each image is to get a draw of its own.
    return torch.stack([jitter(image) for image in pixels.permute(0, 3, 1, 2)]).permute(0, 2, 3, 1)
