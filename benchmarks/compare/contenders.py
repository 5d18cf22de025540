"""The models to compare: trained here, members of a run of any kind, and checkpoints from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from plurum.errors import MetadataError, SettingsError, needs_extra
from plurum.files import sha256_of
from plurum.run import Run
from plurum.spec import ImageSpec, Member, read_member

if TYPE_CHECKING:
    from plurum.export import PixelModel

__all__ = [
    "Contender",
    "check_checkpoints",
    "contenders_from_checkpoints",
    "contenders_from_run",
    "model_from_contender",
]


@dataclass(frozen=True)
class Contender:
    """An architecture with its weights, or an ONNX graph.

    Attributes:
        name: Name of the member.
        arch: Architecture, as `timm.create_model` takes it; for an ONNX graph, its origin in words.
        origin: Origin of the weights.
        source: Folder of the member, or file with weights.
        checkpoint: File with the weights or the graph.
        sha256: SHA-256 of that file.
        classes: Class names, in the order of the outputs.
        image: Image spec of the model's input.
        decoded: Image spec of the run's pixels; the model resizes them if its size differs.
        epochs: Number of training epochs; None if not known.
        training_s: Training time, seconds; None if not known.
        format: Kind of the checkpoint, as in `Member`.
        parameters: Number of weights; None if not known before the model is loaded.
    """

    name: str
    arch: str
    origin: Literal["trained", "run", "checkpoint"]
    source: Path
    checkpoint: Path
    sha256: str
    classes: tuple[str, ...]
    image: ImageSpec
    decoded: ImageSpec
    epochs: int | None
    training_s: float | None
    format: Literal["timm", "onnx"] = "timm"
    parameters: int | None = None


def contenders_from_run(
    run: Run, archs: Sequence[str], origin: Literal["trained", "run"] = "run"
) -> tuple[Contender, ...]:
    """Return the run's members of these architectures or names, in their order; all members if `archs` is empty.

    Raises:
        MetadataError: The folder is not a run, has no finished member of one of the architectures, or one of the chosen
            members decodes images by another rule.
    """
    from plurum.training.learning.backbones import backbone_from_arch

    # Members of a source have its registered architecture.
    archs = [backbone_from_arch(arch).arch for arch in archs]
    members = run.members()
    known = sorted({name for member in members for name in (member.arch, member.name)})
    if missing := [arch for arch in archs if arch not in known]:
        raise MetadataError(
            f"{run.path} has no finished member of the architecture {missing[0]!r}, only of {', '.join(known)}; train "
            f"it there, or leave out --arch to compare all"
        )
    named = {member.name: member for arch in archs for member in members if arch in (member.arch, member.name)}
    return tuple(_of_member(run, one, run.member_folder(one.name), origin) for one in named.values() or members)


def check_checkpoints(named: Sequence[str]) -> None:
    """Check that checkpoints exist, before anything is trained.

    Raises:
        SettingsError: One is neither a member's folder nor `ARCH=FILE`, or timm does not have its architecture.
        MetadataError: A file is missing.
    """
    from plurum.training.learning.architectures import check_architectures
    from plurum.training.learning.backbones import is_source

    for one in named:
        if Path(one).is_dir():
            continue
        arch, equals, path = one.partition("=")
        if not (arch and equals and path):
            raise SettingsError(f"--checkpoint: expected ARCH=FILE or a member's folder, got {one!r}.")
        if is_source(arch):
            raise SettingsError(
                f"--checkpoint: expected an architecture that timm knows before the equals sign, got {arch}. Name the "
                f"member's folder."
            )
        check_architectures([arch])
        if not Path(path).is_file():
            raise MetadataError(f"--checkpoint {one}: {path} is missing")


def contenders_from_checkpoints(run: Run, named: Sequence[str]) -> tuple[Contender, ...]:
    """Return checkpoints as `--checkpoint` names them: a member's folder, or `ARCH=FILE`.

    Raises:
        SettingsError: as `check_checkpoints`.
        MetadataError: a checkpoint is missing, broken, or of other classes or images than the run's.
    """
    check_checkpoints(named)
    return tuple(_of_checkpoint(run, one) for one in named)


def model_from_contender(contender: Contender) -> PixelModel:
    """Return the model, which takes the run's uint8 pixels `[batch, height, width, 3]`, on the CPU in evaluation mode.

    Raises:
        MetadataError: its checkpoint is missing, broken, or not of its architecture.
    """
    with needs_extra("all"):
        from plurum.export import PixelModel
        from plurum.training import ensemble_from_checkpoints
    loaded = ensemble_from_checkpoints(
        [contender.source], arch=contender.arch, classes=contender.classes, image=contender.image
    )
    return PixelModel(loaded.models[0], contender.image, decoded=contender.decoded).eval()


def _of_member(run: Run, member: Member, folder: Path, origin: Literal["trained", "run", "checkpoint"]) -> Contender:
    from plurum.training.learning.history import read_history

    data = run.data()
    if member.classes != data.classes or not member.image.is_decoded_like(data.image):
        raise MetadataError(
            f"{folder} was trained on other classes than {run.path}, or on images of another colour mode, resize rule "
            f"or window. Compare models of the same classes and images."
        )
    history = read_history(folder / "history.csv") if (folder / "history.csv").is_file() else ()
    return Contender(
        name=member.name,
        arch=member.arch,
        origin=origin,
        source=folder,
        checkpoint=folder / member.checkpoint,
        sha256=member.sha256,
        classes=member.classes,
        image=member.image,
        decoded=data.image,
        epochs=member.epochs,
        training_s=sum(epoch.seconds for epoch in history) if history else None,
        format=member.format,
        parameters=member.parameters,
    )


def _of_checkpoint(run: Run, named: str) -> Contender:
    data = run.data()
    if (folder := Path(named)).is_dir():
        return _of_member(run, read_member(folder / "member.json"), folder, "checkpoint")
    arch, _, path = named.partition("=")
    return Contender(
        name=Path(path).stem,
        arch=arch,
        origin="checkpoint",
        source=Path(path),
        checkpoint=Path(path),
        sha256=sha256_of(Path(path)),
        classes=data.classes,
        image=data.image,
        decoded=data.image,
        epochs=None,
        training_s=None,
    )
