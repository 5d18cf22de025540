"""Trained members, where the cost of a coarser precision or of a cascade matters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from plurum.benchmarks.peers.material import Material
from plurum.benchmarks.peers.result import Accuracy
from plurum.benchmarks.tools.requests import jpeg_from_pixels, write_images
from plurum.benchmarks.tools.servers import server_of
from plurum.benchmarks.tools.trained import are_correct, cascade_run, served_predictions, trained_run
from plurum.benchmarks.tune.tuning import tune
from plurum.files import atomic_file
from plurum.predictions.prediction import Prediction
from plurum.run import Run
from plurum.settings.benchmarks import TuneSettings
from plurum.training.statistics.bootstrap import Bootstrap, mean_interval

__all__ = ["Served", "accuracy_of", "trained_material"]

# How Plurum serves the members: as tuning chooses, or as `plurum export` writes them without it.
Served = Literal["tuned", "int8", "fp32"]
_EPOCHS = {"digits": 15, "fashion": 3}


def trained_material(  # noqa: PLR0913 - each names a choice of the user
    work: Path,
    archs: Sequence[str],
    size: int,
    progress: Callable[[str], None],
    *,
    repository: Path | None = None,
    served: Served = "tuned",
    cascade: bool = False,
    fashion: Path | None = None,
    quick: bool = False,
) -> tuple[Material, Run]:
    """Return the inputs and their run; files that exist in `work` are reused.

    Every test image is sent.

    Args:
        work: Folder that keeps the run, repositories, weights and images.
        archs: Architectures that timm knows, each once.
        size: Height and width of the images, pixels.
        progress: Receives one line about each step.
        repository: Repository for Plurum to serve; None for one of the run as `served` says.
        served: How Plurum serves the members.
        cascade: If True, fit a cascade.
        fashion: With `cascade`, folder with the files of Fashion-MNIST; None for scikit-learn's digits.
        quick: If True, train a single epoch.
    """
    from safetensors.torch import save_file

    from plurum.export import ExportSettings, repository_from_run
    from plurum.models import model_from_checkpoint

    progress("training")
    epochs = 1 if quick else _EPOCHS["digits" if fashion is None else "fashion"]
    run = cascade_run(work, archs, size, epochs, fashion) if cascade else trained_run(work, archs, size, epochs)
    ensemble = run.ensemble()
    graphs = work / "model_repository"
    repository_from_run(run, graphs, ExportSettings(), progress)
    for member in ensemble.members:
        with atomic_file(work / "weights" / f"{member.arch}.safetensors") as hidden:
            save_file(model_from_checkpoint(member, run.checkpoint(member)).state_dict(), hidden)
    if repository is None and served == "fp32":
        repository = graphs
    elif repository is None and served == "int8":
        repository = work / "int8"
        repository_from_run(run, repository, ExportSettings(precision="int8"), progress)
    elif repository is None:
        repository = work / "tuned"
        if not (repository / "tuning.json").is_file():
            tune(graphs, repository, run, TuneSettings(), progress)
    jpegs = (jpeg_from_pixels(np.array(run.pixels()[row]), quality=95) for row in run.table().rows("test"))
    return Material(
        ensemble, graphs, repository, work / "weights", write_images(work / "images", jpegs, f"{size}-")
    ), run


def accuracy_of(material: Material, run: Run) -> Accuracy:
    """Return how well all members predict the test images in FP32, and how well the served repository does."""
    with server_of(material.graphs) as server:
        full = served_predictions(server.urls.grpc, run, full=material.ensemble.cascade is not None)
    with server_of(material.served) as server:
        served = served_predictions(server.urls.grpc, run)
    loss = are_correct(full, run).astype(float) - are_correct(served, run)
    same = [one.label == other.label for one, other in zip(full, served, strict=True)]
    images = Bootstrap(np.arange(len(loss)), draws=1000, seed=0)
    return Accuracy(
        images=len(loss),
        full=float(np.mean(are_correct(full, run))),
        served=float(np.mean(are_correct(served, run))),
        loss=float(loss.mean()),
        loss_interval=mean_interval(loss, images),
        same_label=float(np.mean(same)),
        settled=_settled_early(served, len(material.ensemble.members)),
    )


def _settled_early(predictions: Sequence[Prediction], members: int) -> float | None:
    """Return the fraction of predictions for which some members did not run, 0 to 1; None without a cascade."""
    used = [len(one.members_used) for one in predictions if one.members_used is not None]
    return float(np.mean(np.less(used, members))) if used else None
