"""Trained members to measure with, where it matters what a coarser precision costs: digits, as large as photographs."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from plurum.benchmarks.peers.material import Material
from plurum.benchmarks.tools.accuracy import served_accuracy
from plurum.benchmarks.tools.trained import trained_run
from plurum.benchmarks.tune.tuning import tune
from plurum.files import atomic_file, atomic_folder, write_bytes
from plurum.run import Run
from plurum.serving import Server, ServerSettings
from plurum.settings.benchmarks import TuneSettings
from plurum.spec import Ensemble, Review, Voting, write_metadata

__all__ = ["accuracy_of", "trained_material", "voting_by_the_mean"]

_EPOCHS, _IMAGES = 15, 16


def trained_material(
    work: Path, archs: Sequence[str], size: int, repository: Path | None, progress: Callable[[str], None]
) -> tuple[Material, Run]:
    """Return what is served and sent, and the run that it is of; what lies in `work` already is taken as it is.

    Args:
        work: Keeps the run, repositories, weights and images.
        archs: timm's names, each once.
        size: Height and width, pixels.
        repository: For Plurum to serve; by default what `plurum tune` makes of the run in all precisions that pass
            export's gate.
        progress: Told what is being done, a line each.
    """
    from safetensors.torch import save_file

    from plurum.export import ExportSettings, repository_from_run
    from plurum.models import model_from_checkpoint

    progress("training")
    run = voting_by_the_mean(trained_run(work, archs, size, _EPOCHS), work / "mean")
    ensemble = run.ensemble()
    graphs = work / "model_repository"
    repository_from_run(run, graphs, ExportSettings(fused=True), progress)
    for member in ensemble.members:
        with atomic_file(work / "weights" / f"{member.arch}.safetensors") as hidden:
            save_file(model_from_checkpoint(member, run.checkpoint(member)).state_dict(), hidden)
    if repository is None:
        repository = work / "tuned"
        if not (repository / "tuning.json").is_file():
            tune(graphs, repository, run, TuneSettings(), progress)
    images = []
    for index, row in enumerate(run.table().rows("test")[:_IMAGES]):
        file = io.BytesIO()
        Image.fromarray(np.array(run.pixels()[row])).save(file, "JPEG", quality=95)
        images.append(work / "images" / f"{size}-{index}.jpg")
        write_bytes(images[-1], file.getvalue())
    return Material(ensemble, graphs, repository, work / "weights", tuple(images)), run


def accuracy_of(material: Material, run: Run) -> dict[str, float]:
    """Return the accuracy, 0 to 1, on the run's test images: served by the FP32 graphs, and by what Plurum serves."""
    found = {}
    for name, repository in (("FP32", material.graphs), ("served", material.served)):
        with Server(repository, ServerSettings(http_port=0, grpc_port=0, metrics_port=0)) as server:
            found[name] = served_accuracy(server.urls.grpc, run)
    return found


def voting_by_the_mean(run: Run, out: Path) -> Run:
    """Return the same run with the vote that peers compute: the plain mean, without temperatures."""
    fitted = run.ensemble()
    count = len(fitted.members)
    plain = Ensemble(
        name=fitted.name,
        classes=fitted.classes,
        image=fitted.image,
        members=fitted.members,
        voting=Voting(weights=(1 / count,) * count),
        review=Review(),
        data=fitted.data,
        scores={},
    )
    if not out.is_dir():
        with atomic_folder(out) as hidden:
            shutil.copytree(run.path, hidden, dirs_exist_ok=True)
    write_metadata(Run(out).ensemble_file, plain)
    return Run(out)
