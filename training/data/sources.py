"""Load labelled images from the data source that the user names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from plurum.dicom_files import PatientNames
from plurum.errors import DataError, SettingsError
from plurum.images.nifti import NIFTI_SUFFIXES, NIFTI_TEXT
from plurum.images.windows import WindowRule
from plurum.manifests import fetch_data
from plurum.remote_files import display_name, is_uri
from plurum.settings.training import Percentiles, TrainSettings
from plurum.training.data.archives import images_from_archive
from plurum.training.data.arrays import DIGITS, images_from_digits
from plurum.training.data.folders import files_from_folder
from plurum.training.data.folds import merge_splits
from plurum.training.data.idx import holds_idx, images_from_idx
from plurum.training.data.labelled_files import images_from_files, with_dicom_patients
from plurum.training.data.labelled_images import LabelledImages
from plurum.training.data.manifests import files_from_manifest
from plurum.training.data.splits import set_aside
from plurum.training.data.tiles import Tiling

__all__ = ["load_data", "load_training_data"]

_TABLES = (".tsv", ".tab", ".txt", ".xls", ".xlsx", ".ods", ".parquet", ".json", ".jsonl")


def load_data(  # noqa: PLR0913 - one parameter per option
    source: str,
    seed: int = 0,
    *,
    tile_size: int | None = None,
    max_tiles: int = 16,
    skip_unreadable: bool = False,
    certification: float = 0.0,
    window: WindowRule | Percentiles | None = None,
    names: PatientNames | None = None,
) -> LabelledImages:
    """Return the labelled images of `source`; images are decoded later, except to choose tiles.

    `source` is one of:

    - `digits`: scikit-learn's 1,797 handwritten digits, 8 × 8 pixels.
    - A `.npz` file in MedMNIST's format, with its own splits.
    - A `.csv` file with a row per image: path, label and optionally patient and split.
    - A folder with MNIST's four IDX files, plain or `.gz`.
    - A folder with a folder per class: `CLASS/image.png`, or `CLASS/PATIENT/image.png` if patients are known.
      Folders named `train`, `val` and `test` may contain the class folders.
    - The address of one of these in a store, such as `s3://BUCKET/FOLDER`. A manifest may also list addresses.

    Args:
        source: Name or path of the data.
        seed: Random seed of the splits, if the source has none.
        tile_size: Side of the tiles that larger images are cut into, in pixels of the file; None keeps images whole.
        max_tiles: Largest number of tiles per image; those with the most tissue are kept.
        skip_unreadable: If True, leave out unreadable images instead of refusing the data.
        certification: Fraction of each class's training images to set aside for calibration and certification.
        window: Window for grey images of more than 8 bits and DICOM; None applies that of each DICOM file. `fit_window`
            fits percentiles.
        names: Names of the patients of DICOM files whose patient the source does not state; by default, pseudonyms.

    Raises:
        DataError: `source` does not exist, is not image data, or can't be learnt from.
        SettingsError: invalid tile settings.
        MissingExtraError: scikit-learn, tifffile or pydicom is not installed.
    """
    tiling = Tiling(tile_size, max_tiles, keeps_bits=window is not None) if tile_size is not None else None
    data = _load(fetch_data(source), seed, tiling, names or PatientNames(), skip=skip_unreadable)
    # Images are named by their addresses, not by their places in the cache.
    data = replace(data, table=replace(data.table, sources=tuple(map(display_name, data.table.sources))))
    if is_uri(source):
        data = replace(data, name=source)
    if not isinstance(window, Percentiles):
        data = replace(data, window=window)
    if not certification:
        return data
    table = data.table
    splits = set_aside(table.labels, table.patients, table.splits, data.classes, seed, certification)
    return replace(data, table=replace(table, splits=splits))


def load_training_data(source: str, settings: TrainSettings, names: PatientNames) -> LabelledImages:
    """Return the labelled images of `source` as `load_data` does, by the settings of a training.

    With folds, training and validation images are all training images, and calibration images validate.
    """
    data = load_data(
        source,
        settings.seed,
        tile_size=settings.tile_size,
        max_tiles=settings.max_tiles,
        skip_unreadable=settings.skip_unreadable,
        certification=settings.certification,
        window=settings.window,
        names=names,
    )
    if settings.folds is None:
        return data
    return replace(data, table=replace(data.table, splits=merge_splits(data.table.splits)))


def _load(source: str, seed: int, tiling: Tiling | None, names: PatientNames, *, skip: bool) -> LabelledImages:
    path = Path(source)
    if arrays := _arrays(source, seed):
        if tiling:
            raise SettingsError(f"--tile-size: expected image files, got arrays in {source}. Leave the option out")
        return replace(arrays, skip_unreadable=skip)
    if path.is_dir():
        files = files_from_folder(path)
    elif path.is_file() and path.suffix.lower() == ".csv":
        files = files_from_manifest(path)
    else:
        what = f"{source} is not image data" if path.exists() else f"{source} does not exist"
        if path.exists() and path.suffix.lower() in _TABLES:
            what = f"{source} is a table in an unsupported format; save it as CSV UTF-8 (.csv)"
        if path.name.lower().endswith(NIFTI_SUFFIXES):
            what = f"{source}: {NIFTI_TEXT}"
        raise DataError(
            f"{what}: name a folder with a folder per class or with MNIST's files, a .csv that lists images, a "
            f"MedMNIST .npz file, or the word {DIGITS!r}"
        )
    return images_from_files(with_dicom_patients(files, names), seed, tiling, skip=skip)


def _arrays(source: str, seed: int) -> LabelledImages | None:
    path = Path(source)
    if source == DIGITS:
        return images_from_digits(seed)
    if path.is_dir() and holds_idx(path):
        return images_from_idx(path, seed)
    if path.is_file() and path.suffix.lower() == ".npz":
        return images_from_archive(path)
    return None
