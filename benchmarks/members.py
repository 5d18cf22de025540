"""Members to measure with: real architectures, random weights. What they answer means nothing; what it costs does."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from plurum.errors import needs_extra
from plurum.files import sha256_of
from plurum.spec import Ensemble, FittedOn, ImageSpec, Member, Scores, Voting

__all__ = ["random_repository"]

# Of ImageNet, as timm's models want them.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CLASSES = ("CE", "LAA")
_UNSCORED = Scores(images=1, accuracy=0.5, nll=0.6931)


def random_repository(
    work: Path,
    archs: Sequence[str],
    size: int,
    max_batch_size: int,
    progress: Callable[[str], None],
    *,
    fused: bool = False,
) -> Path:
    """Return a model repository of `archs` with random weights under `work`, FP32, exported once.

    Args:
        work: Keeps the graphs; reused by the next call.
        archs: timm's names, each once.
        size: Height and width of the images, pixels.
        max_batch_size: Of the repository.
        progress: Told what is being done, a line each.
        fused: Whether it has `ensemble_fused` too.
    """
    with needs_extra("export", "torch", "timm", "onnx", "onnxscript", "onnxruntime", "tritonclient.grpc"):
        from plurum.export import repository_from_onnx
    image = ImageSpec(height=size, width=size, mean=_MEAN, std=_STD)
    graphs = {arch: work / "graphs" / f"{arch}-{size}.onnx" for arch in archs}
    counts = {arch: _export(arch, image, graph, progress) for arch, graph in graphs.items()}
    members = tuple(_member(arch, graph, image, counts[arch]) for arch, graph in graphs.items())
    ensemble = Ensemble(
        name="benchmark",
        classes=_CLASSES,
        image=image,
        members=members,
        voting=Voting(weights=tuple(1 / len(members) for _ in members)),
        data=FittedOn(data="nothing: random weights", fingerprint=hashlib.sha256().hexdigest(), images={}),
        scores={},
    )
    out = work / "model_repository"
    repository_from_onnx(ensemble, graphs, out, max_batch_size, fused=fused)
    return out


def _export(arch: str, image: ImageSpec, graph: Path, progress: Callable[[str], None]) -> int:
    """Write the graph unless it is there; return how many weights the model has."""
    import timm
    import torch

    from plurum.export import PixelModel, onnx_from_model
    from plurum.files import whole_file

    torch.manual_seed(0)
    model = timm.create_model(arch, num_classes=len(_CLASSES))
    if not graph.is_file():
        progress(f"{arch}: to ONNX")
        with whole_file(graph) as hidden:
            onnx_from_model(PixelModel(model, image), hidden)
    return sum(parameter.numel() for parameter in model.parameters())


def _member(arch: str, graph: Path, image: ImageSpec, parameters: int) -> Member:
    return Member(
        name=arch,
        arch=arch,
        checkpoint=graph.name,
        sha256=sha256_of(graph),
        classes=_CLASSES,
        image=image,
        parameters=parameters,
        seed=0,
        precision="fp32",
        epochs=1,
        best_epoch=1,
        validation=_UNSCORED,
    )
