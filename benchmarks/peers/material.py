"""What is served and what is sent: members, their weights for PyTorch, a repository to serve, JPEGs."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from google.protobuf import text_format
from PIL import Image, ImageFilter

from plurum.benchmarks.tools.members import random_model, random_repository
from plurum.errors import MetadataError
from plurum.files import atomic_file, atomic_folder, write_bytes
from plurum.serving import usable_cores
from plurum.serving.triton.staging import read_config
from plurum.spec import Ensemble, read_ensemble

__all__ = ["Material", "jpegs", "material_of", "one_thread_instances", "steps_of"]


_IMAGES = 16


@dataclass(frozen=True)
class Material:
    """The same for all.

    Attributes:
        ensemble: Classes, members and image.
        graphs: A repository with the members' FP32 graphs, for those who call ONNX Runtime.
        served: The repository that Plurum serves.
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
    """Return what is served and sent; what lies in `work` already is taken as it is.

    Args:
        work: Keeps graphs, weights and images.
        archs: timm's names, each once.
        size: Height and width, pixels.
        repository: Of the same members, for Plurum to serve, as `plurum tune` writes one from
            `WORK/model_repository`; by default that one, with a one-thread instance a core of every model.
        progress: Told what is being done, a line each.

    Raises:
        MetadataError: `repository` is of other members, or has no `ensemble.json`.
    """
    from safetensors.torch import save_file

    graphs = random_repository(work, archs, size, 16, progress, fused=True)
    ensemble = read_ensemble(graphs / "ensemble.json")
    for arch in archs:
        path = work / "weights" / f"{arch}.safetensors"
        if not path.is_file():
            with atomic_file(path) as hidden:
                save_file(random_model(arch).state_dict(), hidden)
    if repository is None:
        repository = one_thread_instances(graphs, work / "one-thread")
    elif [one.sha256 for one in read_ensemble(repository / "ensemble.json").members] != [
        one.sha256 for one in ensemble.members
    ]:
        raise MetadataError(f"{repository} is of other members than {graphs}; tune that one")
    images = []
    for index, encoded in enumerate(jpegs(size)):
        images.append(work / "images" / f"{size}-{index}.jpg")
        write_bytes(images[-1], encoded)
    return Material(ensemble, graphs, repository, work / "weights", tuple(images))


def jpegs(size: int) -> list[bytes]:
    """Return JPEGs of blurred noise, `size` x `size`, as costly to decode as photographs, each in colours of its own.

    Members with random weights answer noise of the same colours all alike, and equal answers would then mean little.
    """
    draws = np.random.default_rng(0)
    images = []
    for _ in range(_IMAGES):
        darkest, brightest = np.sort(draws.uniform(0, 255, (2, 3)), axis=0)
        noise = darkest + (brightest - darkest) * draws.random((size, size, 3))
        file = io.BytesIO()
        Image.fromarray(noise.astype(np.uint8)).filter(ImageFilter.GaussianBlur(1)).save(file, "JPEG", quality=95)
        images.append(file.getvalue())
    return images


def one_thread_instances(repository: Path, out: Path) -> Path:
    """Copy a repository to `out`, and give the fused graph too an instance of one thread a core.

    Members have that by themselves. Many clients at once want it; a single one is answered sooner by all cores.
    """
    with atomic_folder(out) as hidden:
        shutil.copytree(repository, hidden, dirs_exist_ok=True)
        config = read_config(hidden / "fused")
        config.instance_group[0].count = usable_cores()
        (hidden / "fused" / "config.pbtxt").write_text(text_format.MessageToString(config), encoding="utf-8")
    return out


def steps_of(repository: Path, chain: str) -> str:
    """Return the models that a chain asks, for people."""
    steps = [step.model_name for step in read_config(repository / chain).ensemble_scheduling.step]
    return f"{chain}: {', '.join(steps)}"
