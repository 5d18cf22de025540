"""Trainer: reproducibility, schedule, precision, accumulation, averaging and resumption."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from plurum.errors import SettingsError
from plurum.run import Run
from plurum.spec import ImageSpec
from plurum.training import TrainSettings
from plurum.training.data.examples import Examples
from plurum.training.learning.architectures import model_from_arch
from plurum.training.learning.distributed import ALONE
from plurum.training.learning.optimizer_step import Learner
from plurum.training.learning.precision import autocast, precision_for
from plurum.training.learning.resume import StateFile
from plurum.training.learning.trainer import TrainedModel, Trainer
from plurum.training.statistics.scoring import compute_scores, predict_logits
from plurum.voting import softmax
from tests.sample_runs.trained_run import SETTINGS

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def examples(trained: Run) -> Examples:
    return Examples.of(trained)


def changed(**changes: Any) -> TrainSettings:
    return TrainSettings.model_validate({**SETTINGS.model_dump(), "epochs": 2, **changes})


def fitted(examples: Examples, seed: int = 5, **changes: Any) -> TrainedModel:
    model = model_from_arch("test_byobnet", examples.classes, seed)
    return Trainer(changed(**changes)).fit(model, examples, seed)


def same(one: TrainedModel, other: TrainedModel) -> bool:
    return all(torch.equal(one.best.weights[name], other.best.weights[name]) for name in one.best.weights)


class Wandering(nn.Module):
    """Model with dropout that returns confident nonsense after some steps."""

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


def test_an_earlier_epoch_is_kept_when_it_was_the_best(examples: Examples) -> None:
    settings = SETTINGS.model_copy(update={"epochs": 4, "warmup_share": 0.0})
    result = Trainer(settings).fit(Wandering(good_for=20), examples, 0)
    assert result.best.epoch is result.history[1]
    # Ten steps per epoch: the weights are those of the best epoch, not of the end.
    assert result.best.weights["steps"] == 20


def test_dropout_depends_on_the_seed(examples: Examples) -> None:
    results = []
    for before in (1, 2):
        model = Wandering(good_for=1000)
        model.load_state_dict({name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()})
        torch.manual_seed(before)
        results.append(Trainer(SETTINGS).fit(model, examples, 0))
    assert same(*results)


def test_weights_depend_only_on_the_seed(examples: Examples) -> None:
    torch.manual_seed(11)
    expected_next = torch.rand(3)
    torch.manual_seed(11)
    one = fitted(examples)
    assert torch.equal(torch.rand(3), expected_next), "the caller's generator was moved"
    again = fitted(examples)
    assert same(one, again)
    assert not same(one, fitted(examples, seed=6))


def test_the_best_epoch_is_kept_and_scored_as_it_will_be_served(examples: Examples) -> None:
    result = fitted(examples, epochs=6, learning_rate=0.1, precision="fp32")
    losses = [epoch.validation_nll for epoch in result.history]
    assert [epoch.epoch for epoch in result.history] == [1, 2, 3, 4, 5, 6]
    assert result.best.epoch is result.history[int(np.argmin(losses))]
    model = model_from_arch("test_byobnet", examples.classes, 0)
    model.load_state_dict(result.best.weights)
    answers = softmax(predict_logits(model, examples.pixels, examples.validation, examples.image))
    scores = compute_scores(answers, examples.labels[examples.validation])
    assert scores.nll == pytest.approx(result.best.epoch.validation_nll, rel=1e-4)
    assert scores.accuracy == result.best.epoch.validation_accuracy == result.best.validation.accuracy


def test_training_lowers_the_loss(examples: Examples) -> None:
    result = fitted(examples, epochs=6, precision="fp32")
    assert result.best.validation.accuracy > 0.6
    assert result.history[-1].train_loss < result.history[0].train_loss


@pytest.mark.parametrize("batch_size", [159, 53, 500])
def test_a_last_batch_of_one_is_left_out(examples: Examples, batch_size: int) -> None:
    settings = SETTINGS.model_copy(update={"epochs": 1, "batch_size": batch_size})
    trainer = Trainer(settings)
    assert trainer.steps(examples) == {159: 1, 53: 3, 500: 1}[batch_size]
    told: list[int] = []
    model = model_from_arch("test_byobnet", examples.classes, 0)
    trainer.fit(model, examples, 0, progress=lambda count, _note: told.append(count))
    assert sum(told) == trainer.steps(examples)


def test_a_diverging_training_raises_an_error(examples: Examples) -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 4)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.layer(inputs.mean(dim=(2, 3))) * float("nan")
            return logits

    with pytest.raises(SettingsError, match=r"diverged in epoch 1: its loss is nan. Try a smaller --learning-rate"):
        Trainer(SETTINGS).fit(Broken(), examples, 0)


def test_bf16_trains_and_is_stored_in_the_metadata(examples: Examples) -> None:
    result = fitted(examples, epochs=1, precision="bf16")
    assert result.precision == "bf16"
    assert {tensor.dtype for tensor in result.best.weights.values()} <= {torch.float32, torch.int64}


def test_precision_follows_the_device() -> None:
    assert precision_for("fp32", CPU) == "fp32"
    assert precision_for("bf16", CPU) == "bf16"
    flags = Path("/proc/cpuinfo").read_text()
    has_bf16 = "avx512_bf16" in flags or "amx_tile" in flags
    assert precision_for("auto", CPU) == ("bf16" if has_bf16 else "fp32")
    small, large = (ImageSpec(height=side, width=side, mean=(0,) * 3, std=(1,) * 3) for side in (32, 224))
    assert precision_for("auto", CPU, small) == "fp32"
    assert precision_for("auto", CPU, large) == precision_for("auto", CPU)
    assert precision_for("auto", torch.device("cuda"), small) == "fp16"
    assert precision_for("auto", torch.device("mps")) == "fp32"
    with pytest.raises(SettingsError, match="fp16 needs a CUDA device, got cpu"):
        precision_for("fp16", CPU)


def test_each_precision_computes_in_its_own_type() -> None:
    layer, inputs = nn.Linear(4, 4), torch.ones(1, 4)
    with autocast("bf16", CPU):
        assert layer(inputs).dtype == torch.bfloat16
    with autocast("fp32", CPU):
        assert layer(inputs).dtype == torch.float32


@pytest.mark.gpu
def test_fp16_trains_on_cuda(examples: Examples) -> None:
    result = fitted(examples, epochs=5, precision="auto")
    assert result.precision == "fp16"
    assert result.best.validation.accuracy > 0.6


class Linear(nn.Module):
    """Without batch normalisation and dropout, passes are independent."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2), nn.GELU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 4)
        )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(inputs)
        return logits


