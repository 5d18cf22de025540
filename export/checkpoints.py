"""From checkpoints that Plurum never trained to a model repository: a state dict each, and the architectures' names.

They vote with equal weights, uncalibrated, and without labelled images their graphs are checked against PyTorch on
generated ones. That is enough for FP32, whose graph is right or wrong on any image; coarser precisions and calibrated
votes need a run with labelled images.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from safetensors.torch import save_file

from plurum.errors import SettingsError
from plurum.export.repository import Exported, repository_from_run
from plurum.export.settings import ExportSettings
from plurum.files import sha256_of
from plurum.models import state_from_file
from plurum.run import DataContract, Run
from plurum.spec import Ensemble, FittedOn, ImageSpec, Member, Voting, write_contract

__all__ = ["repository_from_checkpoints"]

_SOURCE = "nothing: checkpoints from elsewhere"
_GENERATED = 32


def repository_from_checkpoints(
    checkpoints: Sequence[Path],
    archs: Sequence[str],
    classes: Sequence[str],
    image: ImageSpec,
    out: Path,
    settings: ExportSettings,
    progress: Callable[[str], None] = lambda _: None,
) -> Exported:
    """Put a repository of `checkpoints` at `out`, whole or not at all; a member is called like its file.

    Args:
        checkpoints: Files with a state dict: safetensors, or PyTorch's own (read with `weights_only`).
        archs: What `timm.create_model` takes: one for all, or one for each.
        classes: Names, in the order of the outputs.
        image: What they were trained on.
        out: A new or empty folder, or a repository of ours.
        settings: Of the export; FP32 alone.
        progress: Told what is being done, a line each.

    Raises:
        ContractError: a file is no state dict, or does not fit its architecture.
        OutputError: `out` holds something else or can't be written to.
        ParityError: a graph answers otherwise than its original.
        SettingsError: numbers of files and architectures differ, or the precision needs labelled images.
    """
    if settings.precision != "fp32":
        raise SettingsError(
            f"--precision {settings.precision} is checked on labelled images, and checkpoints come without; export "
            f"them in fp32, or name a run that plurum train and plurum fit have filled"
        )
    if len(archs) not in {1, len(checkpoints)}:
        raise SettingsError(f"{len(archs)} --arch for {len(checkpoints)} checkpoints; name one for all or one for each")
    of_each = list(archs) if len(archs) == len(checkpoints) else list(archs) * len(checkpoints)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder) / "run")
        try:
            members = tuple(
                _member(run, file, arch, tuple(classes), image) for file, arch in zip(checkpoints, of_each, strict=True)
            )
            _write_run(run, members, tuple(classes), image)
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
            raise SettingsError(f"these checkpoints make no ensemble: {fault}") from error
        return repository_from_run(run, out, settings, progress)


def _member(run: Run, file: Path, arch: str, classes: tuple[str, ...], image: ImageSpec) -> Member:
    state = state_from_file(file)
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", file.name.rsplit(".", 1)[0])
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


def _write_run(run: Run, members: tuple[Member, ...], classes: tuple[str, ...], image: ImageSpec) -> None:
    pixels = _generated(image)
    fingerprint = hashlib.sha256(pixels.tobytes()).hexdigest()
    run.data_folder.mkdir(parents=True)
    run.settings_file.write_text(json.dumps({}), encoding="utf-8")
    np.save(run.data_folder / "pixels.npy", pixels)
    with (run.data_folder / "items.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "source", "label", "patient", "split"])
        writer.writerows(
            [index, f"generated/{index}", classes[0], "", "validation" if index < _GENERATED else "train"]
            for index in range(_GENERATED + 1)
        )
    contract = DataContract(source=_SOURCE, fingerprint=fingerprint, classes=classes, image=image)
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


def _generated(image: ImageSpec) -> Any:
    """Return coloured images, uint8 `[images, height, width, 3]`: from large squares to single pixels of noise."""
    generator, images = np.random.default_rng(0), []
    for index in range(_GENERATED + 1):
        side = max(1, min(image.height, image.width) >> (index % 6))
        rows, columns = (-(-size // side) for size in (image.height, image.width))
        coarse = generator.integers(0, 256, (rows, columns, 3), dtype=np.uint8)
        images.append(coarse.repeat(side, axis=0).repeat(side, axis=1)[: image.height, : image.width])
    return np.stack(images)
