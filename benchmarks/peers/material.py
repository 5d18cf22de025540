"""The inputs of a comparison: members, their weights for PyTorch, a repository to serve, and JPEGs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from plurum.benchmarks.tools.members import random_model, random_repository
from plurum.benchmarks.tools.requests import coloured_jpegs, write_images
from plurum.errors import MetadataError
from plurum.files import atomic_file
from plurum.serving.triton.staging import read_config
from plurum.spec import Ensemble, read_ensemble

__all__ = ["Material", "material_of", "steps_of"]


@dataclass(frozen=True)
class Material:
    """Inputs that are the same for all frameworks.

    Attributes:
        ensemble: Metadata of the ensemble.
        graphs: Repository with the members' FP32 graphs, for frameworks that call ONNX Runtime.
        served: Repository that Plurum serves.
        weights: Folder with `ARCH.safetensors`, for PyTorch.
        images: JPEG files.
    """

    ensemble: Ensemble
    graphs: Path
    served: Path
    weights: Path
    images: tuple[Path, ...]


def material_of(
    work: Path, archs: Sequence[str], size: int, repository: Path | None, progress: Callable[[str], None]
) -> Material:
    """Return the inputs; files that exist in `work` are reused.

    Args:
        work: Folder that keeps graphs, weights and images.
        archs: Architectures that timm knows, each once.
        size: Height and width of the images, pixels.
        repository: Repository of the same members for Plurum to serve, as `plurum tune` writes it from
            `WORK/model_repository`; None for that one, with one instance of one thread per core for every model.
        progress: Receives one line about each step.

    Raises:
        MetadataError: `repository` holds other members, or no metadata.
    """
    from safetensors.torch import save_file

    graphs = random_repository(work, archs, size, 16, progress)
    ensemble = read_ensemble(graphs / "ensemble.json")
    for arch in archs:
        path = work / "weights" / f"{arch}.safetensors"
        if not path.is_file():
            with atomic_file(path) as hidden:
                save_file(random_model(arch).state_dict(), hidden)
    if repository is None:
        repository = graphs
    elif _hashes(read_ensemble(repository / "ensemble.json")) != _hashes(ensemble):
        raise MetadataError(f"{repository} holds other members than {graphs}; tune {graphs}")
    images = write_images(work / "images", coloured_jpegs(size, size), f"{size}-")
    return Material(ensemble, graphs, repository, work / "weights", images)


def _hashes(ensemble: Ensemble) -> list[str]:
    return [member.sha256 for member in ensemble.members]


def steps_of(repository: Path, chain: str) -> str:
    """Return the models that a chain runs, for people."""
    steps = [step.model_name for step in read_config(repository / chain).ensemble_scheduling.step]
    return f"{chain}: {', '.join(steps)}"