def linear(examples: Examples, **changes: Any) -> TrainedModel:
    torch.manual_seed(0)
    return Trainer(changed(shift=0, **changes)).fit(Linear(), examples, 0)


@pytest.mark.parametrize("balance", ["none", "weights"])
def test_four_accumulated_passes_are_one_large_batch(examples: Examples, balance: str) -> None:
    large = linear(examples, batch_size=64, balance=balance)
    small = linear(examples, batch_size=16, accumulate=4, balance=balance)
    for name, tensor in large.best.weights.items():
        torch.testing.assert_close(small.best.weights[name], tensor, rtol=1e-3, atol=1e-5)
    different = linear(examples, batch_size=16, balance=balance)
    assert not torch.allclose(different.best.weights["layers.4.weight"], large.best.weights["layers.4.weight"], 1e-3)


def test_gradients_are_clipped_to_the_norm(examples: Examples) -> None:
    torch.manual_seed(0)
    learner = learner_of(Linear(), examples, clip_norm=1e-3)
    moments = learner.optimizer.state
    _, norm = learner.step(examples.train[:16])
    assert float(norm) > 1e-3
    # Adam's first moment is a tenth of the gradient after the first step.
    cut = torch.cat([10 * state["exp_avg"].flatten() for state in moments.values()]).norm()
    assert float(cut) == pytest.approx(1e-3, rel=1e-3)


