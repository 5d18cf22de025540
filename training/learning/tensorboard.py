"""Write the events of a training for TensorBoard."""

from __future__ import annotations

from pathlib import Path

import torch

from plurum.errors import needs_extra
from plurum.spec import ImageSpec
from plurum.training.learning.history import Epoch

__all__ = ["EventWriter"]


class EventWriter:
    """Writer of one training's event files."""

    def __init__(self, folder: Path, step: int = 0) -> None:
        """Write to `folder`; events that an interrupted training wrote after `step` are discarded.

        Raises:
            MissingExtraError: TensorBoard is not installed.
        """
        with needs_extra("training", "tensorboard"):
            from torch.utils.tensorboard import SummaryWriter
        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def close(self) -> None:
        """Write pending events and close the files."""
        self._writer.close()

    def images(self, inputs: torch.Tensor, image: ImageSpec) -> None:
        """Write normalised images `[images, 3, height, width]`, the model's input in its first step."""
        from torchvision.utils import make_grid

        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (image.mean, image.std))
        shown = (inputs.float().cpu() * std + mean).clamp(0, 1)
        self._writer.add_image("train/images", make_grid(shown, nrow=4), 0)

    def epoch(self, epoch: Epoch, losses: list[float], norms: list[float], step: int) -> None:
        """Write an epoch and its steps; `step` is the number of steps over all epochs so far."""
        first = step - len(losses) + 1
        for number, (loss, norm) in enumerate(zip(losses, norms, strict=True), first):
            self._writer.add_scalar("train/loss", loss, number)
            self._writer.add_scalar("train/gradient_norm", norm, number)
        self._writer.add_scalar("train/learning_rate", epoch.learning_rate, step)
        self._writer.add_scalar("train/images_per_s", epoch.images_per_s, step)
        self._writer.add_scalar("validation/accuracy", epoch.validation_accuracy, step)
        self._writer.add_scalar("validation/nll", epoch.validation_nll, step)
        self._writer.flush()
