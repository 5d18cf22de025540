"""Training one model."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from plurum.errors import SettingsError
from plurum.models import normalised
from plurum.spec import ImageSpec, Scores
from plurum.training.precision import Precision, autocast, precision_for, training_device
from plurum.training.scoring import logits_of, scores_of
from plurum.training.settings import TrainSettings
from plurum.voting import softmax

if TYPE_CHECKING:
    from plurum.run import Run

__all__ = ["Epoch", "Examples", "Trained", "Trainer", "augmented", "learning_rate_at"]

_LOG = logging.getLogger(__name__)

# Gradients are cut to this norm: early steps at a full learning rate throw some architectures off otherwise.
_MAX_NORM = 1.0
# Steps of fewer pixels are over before a second thread has paid for itself; and threads wait for each other by
# spinning, so that where other programs share the cores such steps take ten times as long with two as with one.
_PIXELS_PER_THREAD = 50_000


@dataclass(frozen=True)
class Examples:
    """What a model learns from and is judged by.

    Attributes:
        pixels: `[images, height, width, 3]`, uint8; may be mapped from a file.
        labels: `[images]`, int64.
        train: Indices of the images to learn from.
        validation: Indices of the images that choose the best epoch.
        classes: How many there are.
    """

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    train: npt.NDArray[np.int64]
    validation: npt.NDArray[np.int64]
    classes: int

    @classmethod
    def of(cls, run: Run) -> Examples:
        """Return what lies in the run's data folder."""
        table = run.table()
        return cls(run.pixels(), table.labels, table.rows("train"), table.rows("validation"), len(run.data().classes))


@dataclass(frozen=True)
class Epoch:
    """One row of a member's history.

    Attributes:
        epoch: From 1.
        train_loss: Mean cross-entropy over the epoch's augmented batches, nats.
        validation_accuracy: 0 to 1.
        validation_nll: Nats.
        learning_rate: At the epoch's last step.
        images_per_s: Trained on, validation not counted.
        seconds: Of the whole epoch.
    """

    epoch: int
    train_loss: float
    validation_accuracy: float
    validation_nll: float
    learning_rate: float
    images_per_s: float
    seconds: float


@dataclass(frozen=True)
class Trained:
    """What came out of a training.

    Attributes:
        weights: The state of the best epoch, on the CPU, contiguous.
        best: The epoch with the lowest validation NLL; the first of equals.
        validation: Its scores.
        history: All epochs.
        parameters: How many weights the model has.
        seed: What the training drew from.
        precision: What it computed in.
    """

    weights: dict[str, torch.Tensor]
    best: Epoch
    validation: Scores
    history: tuple[Epoch, ...]
    parameters: int
    seed: int
    precision: Precision


class Trainer:
    """Trains models by the same settings, on a CUDA device if there is one.

    AdamW with a linear warm-up and a cosine after it; small shifts, and mirroring if asked for; channels last;
    mixed precision as `precision_for` says.
    """

    def __init__(self, settings: TrainSettings, image: ImageSpec) -> None:
        self.settings = settings
        self.image = image
        self.device = training_device()
        self.precision = precision_for(settings.precision, self.device)

    def steps(self, examples: Examples) -> int:
        """Return how many batches `fit` will learn from, over all epochs."""
        return self.settings.epochs * len(_batches(examples.train, self.settings.batch_size))

    def fit(
        self, model: nn.Module, examples: Examples, seed: int, progress: Callable[[int, str], None] | None = None
    ) -> Trained:
        """Train `model` in place and return its best epoch.

        The same model, examples, seed and number of threads give the same weights on the same machine. PyTorch's
        global generators are used, and left as they were.

        Args:
            model: Takes normalised pixels, answers logits.
            examples: To learn from and to be judged by.
            seed: What batches, augmentation and dropout are drawn from.
            progress: Told of every step: how many more are done, and a note.

        Raises:
            SettingsError: the loss is no longer finite.
        """
        devices = [self.device] if self.device.type == "cuda" else []
        with _threads_for(self.settings.batch_size, self.image), torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            learner = _Learner(model, self, self.steps(examples), np.random.default_rng(seed))
            history: list[Epoch] = []
            best: tuple[Epoch, Scores, dict[str, torch.Tensor]] | None = None
            for number in range(1, self.settings.epochs + 1):
                epoch, scores = self._epoch(learner, examples, number, progress or _nobody)
                history.append(epoch)
                _LOG.info("epoch %d: %s", number, _note(epoch))
                if best is None or scores.nll < best[1].nll:
                    best = epoch, scores, _copied(learner.model)
        assert best is not None  # noqa: S101 - there is at least one epoch
        return Trained(
            weights=best[2],
            best=best[0],
            validation=best[1],
            history=tuple(history),
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            seed=seed,
            precision=self.precision,
        )

    def _epoch(
        self, learner: _Learner, examples: Examples, number: int, progress: Callable[[int, str], None]
    ) -> tuple[Epoch, Scores]:
        began = time.perf_counter()
        learner.model.train()
        loss_sum, images = torch.zeros((), device=self.device), 0
        for rows in _batches(learner.rng.permutation(examples.train), self.settings.batch_size):
            loss_sum += learner.step(examples.pixels[rows], examples.labels[rows]) * len(rows)
            images += len(rows)
            progress(1, "")
        # Reading the sum waits for the device, so that the time is that of the work.
        loss = float(loss_sum) / images
        learning_s = time.perf_counter() - began
        logits = logits_of(learner.model, examples.pixels, examples.validation, self.image)
        if not (math.isfinite(loss) and np.isfinite(logits).all()):
            raise SettingsError(
                f"the training diverged in epoch {number}: its loss is {loss}; try a smaller --learning-rate than "
                f"{self.settings.learning_rate:g}, or --precision fp32 if it is not (it is {self.precision})"
            )
        scores = scores_of(softmax(logits), examples.labels[examples.validation])
        epoch = Epoch(
            epoch=number,
            train_loss=loss,
            validation_accuracy=scores.accuracy,
            validation_nll=scores.nll,
            learning_rate=learner.rate,
            images_per_s=images / learning_s,
            seconds=time.perf_counter() - began,
        )
        progress(0, _note(epoch))
        return epoch, scores


