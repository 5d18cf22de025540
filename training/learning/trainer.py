"""Training one model."""

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
from plurum.spec import ImageSpec, Scores
from plurum.training.data.examples import Batches, Examples
from plurum.training.learning.distributed import ALONE, World
from plurum.training.learning.history import Epoch
from plurum.training.learning.optimizer_step import Learner, copied
from plurum.training.learning.precision import Precision, precision_for, training_device
from plurum.training.learning.resume import StateFile
from plurum.training.learning.schedule import cycle_ends
from plurum.training.learning.tensorboard import Events
from plurum.training.settings import TrainSettings
from plurum.training.statistics.scoring import logits_of, scores_of
from plurum.voting import softmax

__all__ = ["Snapshot", "Trained", "Trainer", "threads_for"]

_LOG = logging.getLogger(__name__)

# Steps of fewer pixels are over before a second thread has paid for itself; and threads wait for each other by
# spinning, so that where other programs share the cores such steps take ten times as long with two as with one.
_PIXELS_PER_THREAD = 50_000


@dataclass(frozen=True)
class Snapshot:
    """The best epoch of one cycle; a training without snapshots is one cycle.

    Attributes:
        weights: The model's state then, or its average's, on the CPU, contiguous.
        epoch: The one with the lowest validation NLL; the first of equals.
        validation: Its scores.
    """

    weights: dict[str, torch.Tensor]
    epoch: Epoch
    validation: Scores


@dataclass(frozen=True)
class Trained:
    """What came out of a training.

    Attributes:
        snapshots: One per cycle.
        history: All epochs.
        parameters: How many weights the model has.
        seed: What the training drew from.
        precision: What it computed in.
    """

    snapshots: tuple[Snapshot, ...]
    history: tuple[Epoch, ...]
    parameters: int
    seed: int
    precision: Precision

    @property
    def best(self) -> Snapshot:
        """The snapshot with the lowest validation NLL."""
        return min(self.snapshots, key=lambda snapshot: snapshot.validation.nll)


@dataclass
class _Progress:
    """How far a training is; what a saved state holds beside the learner's.

    Attributes:
        history: Epochs that are done.
        snapshots: Cycles that are done.
        best: Of the present cycle.
        losses: Of each step of the present epoch.
        norms: Likewise.
        learning_s: What those steps took.
    """

    history: list[Epoch] = field(default_factory=list)
    snapshots: list[Snapshot] = field(default_factory=list)
    best: Snapshot | None = None
    losses: list[torch.Tensor] = field(default_factory=list)
    norms: list[torch.Tensor] = field(default_factory=list)
    learning_s: float = 0.0

    def state(self) -> dict[str, Any]:
        return {
            "history": [asdict(epoch) for epoch in self.history],
            "snapshots": [_plain(snapshot) for snapshot in self.snapshots],
            "best": None if self.best is None else _plain(self.best),
            "losses": _floats(self.losses),
            "norms": _floats(self.norms),
            "learning_s": self.learning_s,
        }

    @classmethod
    def of(cls, state: dict[str, Any]) -> _Progress:
        return cls(
            history=[Epoch(**epoch) for epoch in state["history"]],
            snapshots=[_snapshot(**snapshot) for snapshot in state["snapshots"]],
            best=None if state["best"] is None else _snapshot(**state["best"]),
            losses=[torch.tensor(loss) for loss in state["losses"]],
            norms=[torch.tensor(norm) for norm in state["norms"]],
            learning_s=state["learning_s"],
        )


class Trainer:
    """Trains models by the same settings, on a CUDA device if there is one.

        trained = Trainer(TrainSettings(archs=("resnet18",), epochs=10)).fit(model, Examples.of(run))

    AdamW with a linear warm-up and a cosine after it, channels last, and all that `TrainSettings` names.
    """

    def __init__(self, settings: TrainSettings, world: World = ALONE) -> None:
        """Take what all trainings share.

        Args:
            settings: For all of them; `archs` and `seeds` are for others to mind.
            world: The processes that train together.

        Raises:
            SettingsError: a precision that this device has not.
        """
        self.settings = settings
        self.world = world
        self.device = training_device()
        precision_for(settings.precision, self.device)

    def precision(self, image: ImageSpec) -> Precision:
        """Return what trainings on such images compute in."""
        return precision_for(self.settings.precision, self.device, image)

    def steps(self, examples: Examples) -> int:
        """Return how many steps `fit` will take, over all epochs."""
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
    ) -> Trained:
        """Train `model` in place and return the best epoch of each cycle.

        The same model, examples, seed and number of threads give the same weights on the same CPU, however often the
        training was interrupted and went on from its `state`. PyTorch's global generators are used, and left as they
        were.

        Args:
            model: Takes normalised pixels, answers logits.
            examples: To learn from and to be judged by.
            seed: What batches, augmentation and dropout are drawn from; the settings' by default.
            state: Where the training is saved now and then, and goes on from if something lies there.
            events: The folder of what TensorBoard shows.
            progress: Told of every step: how many more are done, and a note.

        Raises:
            SettingsError: the loss is no longer finite, or the model can't be compiled.
            OutputError: the state can't be written, the disk being full, say; the one before is still there.
        """
        seed = self.settings.seed if seed is None else seed
        devices = [self.device] if self.device.type == "cuda" else []
        with threads_for(self.settings.batch_size, examples.image), torch.random.fork_rng(devices=devices):
            training = _Training(self, model, examples, seed, state, progress or _nobody)
            history, snapshots = training.run(events)
        return Trained(
            snapshots=snapshots,
            history=history,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            seed=seed,
            precision=self.precision(examples.image),
        )


