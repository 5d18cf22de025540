"""From checkpoints that Plurum never trained to a model repository: a state dict each, and the architectures' names.

They vote with equal weights, uncalibrated. Without labelled images their graphs are checked against PyTorch on
generated ones. That is enough for FP32, whose graph is right or wrong on any image; coarser precisions need labelled
images, to be calibrated and checked on.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import save_file

from plurum.errors import OutputError, SettingsError
from plurum.export.checks import checked_names
from plurum.export.repository import Exported, repository_from_run
from plurum.export.settings import ExportSettings
from plurum.files import sha256_of
from plurum.models import model_from_tensors
from plurum.run import DataContract, Run, Split, Table
from plurum.spec import Ensemble, FittedOn, ImageSpec, Member, Voting, write_contract
from plurum.state_dicts import read_state_dict

__all__ = ["Labelled", "repository_from_checkpoints"]

_LOG = logging.getLogger(__name__)

_SOURCE = "nothing: checkpoints from elsewhere"
_GENERATED = 32


@dataclass(frozen=True)
class Labelled:
    """Images whose classes are known, decoded as the checkpoints' members see them.

    Attributes:
        source: As it was named by the user.
        pixels: uint8 `[images, height, width, 3]`.
        classes: The name of each image's class.
        table: Where each came from, and its split: artefacts are checked on `validation` and calibrated on `train`.
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
    labelled: Labelled | None = None,
) -> Exported:
    """Put a repository of `checkpoints` at `out`, whole or not at all; a member is called like its file.

    Args:
        checkpoints: Files with a state dict: safetensors, or PyTorch's own (read with `weights_only`).
        archs: What `timm.create_model` takes: one for all, or one for each.
        classes: Names, in the order of the outputs.
        image: What they were trained on.
        out: A new or empty folder, or a repository of ours.
        settings: Of the export; FP32 alone where there are no labelled images.
        progress: Told what is being done, a line each.
        labelled: What to check and to calibrate on; None generates images.

    Raises:
        ContractError: a file is no state dict, or does not fit its architecture.
        OutputError: `out` holds something else or can't be written to.
        ParityError: a graph answers otherwise than its original.
        SettingsError: numbers of files and architectures differ, or the precision needs labelled images.
    """
    names = checked_names(checkpoints, archs, settings, has_images=labelled is not None)
    of_each = list(archs) if len(archs) == len(checkpoints) else list(archs) * len(checkpoints)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder) / "run")
        try:
            members = tuple(
                _member(run, name, file, arch, tuple(classes), image)
                for name, file, arch in zip(names, checkpoints, of_each, strict=True)
            )
            _write_run(run, members, tuple(classes), image, labelled or _generated(image, classes[0]))
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
            raise SettingsError(f"these checkpoints make no ensemble: {fault}") from error
        except (OSError, SafetensorError) as error:
            reason = error.strerror if isinstance(error, OSError) else "is the disk full?"
            place = tempfile.gettempdir()
            raise OutputError(f"copies of the checkpoints can't be written below {place} (TMPDIR): {reason}") from error
        return repository_from_run(run, out, settings, progress)


def _member(run: Run, name: str, file: Path, arch: str, classes: tuple[str, ...], image: ImageSpec) -> Member:
    held = read_state_dict(file)
    if held.note:
        _LOG.warning("%s: %s", file, held.note)
    state = held.tensors
    # Here already, so that a message names the file and not a copy of it.
    model_from_tensors(file, state, arch, len(classes))
    folder = run.member_folder(name)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint.safetensors"
    # Copies: tensors that share memory are refused.
    save_file({key: value.detach().clone().contiguous() for key, value in state.items()}, checkpoint)
    return Member(
        name=name,
        arch=arch,
        sha256=sha256_of(checkpoint),
        classes=classes,
        image=image,
        parameters=max(1, sum(value.numel() for value in state.values())),
    )


def _write_run(
    run: Run, members: tuple[Member, ...], classes: tuple[str, ...], image: ImageSpec, labelled: Labelled
) -> None:
    digest = hashlib.sha256("\n".join(labelled.classes).encode())
    for one in labelled.pixels:
        digest.update(np.ascontiguousarray(one).data)
    fingerprint = digest.hexdigest()
    run.data_folder.mkdir(parents=True)
    run.settings_file.write_text(json.dumps({}), encoding="utf-8")
    np.save(run.data_folder / "pixels.npy", labelled.pixels)
    with (run.data_folder / "items.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "source", "label", "patient", "split"])
        table = labelled.table
        columns = zip(table.sources, labelled.classes, table.patients, table.splits, strict=True)
        writer.writerows([index, *row] for index, row in enumerate(columns))
    contract = DataContract(source=labelled.source, fingerprint=fingerprint, classes=classes, image=image)
    write_contract(run.data_folder / "contract.json", contract)
    ensemble = Ensemble(
        name=members[0].name if len(members) == 1 else "checkpoints",
        classes=classes,
        image=image,
        members=members,
        voting=Voting(weights=(1 / len(members),) * len(members)),
        data=FittedOn(data=_SOURCE, fingerprint=fingerprint, images={}),
        scores={},
    )
    write_contract(run.ensemble_file, ensemble)


def _generated(image: ImageSpec, name: str) -> Labelled:
    """Return coloured images, from large squares to single pixels of noise, all said to be of the class `name`."""
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
    return Labelled(_SOURCE, np.stack(images), (name,) * count, table)
