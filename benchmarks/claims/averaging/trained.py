"""Members whose weights are averaged in several ways, and their predictions.

Legend: probabilities are float64 `[images, classes]`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn

from plurum.benchmarks.claims.folds.trained import draw_images
from plurum.files import atomic_file
from plurum.predictions.arrays import Floats, Ints
from plurum.settings.training import TrainSettings
from plurum.spec import ImageSpec
from plurum.training.data.examples import Examples
from plurum.training.data.labelled_images import LabelledImages
from plurum.training.learning.architectures import model_from_arch
from plurum.training.learning.distributed import ALONE
from plurum.training.learning.optimizer_step import Learner, copy_state
from plurum.training.learning.resume import StateFile
from plurum.training.learning.schedule import learning_rate_at
from plurum.training.learning.trainer import threads_for
from plurum.training.statistics.scoring import compute_scores, predict_logits
from plurum.voting import softmax

__all__ = ["SHARES", "WAYS", "AveragingStudy", "MemberOutputs"]

# Ways of averaging by what they do. SWA averages the last part of a training.
SHARES = {"swa-quarter": 0.25, "swa-half": 0.5}
WAYS = ("none", "ema", *SHARES)
_EMA = 0.999
_SEEDS_PER_DRAW = 100
_IMAGE = ImageSpec(height=32, width=32, mean=(0.3, 0.3, 0.3), std=(0.35, 0.35, 0.35))


@dataclass(frozen=True)
class MemberOutputs:
    """Probabilities of a member, and the true classes.

    Attributes:
        validation: Probabilities of validation images.
        test: Probabilities of test images.
        mirrored_validation: Probabilities of mirrored validation images.
        mirrored_test: Probabilities of mirrored test images.
        validation_labels: Classes, int64 `[images]`.
        test_labels: Classes, int64 `[images]`.
    """

    validation: Floats
    test: Floats
    mirrored_validation: Floats
    mirrored_test: Floats
    validation_labels: Ints
    test_labels: Ints


@dataclass(frozen=True)
class AveragingStudy:
    """Trainings of one architecture on draws of images.

    Attributes:
        folder: Folder that keeps the predictions of finished members.
        data: Images to draw from.
        images: Images for training and validation; all, if there are fewer.
        arch: Architecture.
        epochs: Epochs of each training.
        flip: If True, training mirrors half of the images.
    """

    folder: Path
    data: LabelledImages
    images: int
    arch: str
    epochs: int
    flip: bool

    def outputs(self, way: str, draw: int, member: int = 0) -> MemberOutputs:
        """Return the predictions of a member, which is trained first unless it was before.

        Args:
            way: Way of averaging its weights.
            draw: Number of the draw of images.
            member: Number of the training on these images.
        """
        file = self._file(way, draw, member)
        if not file.is_file():
            self._train(way, draw, member)
        with np.load(file) as arrays:
            return MemberOutputs(**arrays)

    def _file(self, way: str, draw: int, member: int) -> Path:
        return self.folder / f"{self.arch}-{way}-{draw}-{member}.npz"

    def _train(self, way: str, draw: int, member: int) -> None:
        """Train and keep the member of a way, and that of the other way that the same training gives."""
        (self.folder / "unfinished").mkdir(parents=True, exist_ok=True)
        examples, test = self._draw(draw)
        seed = _SEEDS_PER_DRAW * draw + member
        settings = TrainSettings(
            archs=(self.arch,),
            epochs=self.epochs,
            batch_size=64,
            learning_rate=5e-3,
            flip=self.flip,
            precision="fp32",
            ema=0.0 if way in SHARES else _EMA,
        )
        model = model_from_arch(self.arch, examples.classes, seed)
        with threads_for(settings.batch_size, examples.image), torch.random.fork_rng():
            unfinished = StateFile(self.folder / "unfinished" / self._file(way, draw, member).with_suffix(".pt").name)
            for found, weights in _Training(model, examples, settings, seed, way).run(unfinished).items():
                model.load_state_dict(weights)
                self._keep(self._file(found, draw, member), model, examples, test)

    def _draw(self, draw: int) -> tuple[Examples, Ints]:
        """Return the images for training and validation, and the indices of test images."""
        parts = draw_images(self.data, self.images, draw)
        rows = [parts[part] for part in ("train", "val", "test")]
        drawn = self.data.select(np.concatenate(rows))
        train, validation, test = np.split(np.arange(len(drawn)), np.cumsum([len(part) for part in rows[:-1]]))
        file = self.folder / f"draw-{draw}.npy"
        if not file.is_file():
            with atomic_file(file) as hidden, hidden.open("wb") as stream:
                np.save(stream, drawn.pixels(_IMAGE))
        classes = len(drawn.classes)
        return Examples(np.load(file), drawn.table.labels, train, validation, classes, _IMAGE), test

    @staticmethod
    def _keep(file: Path, model: nn.Module, examples: Examples, test: Ints) -> None:
        arrays: dict[str, Any] = {}
        mirrored = np.ascontiguousarray(examples.pixels[:, :, ::-1])
        for name, rows in (("validation", examples.validation), ("test", test)):
            arrays[name] = softmax(predict_logits(model, examples.pixels, rows, examples.image))
            arrays[f"mirrored_{name}"] = softmax(predict_logits(model, mirrored, rows, examples.image))
            arrays[f"{name}_labels"] = examples.labels[rows]
        with atomic_file(file) as hidden, hidden.open("wb") as stream:
            np.savez(stream, **arrays)


class _Training:
    """Training of one model: plainly, with a moving average beside it, or for SWA.

    Args:
        model: Model to train.
        examples: Images for training and validation.
        settings: Settings of the training.
        seed: Random seed.
        way: Way of averaging.
    """

    def __init__(self, model: nn.Module, examples: Examples, settings: TrainSettings, seed: int, way: str) -> None:
        self.settings, self.examples, self.way = settings, examples, way
        self.learner = Learner(model, settings, examples, seed, "fp32", torch.device("cpu"), ALONE)
        self.epoch = 0
        self.best: dict[str, tuple[float, dict[str, torch.Tensor]]] = {}
        self.swa: AveragedModel | None = None
        self.plain_epochs = settings.epochs
        if way in SHARES:
            self.swa = AveragedModel(self.learner.model)
            self.plain_epochs = round(settings.epochs * (1 - SHARES[way]))
            # The rate stays what it is when averaging begins (Izmailov et al., arXiv 1803.05407).
            steps = len(self.learner.batches)
            rate = learning_rate_at(self.plain_epochs * steps, steps, settings)
            self.learner.optimizer.register_step_pre_hook(_hold_rate(rate))

    def run(self, file: StateFile) -> dict[str, dict[str, torch.Tensor]]:
        """Train, from the saved state if there is one; return the weights of the best epoch by way."""
        if saved := file.read():
            self.epoch, self.best = saved["epoch"], saved["best"]
            self.learner.restore(saved["learner"])
            if self.swa is not None:
                self.swa.load_state_dict(saved["swa"])
        while self.epoch < self.settings.epochs:
            self.epoch += 1
            self.learner.set_training_mode()
            for rows in self.learner.batches.epoch(self.epoch):
                self.learner.step(rows)
            for name, model in self._averages().items():
                self._keep_best(name, model)
            swa = None if self.swa is None else self.swa.state_dict()
            file.write({"epoch": self.epoch, "best": self.best, "learner": self.learner.state(), "swa": swa})
        file.remove()
        return {name: weights for name, (_, weights) in self.best.items()}

    def _averages(self) -> dict[str, nn.Module]:
        """Return the models to validate after an epoch, by way; none before SWA begins."""
        learner = self.learner
        if self.swa is None:
            return {"none": learner.model, "ema": learner.validated_model}
        if self.epoch <= self.plain_epochs:
            return {}
        self.swa.update_parameters(learner.model)
        update_bn((learner.inputs(rows) for rows in learner.batches.epoch(self.epoch)), self.swa)
        return {self.way: self.swa.module}

    def _keep_best(self, name: str, model: nn.Module) -> None:
        examples = self.examples
        logits = predict_logits(model, examples.pixels, examples.validation, examples.image)
        nll = compute_scores(softmax(logits), examples.labels[examples.validation]).nll
        if name not in self.best or nll < self.best[name][0]:
            self.best[name] = nll, copy_state(model)


def _hold_rate(least: float) -> Callable[[torch.optim.Optimizer, Any, Any], None]:
    def hold(optimizer: torch.optim.Optimizer, _arguments: object, _options: object) -> None:
        for group in optimizer.param_groups:
            group["lr"] = max(group["lr"], least)

    return hold
