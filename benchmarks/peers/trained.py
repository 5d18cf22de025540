"""Trained members, where the cost of a coarser precision matters: digits at the size of photographs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plurum.benchmarks.peers.material import Material
from plurum.benchmarks.tools.requests import jpeg_from_pixels, write_images
from plurum.benchmarks.tools.servers import server_of
from plurum.benchmarks.tools.trained import served_accuracy, trained_run
from plurum.benchmarks.tune.tuning import tune
from plurum.files import atomic_file, atomic_folder
from plurum.run import Run
from plurum.settings.benchmarks import TuneSettings
from plurum.spec import Ensemble, Review, Voting, write_metadata

__all__ = ["accuracy_of", "run_with_mean_vote", "trained_material"]

_EPOCHS, _IMAGES = 15, 16


def trained_material(
    work: Path,
    archs: Sequence[str],
    size: int,
    repository: Path | None,
    progress: Callable[[str], None],
    *,
    quick: bool = False,
) -> tuple[Material, Run]:
    """Return the inputs and their run; files that exist in `work` are reused.

    Args:
        work: Folder that keeps the run, repositories, weights and images.
        archs: Architectures that timm knows, each once.
        size: Height and width of the images, pixels.
        repository: Repository for Plurum to serve; None for the one that `plurum tune` makes of the run in all
            precisions that pass export's gate.
        progress: Receives one line about each step.
        quick: If True, train a single epoch, and tune nothing.
    """
    from safetensors.torch import save_file

    from plurum.export import ExportSettings, repository_from_run
    from plurum.models import model_from_checkpoint

    progress("training")
    run = run_with_mean_vote(trained_run(work, archs, size, 1 if quick else _EPOCHS), work / "mean")
    ensemble = run.ensemble()
    graphs = work / "model_repository"
    repository_from_run(run, graphs, ExportSettings(), progress)
    for member in ensemble.members:
        with atomic_file(work / "weights" / f"{member.arch}.safetensors") as hidden:
            save_file(model_from_checkpoint(member, run.checkpoint(member)).state_dict(), hidden)
    if repository is None and quick:
        repository = graphs
    elif repository is None:
        repository = work / "tuned"
        if not (repository / "tuning.json").is_file():
            tune(graphs, repository, run, TuneSettings(), progress)
    rows = run.table().rows("test")[:_IMAGES]
    jpegs = [jpeg_from_pixels(np.array(run.pixels()[row]), quality=95) for row in rows]
    images = write_images(work / "images", jpegs, f"{size}-")
    return Material(ensemble, graphs, repository, work / "weights", images), run


def accuracy_of(material: Material, run: Run) -> dict[str, float]:
    """Return the accuracy on test images, 0 to 1: of the FP32 graphs, and of the repository that Plurum serves."""
    found = {}
    for name, repository in (("FP32", material.graphs), ("served", material.served)):
        with server_of(repository) as server:
            found[name] = served_accuracy(server.urls.grpc, run)
    return found


def run_with_mean_vote(run: Run, out: Path) -> Run:
    """Return a copy of the run whose vote is the one that peers compute: the plain mean, without temperatures."""
    fitted = run.ensemble()
    count = len(fitted.members)
    kept: dict[str, Any] = {name: getattr(fitted, name) for name in ("name", "classes", "image", "members", "data")}
    plain = Ensemble(**kept, voting=Voting(weights=(1 / count,) * count), review=Review(), scores={})
    if not out.is_dir():
        with atomic_folder(out) as hidden:
            shutil.copytree(run.path, hidden, dirs_exist_ok=True)
    write_metadata(Run(out).ensemble_file, plain)
    return Run(out)
