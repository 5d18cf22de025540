"""Weights are found under any name that a training program gives them, and several models are told apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from plurum.errors import MetadataError
from plurum.training.adding.weights import load_weights

Tensors = dict[str, torch.Tensor]


class Net(nn.Module):
    """Module with two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Linear(4, 3), nn.Linear(3, 2)


def under(prefix: str, weights: Tensors) -> Tensors:
    return {prefix + name: value for name, value in weights.items()}


def negated(weights: Tensors) -> Tensors:
    return {name: -value for name, value in weights.items()}


@pytest.fixture
def weights() -> Tensors:
    torch.manual_seed(0)
    return dict(Net().state_dict())


# The file's content from the weights, and what the notes say.
FOUND: dict[str, tuple[Any, str]] = {
    "an attribute of any name": (lambda w: under("classifier.", w), "removed the prefix 'classifier.'"),
    "within wrappers": (lambda w: under("module.student._orig_mod.", w), "removed the prefix"),
    "beside a loss": (lambda w: under("encoder.", w) | {"loss.weight": torch.ones(2)}, "left out 1 tensors"),
    "beside another model": (lambda w: under("net.", w) | under("teacher.", negated(w)), "(teacher.body.weight"),
    "averaged, beside the last": (
        lambda w: under("model.", negated(w)) | under("ema.module.", w),
        "removed the prefix 'ema.module.'",
    ),
    "under a key of any name": (lambda w: {"net": w, "acc": 93.1, "epoch": 3}, ""),
    "settings of an average": (lambda w: {"model": w, "ema": {"decay": 0.99}}, ""),
    "an average under a short key": (
        lambda w: {"model": negated(w), "ema": under("module.", w)},
        "used the averaged weights (EMA) under 'ema', not those under 'model'",
    ),
    "EMA first in its name": (
        lambda w: {"state_dict": negated(w), "ema_state_dict": w},
        "(EMA) under 'ema_state_dict'",
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_weights_are_found(name: str, weights: Tensors, tmp_path: Path) -> None:
    content, told = FOUND[name]
    torch.save(content(weights), tmp_path / "weights.pt")
    model = Net()
    notes = load_weights(model, tmp_path / "weights.pt", "net")
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert told in "; ".join(notes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            lambda w: under("student.", w) | under("teacher.", w),
            r"has the model's tensors under student\., teacher\.\. Save the state dict of one of them",
        ),
        (lambda w: {"first": w, "second": w}, "has several state dicts: 'first', 'second'; save one of them"),
        (lambda w: {**w, "extra": w}, "expected only tensors, got 'extra'"),
        (lambda w: {**w, "fc.scale": torch.ones(1)}, r"1 unexpected \(fc\.scale\)"),
    ],
)
def test_models_are_not_guessed(content: Any, message: str, weights: Tensors, tmp_path: Path) -> None:
    torch.save(content(weights), tmp_path / "weights.pt")
    with pytest.raises(MetadataError, match=message):
        load_weights(Net(), tmp_path / "weights.pt", "net")
