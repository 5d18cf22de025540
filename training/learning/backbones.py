"""Models of the Hugging Face Hub and of folders, by timm's names `hf-hub:OWNER/NAME` and `local-dir:PATH`."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from plurum.conventions import IMAGENET_MEAN, IMAGENET_STD
from plurum.errors import SettingsError
from plurum.regular_files import read_regular
from plurum.spec import RESERVED_NAMES

__all__ = ["Backbone", "backbone_from_arch", "is_source", "normalisation_of", "quiet_hub", "reach_hub", "short_name"]

_HUB, _FOLDER = "hf-hub:", "local-dir:"
_CONFIG = "config.json"
# timm uses the first of these that exists.
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
_REACH_S = 10.0
_LONGEST = 60
Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Backbone:
    """Architecture of a model of timm, as its `config.json` states it.

    Attributes:
        arch: Registered name for `timm.create_model`.
        model_args: Other arguments for `timm.create_model`.
        mean: Per-channel mean of the pretraining, on a scale of 0 to 1.
        std: Per-channel standard deviation of the pretraining, on a scale of 0 to 1.
    """

    arch: str
    model_args: dict[str, JsonValue] = field(default_factory=dict)
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD


def is_source(arch: str) -> bool:
    """Return True if a name states where the model is, and not only its architecture."""
    return arch.startswith((_HUB, _FOLDER))


def short_name(arch: str) -> str:
    """Return the name of members of this architecture: the last part of a source, else `arch`.

    Raises:
        SettingsError: the source has no name.
    """
    if not is_source(arch):
        return arch
    where = arch.partition(":")[2]
    last = where.partition("@")[0].rpartition("/")[2] if arch.startswith(_HUB) else Path(where).absolute().name
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", last).lstrip("._-")[:_LONGEST]
    if not name:
        raise SettingsError(f"--arch: expected hf-hub:OWNER/NAME or local-dir:FOLDER, got {arch!r}")
    # Model repositories have models of these names.
    return f"{name}_member" if name in RESERVED_NAMES else name


def backbone_from_arch(arch: str) -> Backbone:
    """Return the architecture that a name stands for; for a source, from its `config.json`.

    Raises:
        SettingsError: the source can't be read, or has no valid configuration of timm.
    """
    if not is_source(arch):
        return Backbone(arch)
    short_name(arch)
    path = _config_from_hub(arch) if arch.startswith(_HUB) else _config_from_folder(arch)
    try:
        content = json.loads(read_regular(path))
        config = {**content, **content.get("pretrained_cfg", {})}
        args: dict[str, JsonValue] = dict(content.get("model_args") or {})
        args.pop("num_classes", None)
        if (channels := args.pop("in_chans", 3)) != 3:
            raise ValueError(f"expected a model of images with 3 channels, got {channels}")
        if config.get("fixed_input_size") and not args.get("dynamic_img_size"):
            args.setdefault("img_size", list(config["input_size"][1:]))
        means, stds = config.get("mean", IMAGENET_MEAN), config.get("std", IMAGENET_STD)
        return Backbone(str(content["architecture"]), args, _triple(means), _triple(stds))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingsError(
            f"--arch: expected a model that timm saved, got {arch!r}, whose {_CONFIG} can't be used ({error!r}). Save "
            f"it with timm.models.save_for_hf"
        ) from error


def normalisation_of(archs: Sequence[str]) -> tuple[Triple, Triple]:
    """Return mean and std of the pretraining of all `archs`; for registered names, those of ImageNet.

    Raises:
        SettingsError: they differ, so that the architectures can't share images.
    """
    found = {(one.mean, one.std): arch for arch in archs for one in [backbone_from_arch(arch)]}
    if len(found) > 1:
        listed = "; ".join(f"{arch}: mean {mean}, std {std}" for (mean, std), arch in found.items())
        raise SettingsError(
            f"--arch: expected pretrained weights with the same mean and std, got {listed}. Train each in its own run"
        )
    return next(iter(found))


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Suppress the hub client's log messages about each attempt, for the duration of a block."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def reach_hub(repository: str, files: Sequence[str] = WEIGHT_FILES) -> None:
    """Check that the hub is reachable, unless a file is cached; its client would retry for over a minute.

    Raises:
        OSError: the hub is not reachable.
    """
    from huggingface_hub import get_session, hf_hub_url, try_to_load_from_cache

    name, _, revision = repository.partition("@")
    if any(isinstance(try_to_load_from_cache(name, file, revision=revision or None), str) for file in files):
        return
    try:
        get_session().head(hf_hub_url(name, files[0]), timeout=_REACH_S)
    except Exception as error:  # of requests or of httpx, depending on the client's version
        raise OSError(f"the hub can't be reached: {error}") from error


def _config_from_hub(arch: str) -> Path:
    from huggingface_hub import hf_hub_download

    repository = arch.removeprefix(_HUB)
    name, _, revision = repository.partition("@")
    try:
        with quiet_hub():
            reach_hub(repository, (_CONFIG,))
            return Path(hf_hub_download(name, _CONFIG, revision=revision or None))
    # The client raises errors of several libraries.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SettingsError(
            f"--arch: {arch!r} can't be read from the Hugging Face Hub ({reason}). Try again with a network "
            f"connection, or copy the model to a folder and use local-dir:FOLDER"
        ) from error


def _config_from_folder(arch: str) -> Path:
    folder = Path(arch.removeprefix(_FOLDER))
    missing = [name for name in (_CONFIG, WEIGHT_FILES[0]) if not (folder / name).is_file()]
    if missing:
        raise SettingsError(
            f"--arch: expected a folder with {_CONFIG} and {WEIGHT_FILES[0]}, got {folder} without "
            f"{' and '.join(missing)}. Save a model: timm.models.save_for_hf(model, FOLDER, safe_serialization=True)"
        )
    return folder / _CONFIG


def _triple(values: Any) -> Triple:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