class _Learner:
    """A model and what moves it."""

    def __init__(self, model: nn.Module, trainer: Trainer, steps: int, rng: np.random.Generator) -> None:
        self.settings = trainer.settings
        self.image = trainer.image
        self.device = trainer.device
        self.precision: Precision = trainer.precision
        self.model = model.to(self.device).to(memory_format=torch.channels_last)
        parameters = list(self.model.parameters())
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in parameters if p.ndim > 1], "weight_decay": self.settings.weight_decay},
                {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
            ]
        )
        # Off, it passes losses and gradients through.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.rng = rng
        self.steps = steps
        self.taken = 0
        self.rate = 0.0

    def step(self, pixels: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64]) -> torch.Tensor:
        """Learn from one batch and return its mean loss, a scalar on the device."""
        self.rate = learning_rate_at(self.taken, self.steps, self.settings)
        self.taken += 1
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        batch = augmented(torch.from_numpy(pixels).to(self.device), self.rng, self.settings)
        inputs = normalised(batch, self.image).contiguous(memory_format=torch.channels_last)
        with autocast(self.precision, self.device):
            logits = self.model(inputs)
        loss = functional.cross_entropy(
            logits.float(), torch.from_numpy(labels).to(self.device), label_smoothing=self.settings.label_smoothing
        )
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), _MAX_NORM)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()


def learning_rate_at(step: int, steps: int, settings: TrainSettings) -> float:
    """Return the learning rate of `step`, from 0 to below `steps`: a line up to its full value, then half a cosine."""
    warmup = round(settings.warmup_share * steps)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    return settings.learning_rate * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


def augmented(pixels: torch.Tensor, rng: np.random.Generator, settings: TrainSettings) -> torch.Tensor:
    """Return `[batch, height, width, 3]` pixels, each image moved and, if asked for, every other one mirrored.

    What a move uncovers is filled with the edge.
    """
    count, height, width, _ = pixels.shape
    down, right = (rng.integers(-reach, reach + 1, count) for reach in _reaches(height, width, settings.shift))
    rows = np.clip(np.arange(height) + down[:, None], 0, height - 1)
    columns = np.clip(np.arange(width) + right[:, None], 0, width - 1)
    if settings.flip:
        columns = np.where(rng.random((count, 1)) < 0.5, width - 1 - columns, columns)
    images = torch.arange(count, device=pixels.device)
    down_to, right_to = (torch.from_numpy(index).to(pixels.device) for index in (rows, columns))
    return pixels[images[:, None, None], down_to[:, :, None], right_to[:, None, :]]


@contextlib.contextmanager
def _threads_for(batch_size: int, image: ImageSpec) -> Iterator[None]:
    """Let PyTorch use as many of its threads inside a block as steps of this size keep busy."""
    threads = torch.get_num_threads()
    worthwhile = batch_size * image.height * image.width // _PIXELS_PER_THREAD
    torch.set_num_threads(max(1, min(threads, worthwhile)))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _reaches(height: int, width: int, shift: float) -> tuple[int, int]:
    return round(shift * height), round(shift * width)


def _batches(rows: npt.NDArray[np.int64], size: int) -> list[npt.NDArray[np.int64]]:
    batches = [rows[start : start + size] for start in range(0, len(rows), size)]
    # Batch normalisation has nothing to normalise by in a batch of one; another epoch leaves out another image.
    return batches[:-1] if len(batches) > 1 and len(batches[-1]) == 1 else batches


def _copied(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the model's state on the CPU; tensors that share memory are parted, as safetensors asks for."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in model.state_dict().items()}


def _note(epoch: Epoch) -> str:
    return f"accuracy {epoch.validation_accuracy:.3f}, NLL {epoch.validation_nll:.3f}, {epoch.images_per_s:,.0f} img/s"


def _nobody(_count: int, _note: str) -> None:
    """Told of progress, and does nothing."""