class _Training:
    """One model's, from its first step or its last saved one to its end."""

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
        self.learner = Learner(model, self.settings, examples, seed, precision, trainer.device, self.world)
        self.state, self.progress = state, progress
        self.events: Events | None = None
        self.done = _Progress()
        if state is not None and (saved := state.read()):
            self.learner.restore(saved["learner"])
            self.done = _Progress.of(saved["progress"])
            progress(self.learner.taken, "")

    def run(self, events: Path | None) -> tuple[tuple[Epoch, ...], tuple[Snapshot, ...]]:
        """Do what is left to do, and return all epochs and the best of each cycle."""
        if events is not None:
            self.events = Events(events, self.learner.taken - len(self.done.losses))
        try:
            self._run()
        finally:
            if self.events is not None:
                self.events.close()
        return tuple(self.done.history), tuple(self.done.snapshots)

    def _run(self) -> None:
        ends = cycle_ends(self.settings)
        while len(self.done.history) < self.settings.epochs and not self._is_stuck():
            self._learn()
            self._judge()
            if len(self.done.history) in ends:
                self._end_cycle()
            self._save_if_due()
        if self.done.best is not None:
            self._end_cycle()

    def _learn(self) -> None:
        """Take the steps of the present epoch that are not taken yet."""
        number, taken = len(self.done.history) + 1, len(self.done.losses)
        self.learner.model.train()
        began = time.perf_counter()
        for index, rows in enumerate(self.learner.batches.epoch(number)):
            if index < taken:
                continue
            if self.events is not None and self.learner.taken == 0:
                self.events.images(self.learner.inputs(rows[:16]), self.examples.image)
            loss, norm = self.learner.step(rows)
            self.done.losses.append(loss)
            self.done.norms.append(norm)
            self.progress(1, "")
            # Several processes have each their own part of an epoch: theirs is saved between epochs alone.
            if self.world.size == 1 and self.state is not None and self.state.is_due:
                self.done.learning_s += time.perf_counter() - began
                self._save()
                began = time.perf_counter()
        # Reading the sum waits for the device, so that the time is that of the work.
        self.done.losses = list(self.world.total(torch.stack(self.done.losses)))
        float(self.done.losses[-1])
        self.done.learning_s += time.perf_counter() - began

    def _judge(self) -> None:
        """Close the epoch: what it was like, and how well validation images are answered now."""
        began, done, examples = time.perf_counter(), self.done, self.examples
        number, losses, norms = len(done.history) + 1, _floats(done.losses), _floats(done.norms)
        logits = self._validation_logits()
        loss = sum(losses) / len(losses)
        if not (math.isfinite(loss) and np.isfinite(logits).all()):
            raise SettingsError(
                f"the training diverged in epoch {number}: its loss is {loss}; try a smaller --learning-rate than "
                f"{self.settings.learning_rate:g}, or --precision fp32 if it is not (it is {self.learner.precision})"
            )
        scores = scores_of(softmax(logits), examples.labels[examples.validation])
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
            done.best = Snapshot(copied(self.learner.judged), epoch, scores)
        _LOG.info("epoch %d: %s", number, _note(epoch))
        self.progress(0, _note(epoch))

    def _validation_logits(self) -> npt.NDArray[np.float64]:
        self.world.level(self.learner.model)
        if self.learner.average is not None:
            self.world.level(self.learner.average.module)
        examples = self.examples
        rows = self.world.share(examples.validation)
        part = np.empty((0, examples.classes))
        if len(rows):
            part = logits_of(self.learner.judged, examples.pixels, rows, examples.image)
        return self.world.together(part, len(examples.validation))

    def _is_stuck(self) -> bool:
        """Whether the validation NLL has not become better for too long."""
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
    """Let PyTorch use as many of its threads inside a block as passes of this size keep busy."""
    threads = torch.get_num_threads()
    worthwhile = batch_size * image.height * image.width // _PIXELS_PER_THREAD
    torch.set_num_threads(max(1, min(threads, worthwhile)))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _plain(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "weights": snapshot.weights,
        "epoch": asdict(snapshot.epoch),
        "validation": snapshot.validation.model_dump(),
    }


def _snapshot(weights: dict[str, torch.Tensor], epoch: dict[str, Any], validation: dict[str, Any]) -> Snapshot:
    return Snapshot(weights, Epoch(**epoch), Scores(**validation))


def _floats(values: list[torch.Tensor]) -> list[float]:
    return torch.stack(values).tolist() if values else []


def _mean_of_finite(norms: list[float]) -> float:
    """Return the mean norm; steps that loss scaling skips, as the first ones in fp16, have none."""
    finite = [norm for norm in norms if math.isfinite(norm)]
    return sum(finite) / len(finite) if finite else math.nan


def _note(epoch: Epoch) -> str:
    return f"accuracy {epoch.validation_accuracy:.3f}, NLL {epoch.validation_nll:.3f}, {epoch.images_per_s:,.0f} img/s"


def _nobody(_count: int, _note: str) -> None:
    """Told of progress, and does nothing."""
