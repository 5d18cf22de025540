"""Export checkpoints that Plurum did not train: one state dict per member, and the names of their architectures.

Members vote with equal weights, uncalibrated. Without labelled images, their graphs are checked against PyTorch on
generated images. That suffices for FP32, because a wrong FP32 graph differs on any image. Coarser precisions need
labelled images for calibration and checks.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError
from torch import nn

from plurum.errors import MetadataError, SettingsError
from plurum.export.checks import find_member_names
from plurum.export.graphs.member import PixelModel
from plurum.export.repository.assembly import ExportResult, repository_from_models, sample_from_table
from plurum.export.repository.cards.facts import CardFacts
from plurum.export.repository.cards.intended_use import IntendedUse, read_intended_use
from plurum.export.repository.selection import ParitySample
from plurum.export.settings import ExportSettings
from plurum.files import sha256_of
from plurum.models import model_from_tensors
from plurum.run import Split, Table
from plurum.spec import Ensemble, FittedOn, ImageSpec, Member, Voting
from plurum.state_dicts import read_state_dict

__all__ = ["ExportImages", "repository_from_checkpoints"]

_LOG = logging.getLogger(__name__)

_SOURCE = "nothing: checkpoints from elsewhere"
_GENERATED = 32


@dataclass(frozen=True)
class ExportImages:
    """Labelled images for an export, at the members' input size.

    Attributes:
        source: Data source, as named by the user.
        pixels: Images, uint8 `[images, height, width, 3]`.
        classes: Class name of each image.
        table: Source, patient and split of each image; `validation` checks artefacts, `train` calibrates them.
    """

    source: str
    pixels: npt.NDArray[np.uint8]
    classes: tuple[str, ...]
    table: Table


def repository_from_checkpoints(  # noqa: PLR0913 - what a checkpoint does not say itself
    checkpoints: Sequence[Path],
    archs: Sequence[str],
    classes: Sequence[str],
    image: ImageSpec,
    out: Path,
    settings: ExportSettings,
    progress: Callable[[str], None] = lambda _: None,
    *,
    labelled: ExportImages | None = None,
    intended_use: Path | None = None,
) -> ExportResult:
    """Write a repository of `checkpoints` to `out` atomically; each member is named after its file.

    Args:
        checkpoints: Files with a state dict: safetensors, or PyTorch's own format (read with `weights_only`).
        archs: Architecture names for `timm.create_model`: one for all files, or one per file.
        classes: Class names, in the order of the outputs.
        image: Image spec that the members were trained with.
        out: New or empty folder, or a Plurum repository.
        settings: Export settings; precisions other than FP32 need `labelled`.
        progress: Called with one line per step.
        labelled: Labelled images to check and calibrate on; None generates images.
        intended_use: File with statements for the model card.

    Raises:
        MetadataError: a file is not a state dict, or does not fit its architecture.
        OutputError: `out` holds other files or can't be written.
        ParityError: a graph differs from its PyTorch model by more than its budget.
        SettingsError: the numbers of files and architectures differ, the precision needs labelled images, or the
            statements for the model card are invalid.
    """
    names = find_member_names(checkpoints, archs, settings, has_images=labelled is not None)
    of_each = list(archs) if len(archs) == len(checkpoints) else list(archs) * len(checkpoints)
    files = dict(zip(names, checkpoints, strict=True))
    images = labelled or _generate_images(image, classes[0])
    try:
        ensemble = _ensemble(
            tuple(
                _member(name, file, arch, tuple(classes), image)
                for (name, file), arch in zip(files.items(), of_each, strict=True)
            ),
            images,
        )
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise SettingsError(f"these checkpoints do not form an ensemble: {fault}") from error

    def load_sample() -> ParitySample:
        return sample_from_table(_table(images, ensemble.classes), images.pixels, settings, images.source)

    def load_model(member: Member) -> PixelModel:
        return PixelModel(_load_model(files[member.name], member), member.image)

    facts = _card_facts(intended_use, has_images=labelled is not None)
    return repository_from_models(ensemble, load_model, load_sample, out, settings, progress, facts)


def _card_facts(intended_use: Path | None, *, has_images: bool) -> CardFacts:
    return CardFacts(
        use=IntendedUse() if intended_use is None else read_intended_use(intended_use),
        missing=("Figures: the checkpoints come from elsewhere, without a run.",),
        checked_on="labelled images" if has_images else "generated images",
    )


def _member(name: str, file: Path, arch: str, classes: tuple[str, ...], image: ImageSpec) -> Member:
    held = read_state_dict(file)
    if held.note:
        _LOG.warning("%s: %s", file, held.note)
    # Before any member is exported, which takes long.
    model_from_tensors(file, held.tensors, arch, len(classes))
    parameters = max(1, sum(value.numel() for value in held.tensors.values()))
    sha256 = sha256_of(file)
    return Member(name=name, arch=arch, sha256=sha256, classes=classes, image=image, parameters=parameters)


def _load_model(file: Path, member: Member) -> nn.Module:
    tensors = read_state_dict(file).tensors
    if sha256_of(file) != member.sha256:
        raise MetadataError(f"{file} was changed during the export; export it again")
    return model_from_tensors(file, tensors, member.arch, len(member.classes), member.model_args)


def _ensemble(members: tuple[Member, ...], images: ExportImages) -> Ensemble:
    digest = hashlib.sha256("\n".join(images.classes).encode())
    for one in images.pixels:
        digest.update(np.ascontiguousarray(one).data)
    return Ensemble(
        name=members[0].name if len(members) == 1 else "checkpoints",
        classes=members[0].classes,
        image=members[0].image,
        members=members,
        voting=Voting(weights=(1 / len(members),) * len(members)),
        data=FittedOn(data=_SOURCE, fingerprint=digest.hexdigest(), images={}),
        scores={},
    )


def _table(images: ExportImages, classes: tuple[str, ...]) -> Table:
    """Return the images' table with labels in the order of `classes`."""
    if unknown := set(images.classes) - set(classes):
        raise SettingsError(f"labelled: expected images of {', '.join(classes)}, got {', '.join(sorted(unknown))}")
    return replace(images.table, labels=np.array([classes.index(name) for name in images.classes], dtype=np.int64))


def _generate_images(image: ImageSpec, name: str) -> ExportImages:
    """Return generated images, from large coloured squares to noise of single pixels, all labelled `name`."""
    generator, images = np.random.default_rng(0), []
    for index in range(_GENERATED + 1):
        side = max(1, min(image.height, image.width) >> (index % 6))
        rows, columns = (-(-size // side) for size in (image.height, image.width))
        coarse = generator.integers(0, 256, (rows, columns, 3), dtype=np.uint8)
        images.append(coarse.repeat(side, axis=0).repeat(side, axis=1)[: image.height, : image.width])
    count = len(images)
    splits: list[Split] = ["train"]
    splits[:0] = ["validation"] * _GENERATED
    table = Table(
        sources=tuple(f"generated/{index}" for index in range(count)),
        labels=np.zeros(count, dtype=np.int64),
        patients=("",) * count,
        splits=tuple(splits),
    )
    return ExportImages(_SOURCE, np.stack(images), (name,) * count, table)
