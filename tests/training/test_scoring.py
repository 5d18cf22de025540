"""What members answer: in evaluation mode, in float32, and leaving the model as it was."""

from __future__ import annotations

import numpy as np
import torch

from plurum.models import normalised
from plurum.run import Run
from plurum.training.architectures import model_from_arch
from plurum.training.scoring import logits_of


def test_logits_are_those_of_evaluation_mode_whatever_mode_the_model_is_in(trained: Run) -> None:
    image, pixels, rows = trained.data().image, trained.pixels(), np.array([5, 200, 17])
    model = model_from_arch("test_byobnet", 4, 0).eval()
    with torch.inference_mode():
        expected = model(normalised(torch.from_numpy(pixels[rows]), image)).numpy()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for training in (False, True):
        model.train(training)
        logits = logits_of(model, pixels, rows, image, batch_size=2)
        np.testing.assert_allclose(logits, expected, atol=1e-6)
        assert model.training is training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
