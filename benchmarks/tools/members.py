"""Members for measurements: real architectures with random weights. Their predictions mean nothing; their costs do."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from plurum.conventions import IMAGENET_MEAN, IMAGENET_STD
from plurum.errors import needs_extra
from plurum.export.settings import Backend, Form
from plurum.files import sha256_of
from plurum.spec import Ensemble, FittedOn, ImageSpec, Member, Voting

if TYPE_CHECKING:
    from torch import nn

__all__ = ["random_model", "random_repository"]


def random_repository(
    work: Path,
    archs: Sequence[str],
    size: int,
    max_batch_size: int,
    progress: Callable[[str], None],
    *,
    form: Form = "fused",
    classes: int = 2,
) -> Path:
    """Return a model repository of `archs` with random weights under `work`, FP32, exported once.

    Args:
        work: Folder that keeps the graphs for the next call.
        archs: Architectures that timm knows; a repeated one is another member with the same weights.
        size: Height and width of the images, pixels.
        max_batch_size: Largest batch of the repository, images.
        progress: Receives one line about each step.
        form: Form of `ensemble` and `ensemble_pixels`.
        classes: Number of classes.
    """
    with needs_extra("export", "torch", "timm", "onnx", "onnxscript", "onnxruntime", "tritonclient.grpc"):
        from plurum.export import repository_from_onnx
    image = ImageSpec(height=size, width=size, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    names = ("CE", "LAA") if classes == 2 else tuple(f"class {index}" for index in range(classes))
    members, graphs = list[Member](), dict[str, Path]()
    for place, arch in enumerate(archs):
        name = arch if arch not in archs[:place] else f"{arch}-{place}"
        graph = work / "graphs" / f"{arch}-{size}-{classes}.onnx"
        parameters = _export(arch, classes, image, graph, progress)
        sha256 = sha256_of(graph)
        members.append(Member(name=name, arch=arch, sha256=sha256, classes=names, image=image, parameters=parameters))
        graphs[name] = graph
    ensemble = Ensemble(
        name="benchmark",
        classes=names,
        image=image,
        members=tuple(members),
        voting=Voting(weights=(1 / len(members),) * len(members)),
        data=FittedOn(data="nothing: random weights", fingerprint=hashlib.sha256().hexdigest(), images={}),
        scores={},
    )
    out = work / "model_repository"
    # As `plurum export` chooses for FP32.
    backend: Backend = "onnxruntime" if importlib.util.find_spec("openvino") is None else "openvino"
    repository_from_onnx(ensemble, graphs, out, max_batch_size, form=form, backend=backend)
    return out


def random_model(arch: str, classes: int = 2) -> nn.Module:
    """Return timm's `arch` with random weights, the same at every call, in evaluation mode."""
    import timm
    import torch

    torch.manual_seed(0)
    return timm.create_model(arch, num_classes=classes).eval()


def _export(arch: str, classes: int, image: ImageSpec, graph: Path, progress: Callable[[str], None]) -> int:
    """Write the graph unless it exists; return the number of weights of the model."""
    from plurum.export import PixelModel, onnx_from_model
    from plurum.files import atomic_file

    model = random_model(arch, classes)
    if not graph.is_file():
        progress(f"{arch}: to ONNX")
        with atomic_file(graph) as hidden:
            onnx_from_model(PixelModel(model, image), hidden)
    return sum(parameter.numel() for parameter in model.parameters())
