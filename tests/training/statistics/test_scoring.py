"""Logits are computed in evaluation mode and float32, and the model's mode is restored."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from plurum.models import normalise
from plurum.run import Run
from plurum.training.inference.ensembles import ensemble_from_models
from plurum.training.learning.architectures import model_from_arch
from plurum.training.statistics.scoring import device_of, predict_logits


def test_logits_are_those_of_evaluation_mode_whatever_mode_the_model_is_in(trained: Run) -> None:
    image, pixels, rows = trained.data().image, trained.pixels(), np.array([5, 200, 17])
    model = model_from_arch("test_byobnet", 4, 0).eval()
    with torch.inference_mode():
        expected = model(normalise(torch.from_numpy(pixels[rows]), image)).numpy()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for training in (False, True):
        model.train(training)
        logits = predict_logits(model, pixels, rows, image, batch_size=2)
        np.testing.assert_allclose(logits, expected, atol=1e-6)
        assert model.training is training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


class Means(nn.Module):
    """Model without weights that returns the mean of each channel."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.mean(dim=(2, 3))


def test_a_model_without_weights_answers_too(trained: Run) -> None:
    image, pixels, rows = trained.data().image, trained.pixels(), np.array([5, 200])
    expected = normalise(torch.from_numpy(pixels[rows]), image).mean(dim=(2, 3)).numpy()
    np.testing.assert_allclose(predict_logits(Means(), pixels, rows, image), expected, atol=1e-6)
    ensemble = ensemble_from_models([Means()], classes=("a", "b", "c"), image=image)
    assert ensemble(pixels[rows]).shape == (2, 3)
    assert device_of(nn.BatchNorm1d(3, affine=False, device="meta")).type == "meta"
