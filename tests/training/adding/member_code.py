"""Code that makes models, as users write it; tests name it as an architecture."""

from __future__ import annotations

from types import SimpleNamespace

import timm
import torch
import torchvision
from torch import Tensor, nn

__all__ = ["Cut", "Wrapped", "make_body", "make_branching", "make_nothing", "make_shares", "make_wrapped", "with_cut"]


class Wrapped(nn.Module):
    """Model in an attribute that is named like a wrapper's, with outputs like those of transformers."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.model = timm.create_model("resnet10t", num_classes=classes)

    def forward(self, images: Tensor) -> SimpleNamespace:
        """Return an object with logits."""
        return SimpleNamespace(logits=self.model(images))


class Cut(nn.Sequential):
    """Body and head, as fastai builds them."""

    def __init__(self, classes: int) -> None:
        body = nn.Sequential(*list(torchvision.models.resnet18(weights=None).children())[:-2])
        head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(512), nn.Dropout(0.25), nn.Linear(512, classes)
        )
        super().__init__(body, head)


class _Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 10)

    def forward(self, images: Tensor) -> Tensor:
        means = images.mean(dim=(2, 3))
        found: Tensor = self.layer(means if means.sum() > 0 else -means)
        return found


def make_wrapped(num_classes: int) -> nn.Module:
    """Return a model for a number of classes."""
    return Wrapped(num_classes)


def with_cut() -> nn.Module:
    """Return a model of ten classes."""
    return Cut(10)


def make_branching() -> nn.Module:
    """Return a model that can't be traced."""
    return _Branching()


def make_nothing() -> int:
    """Return no model."""
    return 3


def make_body() -> nn.Module:
    """Return a model without a classifier."""
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))


def make_shares() -> nn.Module:
    """Return a model that ends in Softmax."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 11 * 11, 10), nn.Softmax(dim=1)
    )