def learner_of(model: nn.Module, examples: Examples, **changes: Any) -> Learner:
    return Learner(model, changed(**changes), examples, 0, "fp32", CPU, ALONE)


def bias(model: nn.Module) -> torch.Tensor:
    return dict(model.named_parameters())["layers.4.bias"].detach().clone()


def test_steps_without_a_finite_norm_leave_the_history_finite(
    examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulate the first steps in fp16, whose gradients overflow until the loss scale fits."""
    taken: list[float] = []
    step = Learner.step

    def overflowing(self: Learner, rows: npt.NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        loss, norm = step(self, rows)
        taken.append(float(norm))
        return loss, norm * {1: float("inf"), 2: float("nan")}.get(len(taken), 1.0)

    monkeypatch.setattr(Learner, "step", overflowing)
    (epoch,) = fitted(examples, epochs=1, precision="fp32").history
    assert epoch.gradient_norm == pytest.approx(np.mean(taken[2:]), rel=1e-5)


def test_with_ema_the_averaged_weights_are_scored_and_kept(examples: Examples) -> None:
    plain, averaged = linear(examples, epochs=1), linear(examples, epochs=1, ema=0.9)
    assert not same(plain, averaged)
    learner = learner_of(Linear(), examples, ema=0.5)
    assert learner.average is not None
    first = bias(learner.model)
    # timm's warm-up: the average starts as the first step; the second has a decay of 1 - 2 ** (-2 / 3), below 0.5.
    values = []
    for step in range(2):
        learner.step(examples.train[16 * step : 16 * step + 16])
        values.append(bias(learner.model))
    decay = 1 - 2 ** (-2 / 3)
    expected = decay * values[0] + (1 - decay) * values[1]
    torch.testing.assert_close(bias(learner.validated_model), expected)
    assert not torch.equal(first, expected)


def test_each_cycle_gives_its_best_epoch(examples: Examples) -> None:
    result = fitted(examples, epochs=5, snapshots=2, ema=0.5)
    assert len(result.snapshots) == 2
    early, late = result.snapshots
    assert early.epoch is min(result.history[:2], key=lambda epoch: epoch.validation_nll)
    assert late.epoch is min(result.history[2:], key=lambda epoch: epoch.validation_nll)
    assert any(not torch.equal(early.weights[name], late.weights[name]) for name in early.weights)
    assert result.best is min(early, late, key=lambda snapshot: snapshot.validation.nll)


def test_patience_stops_a_training_that_no_longer_improves(examples: Examples) -> None:
    settings = changed(epochs=30, patience=2, warmup_share=0.0)
    result = Trainer(settings).fit(Wandering(good_for=20), examples, 0)
    assert [epoch.epoch for epoch in result.history] == [1, 2, 3, 4]
    assert result.best.epoch.epoch == 2


@pytest.mark.parametrize(
    "killed_at", [7, *(pytest.param(step, marks=pytest.mark.slow) for step in (1, 10, 16, 19, 29))]
)
def test_a_resumed_training_gives_the_same_weights(examples: Examples, tmp_path: Path, killed_at: int) -> None:
    """With all state: averages, cycles, a scaler, dropout and random numbers."""
    every = {"ema": 0.8, "snapshots": 2, "epochs": 3, "mixup": 0.2, "cutmix": 1.0, "rotate": 10, "jitter": 0.1}
    every |= {"elastic": 0.05, "noise": 0.02, "gamma": 0.2, "blur": 0.5, "erase": 0.3, "trivial_augment": True}
    settings = changed(**every, flip=True, balance="sampling", label_smoothing=0.1)
    whole = Trainer(settings).fit(model_from_arch("test_byobnet", examples.classes, 5), examples, 5)
    taken = 0

    def kill(count: int, _note: str) -> None:
        nonlocal taken
        taken += count
        if taken == killed_at:
            raise KeyboardInterrupt

    state = StateFile(tmp_path / "state.pt", every_s=0)
    with pytest.raises(KeyboardInterrupt):
        Trainer(settings).fit(
            model_from_arch("test_byobnet", examples.classes, 5), examples, 5, state=state, progress=kill
        )
    told: list[int] = []
    resumed = Trainer(settings).fit(
        model_from_arch("test_byobnet", examples.classes, 5),
        examples,
        5,
        state=state,
        progress=lambda count, _note: told.append(count),
    )
    assert told[0] == max(1, killed_at - 1)
    assert sum(told) == 30
    for one, other in zip(whole.snapshots, resumed.snapshots, strict=True):
        assert one.validation == other.validation
        assert all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)


def test_a_full_disk_keeps_the_last_state(tmp_path: Path) -> None:
    """A limit of the file size stands in for a full disk."""
    script = """
import resource, sys
from pathlib import Path
import torch
from plurum.errors import OutputError
from plurum.training.learning.resume import StateFile

state = StateFile(Path(sys.argv[1]) / "unfinished" / "a.pt")
state.write({"taken": 1, "model": {"weight": torch.ones(10)}})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    state.write({"taken": 2, "model": {"weight": torch.ones(1_000_000)}})
except OutputError as error:
    print(error)
print(state.read()["taken"], [path.name for path in state.path.parent.iterdir()])
"""
    words = [sys.executable, "-c", script, str(tmp_path)]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(said) == 2
    assert "a.pt can't be written" in said[0]
    assert said[1] == "1 ['a.pt']"


def test_an_unreadable_state_starts_the_training_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = StateFile(tmp_path / "a.pt")
    assert state.read() is None
    state.write({"taken": 1})
    state.path.write_bytes(state.path.read_bytes()[:200])
    assert state.read() is None
    assert "this training starts over" in caplog.text
    for garbage in (b"hello", b"0.1 0.2\n", b"", b"some notes\n"):
        state.path.write_bytes(garbage)
        assert state.read() is None
    torch.save({"taken": Linear()}, state.path)
    assert state.read() is None, "something else than tensors and plain values was unpickled"


def test_tensorboard_gets_the_history(examples: Examples, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = changed(epochs=2)
    state, model = StateFile(tmp_path / "state.pt", every_s=0), model_from_arch("test_byobnet", examples.classes, 5)

    def interrupt(_count: int, note: str) -> None:
        if note:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Trainer(settings).fit(model, examples, 5, state=state, events=tmp_path / "events", progress=interrupt)
    result = Trainer(settings).fit(model, examples, 5, state=state, events=tmp_path / "events")
    shown = EventAccumulator(str(tmp_path / "events")).Reload()
    losses = shown.Scalars("train/loss")
    assert [event.step for event in losses] == list(range(1, 21))
    assert np.mean([event.value for event in losses[10:]]) == pytest.approx(result.history[1].train_loss, rel=1e-5)
    for tag, values in {
        "validation/accuracy": [epoch.validation_accuracy for epoch in result.history],
        "validation/nll": [epoch.validation_nll for epoch in result.history],
        "train/learning_rate": [epoch.learning_rate for epoch in result.history],
        "train/images_per_s": [epoch.images_per_s for epoch in result.history],
    }.items():
        assert [event.value for event in shown.Scalars(tag)] == pytest.approx(values, rel=1e-5)
    assert len(shown.Scalars("train/gradient_norm")) == 20
    assert [(image.width > 64, image.step) for image in shown.Images("train/images")] == [(True, 0)]


@pytest.mark.slow
def test_a_compiled_model_learns_the_same(examples: Examples) -> None:
    plain, compiled = linear(examples, epochs=1), linear(examples, epochs=1, compile=True)
    assert list(plain.best.weights) == list(compiled.best.weights)
    for name, tensor in plain.best.weights.items():
        torch.testing.assert_close(compiled.best.weights[name], tensor, rtol=1e-2, atol=1e-4)
