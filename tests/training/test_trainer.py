"""The trainer: reproducible, scheduled, augmented within bounds, and honest about its arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from plurum.errors import SettingsError
from plurum.run import Run
from plurum.training import TrainSettings
from plurum.training.architectures import model_from_arch
from plurum.training.precision import autocast, precision_for
from plurum.training.scoring import logits_of, scores_of
from plurum.training.trainer import Examples, Trained, Trainer, augmented, learning_rate_at
from plurum.voting import softmax
from tests.training.conftest import SETTINGS

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def examples(trained: Run) -> Examples:
    return Examples.of(trained)


def fitted(examples: Examples, run: Run, seed: int = 5, **changes: Any) -> Trained:
    settings = TrainSettings.model_validate({**SETTINGS.model_dump(), "epochs": 2, **changes})
    model = model_from_arch("test_byobnet", examples.classes, seed)
    return Trainer(settings, run.data().image).fit(model, examples, seed)


def same(one: Trained, other: Trained) -> bool:
    return all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)


class Wandering(nn.Module):
    """Learns with dropout, and answers nonsense with certainty after some steps."""

    steps: torch.Tensor

    def __init__(self, good_for: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(0.5), nn.Linear(48, 4))
        self.good_for = good_for
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.steps += self.training
        logits: torch.Tensor = self.layers(inputs)
        return logits if self.steps <= self.good_for else -100 * logits


def test_an_earlier_epoch_is_kept_when_it_was_the_best(examples: Examples, trained: Run) -> None:
    settings = SETTINGS.model_copy(update={"epochs": 4, "warmup_share": 0.0})
    result = Trainer(settings, trained.data().image).fit(Wandering(good_for=20), examples, 0)
    assert result.best is result.history[1]
    # Ten steps an epoch: the weights are those of that moment, not of the end.
    assert result.weights["steps"] == 20


def test_dropout_is_drawn_from_the_seed_too(examples: Examples, trained: Run) -> None:
    results = []
    for before in (1, 2):
        model = Wandering(good_for=1000)
        model.load_state_dict({name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()})
        torch.manual_seed(before)
        results.append(Trainer(SETTINGS, trained.data().image).fit(model, examples, 0))
    assert same(*results)


def test_the_same_seed_gives_the_same_weights_and_another_others(examples: Examples, trained: Run) -> None:
    torch.manual_seed(11)
    expected_next = torch.rand(3)
    torch.manual_seed(11)
    one = fitted(examples, trained)
    assert torch.equal(torch.rand(3), expected_next), "the caller's generator was moved"
    again = fitted(examples, trained)
    assert same(one, again)
    assert not same(one, fitted(examples, trained, seed=6))


def test_the_best_epoch_is_kept_and_scored_as_it_will_be_served(examples: Examples, trained: Run) -> None:
    result = fitted(examples, trained, epochs=6, learning_rate=0.1, precision="fp32")
    losses = [epoch.validation_nll for epoch in result.history]
    assert [epoch.epoch for epoch in result.history] == [1, 2, 3, 4, 5, 6]
    assert result.best is result.history[int(np.argmin(losses))]
    model = model_from_arch("test_byobnet", examples.classes, 0)
    model.load_state_dict(result.weights)
    answers = softmax(logits_of(model, examples.pixels, examples.validation, trained.data().image))
    scores = scores_of(answers, examples.labels[examples.validation])
    assert scores.nll == pytest.approx(result.best.validation_nll, rel=1e-4)
    assert scores.accuracy == result.best.validation_accuracy == result.validation.accuracy


def test_it_learns(examples: Examples, trained: Run) -> None:
    result = fitted(examples, trained, epochs=6, precision="fp32")
    assert result.validation.accuracy > 0.6
    assert result.history[-1].train_loss < result.history[0].train_loss


@pytest.mark.parametrize("batch_size", [159, 53, 500])
def test_a_last_batch_of_one_is_left_out(examples: Examples, trained: Run, batch_size: int) -> None:
    settings = SETTINGS.model_copy(update={"epochs": 1, "batch_size": batch_size})
    trainer = Trainer(settings, trained.data().image)
    assert trainer.steps(examples) == {159: 1, 53: 3, 500: 1}[batch_size]
    told: list[int] = []
    trainer.fit(
        model_from_arch("test_byobnet", examples.classes, 0), examples, 0, lambda count, _note: told.append(count)
    )
    assert sum(told) == trainer.steps(examples)


def test_a_training_that_diverges_says_so(examples: Examples, trained: Run) -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 4)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.layer(inputs.mean(dim=(2, 3))) * float("nan")
            return logits

    with pytest.raises(SettingsError, match=r"diverged in epoch 1: its loss is nan; try a smaller --learning-rate"):
        Trainer(SETTINGS, trained.data().image).fit(Broken(), examples, 0)


def test_the_learning_rate_rises_in_a_line_and_falls_by_a_cosine() -> None:
    settings = TrainSettings(archs=("a",), learning_rate=0.1, warmup_share=0.2)
    rates = [learning_rate_at(step, 50, settings) for step in range(50)]
    assert rates[:10] == pytest.approx([0.01 * step for step in range(1, 11)])
    assert rates[10] == pytest.approx(0.1)
    assert rates[30] == pytest.approx(0.05)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[49] < 0.001
    assert learning_rate_at(0, 1, settings) == 0.1


def test_images_are_moved_by_at_most_their_share_and_never_mixed() -> None:
    # The value says which image and where: image 100 · i, row 10 · y, column x.
    grid = 10 * np.arange(8)[:, None] + np.arange(10)[None]
    pixels = np.stack([grid, 100 + grid])[..., None].repeat(3, axis=-1).astype(np.uint8)
    batch = torch.from_numpy(np.tile(pixels, (50, 1, 1, 1)))
    settings = TrainSettings(archs=("a",), shift=0.25)
    moved = augmented(batch, np.random.default_rng(0), settings).numpy().astype(int)
    assert (moved // 100 == batch.numpy() // 100).all()
    inner = moved[:, 4, 5, 0] % 100
    assert set(inner // 10 - 4) == {-2, -1, 0, 1, 2}
    assert set(inner % 10 - 5) == {-2, -1, 0, 1, 2}
    still = augmented(batch, np.random.default_rng(0), settings.model_copy(update={"shift": 0.0}))
    assert torch.equal(still, batch)


def test_every_other_image_is_mirrored_if_asked_for() -> None:
    batch = torch.arange(6, dtype=torch.uint8).reshape(1, 1, 6, 1).expand(400, 2, 6, 3)
    settings = TrainSettings(archs=("a",), shift=0.0, flip=True)
    flipped = augmented(batch, np.random.default_rng(0), settings)[:, 0, :, 0]
    mirrored = (flipped == torch.arange(5, -1, -1)).all(dim=1)
    assert ((flipped == torch.arange(6)).all(dim=1) ^ mirrored).all()
    assert 150 < mirrored.sum() < 250


def test_bf16_trains_and_is_recorded(examples: Examples, trained: Run) -> None:
    result = fitted(examples, trained, epochs=1, precision="bf16")
    assert result.precision == "bf16"
    assert {tensor.dtype for tensor in result.weights.values()} <= {torch.float32, torch.int64}


def test_precision_follows_the_device() -> None:
    assert precision_for("fp32", CPU) == "fp32"
    assert precision_for("bf16", CPU) == "bf16"
    flags = Path("/proc/cpuinfo").read_text()
    has_bf16 = "avx512_bf16" in flags or "amx_tile" in flags
    assert precision_for("auto", CPU) == ("bf16" if has_bf16 else "fp32")
    assert precision_for("auto", torch.device("cuda")) == "fp16"
    assert precision_for("auto", torch.device("mps")) == "fp32"
    with pytest.raises(SettingsError, match="fp16 needs a CUDA device, and there is a cpu"):
        precision_for("fp16", CPU)


def test_bf16_is_computed_in_and_fp32_is_too() -> None:
    layer, inputs = nn.Linear(4, 4), torch.ones(1, 4)
    with autocast("bf16", CPU):
        assert layer(inputs).dtype == torch.bfloat16
    with autocast("fp32", CPU):
        assert layer(inputs).dtype == torch.float32


@pytest.mark.gpu
def test_fp16_trains_on_cuda(examples: Examples, trained: Run) -> None:
    result = fitted(examples, trained, epochs=5, precision="auto")
    assert result.precision == "fp16"
    assert result.validation.accuracy > 0.6
