"""Train a model step by step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from timm.utils.model_ema import ModelEmaV3
from torch import nn
from torch.nn import functional

from plurum.errors import SettingsError
from plurum.models import normalise
from plurum.settings.training import TrainSettings
from plurum.training.data.examples import Batches, Examples
from plurum.training.learning.augmentation import augment, erase, mix_pairs
from plurum.training.learning.distributed import ProcessGroup
from plurum.training.learning.precision import Precision, autocast
from plurum.training.learning.schedule import learning_rate_at
from plurum.training.statistics.scoring import predict_logits

__all__ = ["BatchLoss", "Learner", "copy_state"]

# Loss of normalised images `[batch, 3, height, width]`, their logits and their targets, both `[batch, classes]`, summed
# over the batch. Targets are class fractions; they sum to 0 for an image without a label, and to 1 for others.
BatchLoss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class Learner:
    """AdamW with schedule, augmentation, mixed precision, gradient accumulation, clipping and weight averaging.

    The random numbers of a step depend only on the seed and the step's number, so that a learner resumed from a saved
    `state` gives the same result as an uninterrupted one.

    Attributes:
        loss: Loss that replaces the cross-entropy with labels; None keeps that.
    """

    loss: BatchLoss | None = None

    def __init__(
        self,
        model: nn.Module,
        settings: TrainSettings,
        examples: Examples,
        seed: int,
        precision: Precision,
        device: torch.device,
        world: ProcessGroup,
    ) -> None:
        self.settings = settings
        self.examples = examples
        self.seed = seed
        self.precision: Precision = precision
        self.device = device
        self.world = world
        self.batches = Batches(examples, settings, seed, world.size)
        self.class_weights = torch.from_numpy(self.batches.weights).to(device)
        self.taken = 0
        self.cycle_began = 0
        self.rate = 0.0
        model = model.to(device).to(memory_format=torch.channels_last)
        if world.size > 1 and device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        self.model = model
        self.optimizer = _optimizer(model, settings)
        # A disabled scaler passes losses and gradients through.
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.average: ModelEmaV3 | None = None
        self.begin_cycle()
        # Both share their weights with the model, whose parameter names are saved.
        self.parallel = world.parallel(model, device)
        self.forward: Any = torch.compile(self.parallel) if settings.compile else self.parallel

    @property
    def validated_model(self) -> nn.Module:
        """Model to validate and save: the average, if there is one."""
        averaged: nn.Module = self.model if self.average is None else self.average.module
        return averaged

    @property
    def has_images(self) -> bool:
        """True if `inputs` are images."""
        return True

    def set_training_mode(self) -> None:
        """Set the model to training, except for frozen parts, whose statistics stay as they are."""
        self.model.train()
        for module in self.model.modules():
            parameters = list(module.parameters())
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                module.eval()

    def begin_cycle(self) -> None:
        """Restart the average, if there is one, so that cycles stay independent."""
        self.cycle_began = self.taken
        if self.settings.ema:
            # The decay rises from 0, so that the first steps lose their weight quickly.
            self.average = ModelEmaV3(self.model, decay=self.settings.ema, use_warmup=True, foreach=True)

    def step(self, rows: npt.NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """Take a step on the images `rows` and return their mean loss and the gradient norm, scalars on the device.

        The loss is this process's part; the sum over all processes is the loss of the step.

        Raises:
            SettingsError: the model can't be compiled.
        """
        torch.manual_seed(int(np.random.SeedSequence([self.seed, self.taken, self.world.rank]).generate_state(1)[0]))
        self.rate = learning_rate_at(self.taken, len(self.batches), self.settings)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        passes = self.batches.passes(rows)
        # Divide each pass by the weight of the whole step, so that accumulation does not change the gradient.
        counted = float(self.batches.weights[self.examples.labels[rows]].sum())
        loss = torch.zeros((), device=self.device)
        for number, part in enumerate(passes, 1):
            with self._unsynchronised() if number < len(passes) else contextlib.nullcontext():
                sum_of_losses = self._losses(self.world.share(part))
                # Processes average gradients, so multiply by their number.
                self.scaler.scale(sum_of_losses * (self.world.size / counted)).backward()
            loss += sum_of_losses.detach() / counted
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm or float("inf"))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.taken += 1
        if self.average is not None:
            self.average.update(self.model, step=self.taken - self.cycle_began)
        return loss, norm

    def inputs(self, rows: npt.NDArray[np.int64]) -> torch.Tensor:
        """Return the images `rows`, augmented and normalised, `[images, 3, height, width]`."""
        pixels = torch.from_numpy(self.examples.pixels[rows]).to(self.device, non_blocking=True)
        images = normalise(augment(pixels, self.settings), self.examples.image)
        return erase(images, self.settings).contiguous(memory_format=torch.channels_last)

    def predict(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Return the logits of the images `rows`, `[rows, classes]`, of the model to save, computed in float32."""
        return predict_logits(self.validated_model, self.examples.pixels, rows, self.examples.image)

    def state(self) -> dict[str, Any]:
        """Return the state for `restore`, in tensors and plain values; tensors are not copied."""
        return {
            "taken": self.taken,
            "cycle_began": self.cycle_began,
            "rate": self.rate,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": None if self.average is None else self.average.module.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Resume from a state returned by `state`."""
        self.taken, self.cycle_began, self.rate = state["taken"], state["cycle_began"], state["rate"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.module.load_state_dict(state["average"])

    def _losses(self, rows: npt.NDArray[np.int64]) -> torch.Tensor:
        labels = torch.from_numpy(self.examples.labels[rows]).to(self.device, non_blocking=True)
        if self.loss is not None:
            labels = _fractions_from_labels(labels, self.examples.classes)
        images, targets = mix_pairs(self.inputs(rows), labels, self.examples.classes, self.settings)
        with autocast(self.precision, self.device):
            try:
                logits = self.forward(images)
            except torch._dynamo.exc.TorchDynamoException as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise SettingsError(
                    f"torch.compile can't compile this model here ({reason}); train without --compile"
                ) from error
        if self.loss is not None:
            return self.loss(images, logits.float(), targets)
        return functional.cross_entropy(
            logits.float(),
            targets,
            weight=self.class_weights,
            label_smoothing=self.settings.label_smoothing,
            reduction="sum",
        )

    def _unsynchronised(self) -> contextlib.AbstractContextManager[object]:
        return self.parallel.no_sync() if self.world.size > 1 else contextlib.nullcontext()  # type: ignore[operator]


def copy_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of the model's state on the CPU; no tensors share memory, as safetensors requires."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in model.state_dict().items()}


def _fractions_from_labels(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Return class fractions, float32 `[batch, classes]`: 1 for an image's class, or only 0 if it has no label."""
    known = labels >= 0
    return functional.one_hot(labels.where(known, 0), classes).float() * known[:, None]


def _optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
    )
