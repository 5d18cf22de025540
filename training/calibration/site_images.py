"""Read the labelled images of a site, and refuse what can't calibrate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from plurum.dicom_files import PatientNames
from plurum.errors import DataError
from plurum.predictions.arrays import Ints
from plurum.regular_files import read_regular
from plurum.run import Run, number_patients
from plurum.spec import ImageSpec
from plurum.training.calibration.sampled_images import SampledImages, weigh_images
from plurum.training.data.folders import files_from_folder
from plurum.training.data.idx import holds_idx
from plurum.training.data.labelled_files import undivided_images, with_dicom_patients
from plurum.training.data.labelled_images import LabelledImages, check_readable
from plurum.training.data.manifests import files_from_manifest
from plurum.training.data.sources import load_data
from plurum.training.data.tiles import Tiling
from plurum.training.learning.plan import RunSettings

__all__ = ["LEAST_PATIENTS", "decode_site_images", "load_site_images"]

# Patients of each class, so that every fold is fitted to one at least.
LEAST_PATIENTS = 2


def load_site_images(source: str, run: Run, names: PatientNames | None = None) -> SampledImages:
    """Return the labelled images of a site, whatever their split, with labels in the order of the run's classes.

    Files are cut into tiles as for the run's training.

    Args:
        source: Images, as for `load_data`.
        run: A fitted run.
        names: Names of the patients of DICOM files whose patient the source does not state; by default, pseudonyms.

    Raises:
        DataError: the source can't be read, has labels that the run does not know, too few patients of a class, or
            images of the run.
    """
    classes = run.data().classes
    data = _load(source, run, names or PatientNames())
    if unknown := [name for name in data.classes if name not in classes]:
        raise DataError(
            f"--on: expected labels among the run's classes {', '.join(classes)}, got {', '.join(unknown)} in "
            f"{source}. Correct or remove these rows."
        )
    labels = np.array([classes.index(name) for name in data.classes], dtype=np.int64)[data.table.labels]
    sampled = weigh_images(source, replace(data, classes=classes, table=replace(data.table, labels=labels)))
    table = sampled.data.table
    _check_patients(source, table.labels, number_patients(table.patients), classes)
    _check_new(source, sampled.data, run)
    return sampled


def decode_site_images(data: LabelledImages, image: ImageSpec) -> npt.NDArray[np.uint8]:
    """Return the images at the members' input size, uint8 `[images, height, width, 3]`.

    Raises:
        DataError: an image is unreadable.
    """
    pixels = np.empty((len(data), image.height, image.width, 3), dtype=np.uint8)
    check_readable(data, data.decode(image, pixels), fix="repair or remove them")
    return pixels


def _load(source: str, run: Run, names: PatientNames) -> LabelledImages:
    path = Path(source)
    if path.is_dir() and not holds_idx(path):
        return undivided_images(with_dicom_patients(files_from_folder(path), names), _tiling(run))
    if path.is_file() and path.suffix.lower() == ".csv":
        return undivided_images(with_dicom_patients(files_from_manifest(path), names), _tiling(run))
    return load_data(source, names=names)


def _tiling(run: Run) -> Tiling | None:
    """Return how the run's training cut images into tiles; None if it did not, or another program trained."""
    try:
        settings = RunSettings.model_validate_json(read_regular(run.settings_file)).settings
    except (OSError, ValidationError):
        return None
    if settings.tile_size is None:
        return None
    return Tiling(settings.tile_size, settings.max_tiles, keeps_bits=settings.window is not None)


def _check_patients(source: str, labels: Ints, groups: Ints, classes: tuple[str, ...]) -> None:
    few = {
        name: count
        for index, name in enumerate(classes)
        if (count := len(np.unique(groups[labels == index]))) < LEAST_PATIENTS
    }
    if few:
        got = ", ".join(f"{count} of {name}" for name, count in few.items())
        raise DataError(
            f"--on: expected at least {LEAST_PATIENTS} patients of each class, got {got} in {source}. Add labelled "
            f"images of {' and '.join(few)}."
        )


def _check_new(source: str, data: LabelledImages, run: Run) -> None:
    """Refuse images that the members or the fit have seen, on which they are better than on others."""
    table = run.table()
    seen = {
        Path(name).absolute()
        for name, split in zip(table.sources, table.splits, strict=True)
        if split in {"train", "validation"}
    }
    if known := [name for name in data.table.sources if Path(name).absolute() in seen]:
        raise DataError(
            f"--on: expected images that the run has not seen, got {len(known):,} of its training or validation images "
            f"in {source}, such as {known[0]}. Leave them out."
        )
