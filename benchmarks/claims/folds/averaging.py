"""Alternatives to more members: averages of a training's weights, and predictions for mirrored images too."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch.optim.swa_utils import AveragedModel, update_bn

from plurum.benchmarks.claims.folds.trained import FoldsStudy
from plurum.files import write_text
from plurum.models import normalise
from plurum.predictions.arrays import Floats
from plurum.run import Run, Split
from plurum.training.data.examples import Examples
from plurum.training.inference.predictions import predict_pixels
from plurum.training.learning.architectures import model_from_arch
from plurum.training.learning.history import Epoch
from plurum.training.learning.trainer import Trainer
from plurum.training.statistics.calibration import fit_temperature
from plurum.training.statistics.scoring import compute_scores, predict_logits
from plurum.voting import soft_vote, softmax, temper

__all__ = ["EMA", "measure_averages", "measure_mirrored"]

# Weights are averaged over the last quarter of the epochs.
_TAIL = 0.75
_BATCH = 64
_SEEDS = 3
# Decay of the moving average: it covers some 30 steps, an epoch of the default draw.
EMA = 0.97


def measure_averages(study: FoldsStudy) -> dict[str, list[float]]:
    """Return the test NLL of each seed's best epoch, of its moving average, and of the mean of its last weights.

    Each model has its own temperature, fitted to validation images. The mean of the last quarter of the epochs gets its
    statistics of batch normalisation from the training images (Izmailov et al., arXiv 1803.05407).

    Args:
        study: Study whose split gives the images.
    """
    found: dict[str, list[float]] = {"best epoch": [], "EMA": [], "SWA": []}
    for seed in range(min(_SEEDS, study.members)):
        stage = study.folder / f"averages-{seed}.json"
        if not stage.is_file():
            write_text(stage, json.dumps(_averages_of_seed(study, seed)))
        for name, nll in json.loads(stage.read_text()).items():
            found[name].append(nll)
    return found


def _averages_of_seed(study: FoldsStudy, seed: int) -> dict[str, float]:
    run = study.run("split")
    examples = Examples.of(run)
    settings = study.settings("split")
    losses = {}
    for name, decay in (("best epoch", 0.0), ("EMA", EMA)):
        model = model_from_arch(study.arch, examples.classes, seed)
        mean = AveragedModel(model)

        def watch(epoch: Epoch, model: torch.nn.Module = model, mean: AveragedModel = mean) -> None:
            if epoch.epoch > _TAIL * study.epochs:
                mean.update_parameters(model)

        trained = Trainer(settings.model_copy(update={"ema": decay}), watch=watch).fit(model, examples, seed)
        if name == "best epoch":
            update_bn(_batches(examples), mean)
            losses["SWA"] = _loss(run, examples, mean)
        model.load_state_dict(trained.best.weights)
        losses[name] = _loss(run, examples, model)
    return losses


def _batches(examples: Examples) -> Iterator[torch.Tensor]:
    # Equal parts, because batch normalisation needs more than one image.
    for rows in np.array_split(examples.train, max(1, len(examples.train) // _BATCH)):
        yield normalise(torch.from_numpy(examples.pixels[rows]), examples.image)


def _loss(run: Run, examples: Examples, model: torch.nn.Module) -> float:
    """Return the model's test NLL with the temperature of validation images."""
    test = run.table().rows("test")
    known, new = (
        softmax(predict_logits(model, examples.pixels, rows, examples.image)) for rows in (examples.validation, test)
    )
    return _tempered_nll(known, examples.labels[examples.validation], new, examples.labels[test])


def measure_mirrored(study: FoldsStudy) -> dict[str, dict[str, float]]:
    """Return the test NLL of votes of the split's members, by number of members, as they are and with mirrored images.

    The vote with mirrored images averages each member's probabilities for the image and for its mirror image, which
    costs as much as twice as many members. Each vote has its own temperature, fitted to validation images.
    """
    stage = study.folder / "mirrored.json"
    if not stage.is_file():
        write_text(stage, json.dumps(_mirrored(study)))
    found: dict[str, dict[str, float]] = json.loads(stage.read_text())
    return found


def _mirrored(study: FoldsStudy) -> dict[str, dict[str, float]]:
    run = study.run("split")
    table = run.table()
    (known, known_labels), (new, labels) = (
        (_predict_both(run, table.rows(split)), table.labels[table.rows(split)]) for split in _FITTED
    )
    found = {}
    for number in range(1, study.members + 1):
        # All choices of so many neighbours, so that no member counts more than others.
        losses = {}
        for name, parts in (("as is", (0,)), ("mirrored too", (0, 1))):
            means = []
            for first in range(study.members):
                chosen = (first + np.arange(number)) % study.members
                votes = [_vote(answers, chosen, parts) for answers in (known, new)]
                means.append(_tempered_nll(votes[0], known_labels, votes[1], labels))
            losses[name] = float(np.mean(means))
        found[str(number)] = losses
    return found


_FITTED: tuple[Split, ...] = ("validation", "test")


def _predict_both(run: Run, rows: npt.NDArray[np.int64]) -> Floats:
    """Return the members' probabilities for images and their mirror images, `[2, images, members, classes]`."""
    pixels = np.array(run.pixels()[rows])
    members = run.members()
    return np.stack([predict_pixels(run, members, some, "images") for some in (pixels, pixels[:, :, ::-1].copy())])


def _vote(answers: Floats, members: npt.NDArray[np.int64], parts: tuple[int, ...]) -> Floats:
    chosen = answers[list(parts)][:, :, members].mean(axis=0)
    return soft_vote(chosen, np.full(len(members), 1 / len(members)))


def _tempered_nll(
    known: Floats, known_labels: npt.NDArray[np.int64], new: Floats, labels: npt.NDArray[np.int64]
) -> float:
    return compute_scores(temper(new, fit_temperature(known, known_labels)), labels).nll
