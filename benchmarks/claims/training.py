"""Compare training in bf16 with training in FP32: speed and accuracy.

    python -m plurum.benchmarks.claims.training

Measured, on one machine in one run: images per second of whole training steps (augmentation, both passes, the
optimiser) of one model in FP32 and in bf16, at several image sizes, with as many threads as the trainer uses for them;
then validation accuracy on scikit-learn's digits, enlarged, after equal epochs from the same weights in the same order,
long enough that little is left to learn. Each precision gets a warm-up that does not count, then they take turns;
figures are medians over turns.

Not measured: reading images, several processes, a busy machine (the report states the load average), large data.
"""

from __future__ import annotations

import statistics
import time
from typing import Annotated

import numpy as np
import torch
import typer
from rich.table import Table

from plurum.benchmarks.tools import command
from plurum.benchmarks.tools.machine import machine
from plurum.benchmarks.tools.requests import random_pixels
from plurum.spec import ImageSpec
from plurum.training import TrainSettings, load_data
from plurum.training.data.examples import Examples
from plurum.training.learning.architectures import model_from_arch
from plurum.training.learning.distributed import ALONE
from plurum.training.learning.optimizer_step import Learner
from plurum.training.learning.precision import Precision
from plurum.training.learning.trainer import Trainer, threads_for
from plurum.training.progress import show_progress

__all__ = ["accuracy", "speeds", "training"]

_PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
_SIZES = [32, 64, 128, 224]


def training(
    arch: Annotated[str, typer.Option(help="Architecture that timm knows.")] = "resnet18",
    size: Annotated[
        list[int], typer.Option(min=32, help="Height and width of the images, pixels; repeat for more.")
    ] = _SIZES,
    batch_size: Annotated[int, typer.Option(min=2, help="Images per step.")] = 32,
    rounds: command.Rounds = 5,
    steps: Annotated[int, typer.Option(min=1, help="Steps of a turn.")] = 2,
    epochs: Annotated[int, typer.Option(min=0, help="Epochs of the comparison of accuracy; 0 skips it.")] = 12,
    accuracy_size: Annotated[
        int, typer.Option(min=32, help="Height and width of the images in the comparison of accuracy, pixels.")
    ] = 64,
) -> None:
    """Compare training in bf16 with FP32: a table on standard error, one line of JSON on standard output."""
    state = machine()
    figures = {side: speeds(arch, side, batch_size, rounds, steps) for side in size}
    learnt = accuracy(arch, accuracy_size, batch_size, epochs) if epochs else {}
    ratios = {side: by_precision["bf16"] / by_precision["fp32"] for side, by_precision in figures.items()}
    table = Table("", *_PRECISIONS, "bf16 / fp32", title=f"{arch}, {batch_size} images per step")
    for side, found in figures.items():
        table.add_row(f"images/s at {side}", *(f"{found[name]:,.1f}" for name in _PRECISIONS), f"{ratios[side]:.2f}")
    if learnt:
        figure = f"validation accuracy at {accuracy_size} after {epochs} epochs"
        table.add_row(figure, *(f"{learnt[name]:.4f}" for name in _PRECISIONS))
    result = {"arch": arch, "batch_size": batch_size, "images_per_s": figures, "ratio": ratios, "accuracy": learnt}
    command.print_report({**result, "epochs": epochs, "accuracy_size": accuracy_size}, state, table)


def speeds(arch: str, size: int, batch_size: int, rounds: int, steps: int) -> dict[Precision, float]:
    """Return images per second by precision: the median over `rounds` turns of `steps` steps each."""
    examples = _examples(size, batch_size)
    settings = TrainSettings(archs=(arch,), batch_size=batch_size, epochs=1)
    device = Trainer(settings).device
    learners = {
        name: Learner(model_from_arch(arch, 10, 0), settings, examples, 0, name, device, ALONE) for name in _PRECISIONS
    }
    found: dict[Precision, list[float]] = {name: [] for name in _PRECISIONS}
    with threads_for(batch_size, examples.image), show_progress(f"{arch} at {size}", rounds) as progress:
        for turn in range(rounds + 1):
            # The first turn warms up.
            for name in _PRECISIONS if turn % 2 else _PRECISIONS[::-1]:
                start = time.perf_counter()
                for _ in range(steps):
                    loss, _ = learners[name].step(examples.train)
                # Wait for the device.
                float(loss)
                if turn:
                    found[name].append(steps * batch_size / (time.perf_counter() - start))
            progress(int(turn > 0), "")
    return {name: statistics.median(values) for name, values in found.items()}


def accuracy(arch: str, size: int, batch_size: int, epochs: int) -> dict[Precision, float]:
    """Return the validation accuracy on digits, 0 to 1, after `epochs` by precision."""
    examples, found = _examples(size), dict[Precision, float]()
    for name in _PRECISIONS:
        trainer = Trainer(TrainSettings(archs=(arch,), batch_size=batch_size, epochs=epochs, precision=name))
        with show_progress(f"{arch} in {name}", trainer.steps(examples)) as progress:
            trained = trainer.fit(model_from_arch(arch, 10, 0), examples, 0, progress=progress)
        found[name] = trained.history[-1].validation_accuracy
    return found


def _examples(size: int, images: int | None = None) -> Examples:
    """Return digits as `plurum train` uses them, or `images` images of noise."""
    data = load_data("digits")
    image = ImageSpec(height=size, width=size, mean=(0.3, 0.3, 0.3), std=(0.38, 0.38, 0.38))
    labels, train, validation = data.table.labels, data.table.rows("train"), data.table.rows("validation")
    if images is None:
        return Examples(data.pixels(image), labels, train, validation, 10, image)
    rows = np.arange(images)
    return Examples(random_pixels(size, size, images), labels[:images], rows, rows, 10, image)


if __name__ == "__main__":
    torch.manual_seed(0)
    command.run_as_program(training)
