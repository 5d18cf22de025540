"""Train one model."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from plurum.errors import SettingsError
from plurum.settings.training import TrainSettings
from plurum.spec import ImageSpec, Scores
from plurum.training.data.examples import Batches, Examples
from plurum.training.learning.distributed import ALONE, ProcessGroup
from plurum.training.learning.head_step import FeatureExamples, HeadLearner
from plurum.training.learning.history import Epoch
from plurum.training.learning.optimizer_step import BatchLoss, Learner, copy_state
from plurum.training.learning.precision import Precision, precision_for, training_device
from plurum.training.learning.resume import StateFile
from plurum.training.learning.schedule import cycle_ends
from plurum.training.learning.tensorboard import EventWriter
from plurum.training.statistics.scoring import compute_scores
from plurum.voting import softmax

__all__ = ["TrainedModel", "Trainer", "TrainingSnapshot", "threads_for"]

_LOG = logging.getLogger(__name__)

# With fewer pixels per step, a second thread does not pay. Threads also wait for each other by spinning: where other
# programs share the cores, such steps take ten times as long with two threads as with one.
_PIXELS_PER_THREAD = 50_000


@dataclass(frozen=True)
class TrainingSnapshot:
    """Best epoch of one cycle; a training without snapshots is a single cycle.

    Attributes:
        weights: State of the model, or of its average, at the end of the epoch; on the CPU, contiguous.
        epoch: Epoch with the lowest validation NLL; the first of equals.
        validation: Scores on the validation images.
    """

    weights: dict[str, torch.Tensor]
    epoch: Epoch
    validation: Scores


@dataclass(frozen=True)
class TrainedModel:
    """Result of a training.

    Attributes:
        snapshots: Best epoch of each cycle.
        history: All epochs.
        parameters: Number of the model's parameters.
        seed: Random seed of the training.
        precision: Precision of the training.
    """

    snapshots: tuple[TrainingSnapshot, ...]
    history: tuple[Epoch, ...]
    parameters: int
    seed: int
    precision: Precision

    @property
    def best(self) -> TrainingSnapshot:
        """Snapshot with the lowest validation NLL."""
        return min(self.snapshots, key=lambda snapshot: snapshot.validation.nll)


@dataclass
class _TrainingProgress:
    """Progress of a training, saved beside the learner's state.

    Attributes:
        history: Finished epochs.
        snapshots: Best epochs of finished cycles.
        best: Best epoch of the current cycle.
        losses: Loss of each step of the current epoch.
        norms: Gradient norm of each step of the current epoch.
        learning_s: Duration of these steps in seconds.
    """

    history: list[Epoch] = field(default_factory=list)
    snapshots: list[TrainingSnapshot] = field(default_factory=list)
    best: TrainingSnapshot | None = None
    losses: list[torch.Tensor] = field(default_factory=list)
    norms: list[torch.Tensor] = field(default_factory=list)
    learning_s: float = 0.0

    def state(self) -> dict[str, Any]:
        return {
            "history": [asdict(epoch) for epoch in self.history],
            "snapshots": [_dict_from_snapshot(snapshot) for snapshot in self.snapshots],
            "best": None if self.best is None else _dict_from_snapshot(self.best),
            "losses": _floats(self.losses),
            "norms": _floats(self.norms),
            "learning_s": self.learning_s,
        }

    @classmethod
    def of(cls, state: dict[str, Any]) -> _TrainingProgress:
        return cls(
            history=[Epoch(**epoch) for epoch in state["history"]],
            snapshots=[_snapshot_from_dict(**snapshot) for snapshot in state["snapshots"]],
            best=None if state["best"] is None else _snapshot_from_dict(**state["best"]),
            losses=[torch.tensor(loss) for loss in state["losses"]],
            norms=[torch.tensor(norm) for norm in state["norms"]],
            learning_s=state["learning_s"],
        )


class Trainer:
    """Trainer of models with the same settings, on a CUDA device if there is one.

        trained = Trainer(TrainSettings(archs=("resnet18",), epochs=10)).fit(model, Examples.of(run))

    It uses AdamW with linear warm-up and cosine decay, the channels-last memory format, and all other options of
    `TrainSettings`.
    """

    def __init__(
        self,
        settings: TrainSettings,
        world: ProcessGroup = ALONE,
        watch: Callable[[Epoch], None] | None = None,
        loss: BatchLoss | None = None,
    ) -> None:
        """Configure the trainer.

        Args:
            settings: Settings of all trainings; `archs` and `seeds` are not used here.
            world: Processes that train together.
            watch: Called after each epoch; an exception ends the training.
            loss: Loss of a batch, by its images, logits and targets, which are on the training's device; by default,
                the cross-entropy with labels.

        Raises:
            SettingsError: the device does not support the precision.
        """
        self.settings = settings
        self.world = world
        self.watch = watch
        self.loss = loss
        self.device = training_device()
        precision_for(settings.precision, self.device)

    def precision(self, image: ImageSpec) -> Precision:
        """Return the precision that `fit` uses for images of this spec; features are learnt in FP32."""
        if self.settings.uses_features:
            return "fp32"
        return precision_for(self.settings.precision, self.device, image)

    def steps(self, examples: Examples) -> int:
        """Return the number of steps of `fit`, over all epochs."""
        return self.settings.epochs * len(Batches(examples, self.settings, 0, self.world.size))

    def fit(
        self,
        model: nn.Module,
        examples: Examples,
        seed: int | None = None,
        *,
        state: StateFile | None = None,
        events: Path | None = None,
        progress: Callable[[int, str], None] | None = None,
    ) -> TrainedModel:
        """Train `model` in place and return the best epoch of each cycle.

        The same model, examples, seed and number of threads give the same weights on the same CPU, also if the training
        was interrupted and resumed from its `state`. PyTorch's global generators are restored afterwards.

        Args:
            model: Model that takes normalised pixels, or the features of the examples, and returns logits.
            examples: Images for training and validation, or their features.
            seed: Random seed of batches, augmentation and dropout; that of the settings by default.
            state: File that the training is saved to at intervals, and resumed from if it exists.
            events: Folder for TensorBoard events.
            progress: Called with the number of new steps and a note.

        Raises:
            SettingsError: the loss is not finite, or the model can't be compiled.
            OutputError: the state can't be written, for example on a full disk; the previous one is kept.
        """
        seed = self.settings.seed if seed is None else seed
        devices = [self.device] if self.device.type == "cuda" else []
        # A layer of features is too small for more than one thread.
        size = 0 if isinstance(examples, FeatureExamples) else self.settings.batch_size
        with threads_for(size, examples.image), torch.random.fork_rng(devices=devices):
            training = _TrainingLoop(self, model, examples, seed, state, progress or _ignore_progress)
            history, snapshots = training.run(events)
        return TrainedModel(
            snapshots=snapshots,
            history=history,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            seed=seed,
            precision=self.precision(examples.image),
        )


class _TrainingLoop:
    """Training of one model, from its first step or from its saved state."""

    def __init__(
        self,
        trainer: Trainer,
        model: nn.Module,
        examples: Examples,
        seed: int,
        state: StateFile | None,
        progress: Callable[[int, str], None],
    ) -> None:
        self.settings, self.world, self.examples = trainer.settings, trainer.world, examples
        precision = trainer.precision(examples.image)
        kind = HeadLearner if isinstance(examples, FeatureExamples) else Learner
        self.learner = kind(model, self.settings, examples, seed, precision, trainer.device, self.world)
        self.learner.loss = trainer.loss
        self.state, self.progress, self.watch = state, progress, trainer.watch
        self.events: EventWriter | None = None
        self.done = _TrainingProgress()
        if state is not None and (saved := state.read()):
            self.learner.restore(saved["learner"])
            self.done = _TrainingProgress.of(saved["progress"])
            progress(self.learner.taken, "")

    def run(self, events: Path | None) -> tuple[tuple[Epoch, ...], tuple[TrainingSnapshot, ...]]:
        """Run the remaining epochs, and return all epochs and the best of each cycle."""
        if events is not None:
            self.events = EventWriter(events, self.learner.taken - len(self.done.losses))
        try:
            self._run()
        finally:
            if self.events is not None:
                self.events.close()
        return tuple(self.done.history), tuple(self.done.snapshots)

    def _run(self) -> None:
        ends = cycle_ends(self.settings)
        while len(self.done.history) < self.settings.epochs and not self._is_stuck():
            self._train_epoch()
            self._validate()
            if len(self.done.history) in ends:
                self._end_cycle()
            self._save_if_due()
        if self.done.best is not None:
            self._end_cycle()

    def _train_epoch(self) -> None:
        """Take the remaining steps of the current epoch."""
        number, taken = len(self.done.history) + 1, len(self.done.losses)
        self.learner.set_training_mode()
        began = time.perf_counter()
        for index, rows in enumerate(self.learner.batches.epoch(number)):
            if index < taken:
                continue
            if self.events is not None and self.learner.taken == 0 and self.learner.has_images:
                self.events.images(self.learner.inputs(rows[:16]), self.examples.image)
            loss, norm = self.learner.step(rows)
            self.done.losses.append(loss)
            self.done.norms.append(norm)
            self.progress(1, "")
            # Several processes each have a part of an epoch, so they save only between epochs.
            if self.world.size == 1 and self.state is not None and self.state.is_due:
                self.done.learning_s += time.perf_counter() - began
                self._save()
                began = time.perf_counter()
        # Reading the sum waits for the device, so that the measured time covers all its work.
        self.done.losses = list(self.world.sum_over_processes(torch.stack(self.done.losses)))
        float(self.done.losses[-1])
        self.done.learning_s += time.perf_counter() - began

    def _validate(self) -> None:
        """End the epoch: validate the model, record the epoch, and keep the best weights."""
        began, done, examples = time.perf_counter(), self.done, self.examples
        number, losses, norms = len(done.history) + 1, _floats(done.losses), _floats(done.norms)
        logits = self._validation_logits()
        loss = sum(losses) / len(losses)
        if not (math.isfinite(loss) and np.isfinite(logits).all()):
            raise SettingsError(
                f"the training diverged in epoch {number}: its loss is {loss}. Try a smaller --learning-rate than "
                f"{self.settings.learning_rate:g}, or --precision fp32 (now {self.learner.precision})"
            )
        scores = compute_scores(softmax(logits), examples.labels[examples.validation])
        epoch = Epoch(
            epoch=number,
            train_loss=loss,
            validation_accuracy=scores.accuracy,
            validation_nll=scores.nll,
            learning_rate=self.learner.rate,
            gradient_norm=_mean_of_finite(norms),
            images_per_s=len(examples.train) / done.learning_s,
            seconds=done.learning_s + time.perf_counter() - began,
        )
        if self.events is not None:
            self.events.epoch(epoch, losses, norms, self.learner.taken)
        done.history.append(epoch)
        done.losses, done.norms, done.learning_s = [], [], 0.0
        if done.best is None or scores.nll < done.best.validation.nll:
            done.best = TrainingSnapshot(copy_state(self.learner.validated_model), epoch, scores)
        note = f"epoch {number} of {self.settings.epochs}, {_note(epoch)}"
        _LOG.info("%s", note)
        self.progress(0, note)
        if self.watch is not None:
            self.watch(epoch)

    def _validation_logits(self) -> npt.NDArray[np.float64]:
        self.world.synchronise_buffers(self.learner.model)
        if self.learner.average is not None:
            self.world.synchronise_buffers(self.learner.average.module)
        examples = self.examples
        rows = self.world.share(examples.validation)
        part = np.empty((0, examples.classes))
        if len(rows):
            part = self.learner.predict(rows)
        return self.world.gather(part, len(examples.validation))

    def _is_stuck(self) -> bool:
        """Return True if the validation NLL has not improved for `patience` epochs."""
        best = self.done.best
        if best is None or self.settings.patience is None:
            return False
        return len(self.done.history) - best.epoch.epoch >= self.settings.patience

    def _end_cycle(self) -> None:
        assert self.done.best is not None  # noqa: S101 - there is at least one epoch in a cycle
        self.done.snapshots.append(self.done.best)
        self.done.best = None
        self.learner.begin_cycle()

    def _save_if_due(self) -> None:
        if self.state is not None and self.state.is_due:
            self._save()

    def _save(self) -> None:
        if self.state is not None and self.world.is_first:
            self.state.write({"learner": self.learner.state(), "progress": self.done.state()})


@contextlib.contextmanager
def threads_for(batch_size: int, image: ImageSpec) -> Iterator[None]:
    """Limit PyTorch's threads inside the block to the number that passes of this size can use."""
    threads = torch.get_num_threads()
    worthwhile = batch_size * image.height * image.width // _PIXELS_PER_THREAD
    torch.set_num_threads(max(1, min(threads, worthwhile)))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _dict_from_snapshot(snapshot: TrainingSnapshot) -> dict[str, Any]:
    return {
        "weights": snapshot.weights,
        "epoch": asdict(snapshot.epoch),
        "validation": snapshot.validation.model_dump(),
    }


def _snapshot_from_dict(
    weights: dict[str, torch.Tensor], epoch: dict[str, Any], validation: dict[str, Any]
) -> TrainingSnapshot:
    return TrainingSnapshot(weights, Epoch(**epoch), Scores(**validation))


def _floats(values: list[torch.Tensor]) -> list[float]:
    return torch.stack(values).tolist() if values else []


def _mean_of_finite(norms: list[float]) -> float:
    """Return the mean of the finite norms; steps that loss scaling skips, such as the first in fp16, have none."""
    finite = [norm for norm in norms if math.isfinite(norm)]
    return sum(finite) / len(finite) if finite else math.nan


def _note(epoch: Epoch) -> str:
    return f"accuracy {epoch.validation_accuracy:.3f}, NLL {epoch.validation_nll:.3f}, {epoch.images_per_s:,.0f} img/s"


def _ignore_progress(_count: int, _note: str) -> None:
    """Ignore progress."""
