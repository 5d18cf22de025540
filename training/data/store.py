"""Store the images of a run at the members' input size, decoded once."""

from __future__ import annotations

import csv
import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from plurum.conventions import IMAGENET_MEAN, IMAGENET_STD
from plurum.errors import OutputError
from plurum.files import atomic_folder
from plurum.images import content_box
from plurum.run import FOLD_COLUMN, OTHER_COLUMN, DataMetadata, Run
from plurum.settings.training import TrainSettings
from plurum.spec import ImageSpec, write_metadata
from plurum.training.data.folds import draw_folds
from plurum.training.data.labelled_images import DecodedImage, LabelledImages
from plurum.training.data.reduction import with_reduced_decoding
from plurum.training.data.report import data_report, report_warnings, usable_rows
from plurum.training.data.window_fit import fit_window

__all__ = ["fingerprint_from_pixels", "image_spec", "store_data"]

_LOG = logging.getLogger(__name__)

_BLOCK = 1024

Box = tuple[int, int, int, int]
Triple = tuple[float, float, float]
# Mean and standard deviation per channel.
Normalisation = tuple[Triple, Triple]


def store_data(
    run: Run, data: LabelledImages, settings: TrainSettings, normalisation: Normalisation | None = None
) -> DataMetadata:
    """Fill the run's data folder atomically, unless it already holds the same data, and return its `contract.json`.

    Percentiles of a window are fitted to the training images. Mean and std are measured on the training images' pixels,
    without padding; with pretrained weights they are those of `normalisation`, by default ImageNet's. Large JPEGs are
    decoded at a reduced scale if that leaves their pixels nearly unchanged. Unreadable images are left out if `data`
    allows it. `report.json` lists them. With folds, the readable training images get theirs.

    Raises:
        DataError: some images are unreadable, a window can't be fitted, or a class is too small for the folds.
        OutputError: the folder holds other data, or can't be written.
    """
    if (run.data_folder / "contract.json").is_file():
        found = run.data()
        if found.source_fingerprint != data.fingerprint or not _holds_same_images(run, data):
            raise OutputError(
                f"{data.name} is not the data that {run.path} was started with: its files, sizes or times changed. "
                f"Name another --out, or start over with --fresh"
            )
        return found
    data = fit_window(data, settings.window)
    image = with_reduced_decoding(data, image_spec(data, settings, normalisation))
    with atomic_folder(run.data_folder, private=True) as folder:
        pixels, data, decoded = _store_pixels(folder, data, image)
        if settings.folds is not None:
            equal = [one.sha256 for one in decoded]
            folds = draw_folds(data.table, equal, data.classes, settings.folds, settings.seed)
            data = replace(data, table=replace(data.table, folds=folds))
        if not settings.pretrained:
            boxes = [_content(one, image) for one in decoded]
            mean, std = _moments(pixels, boxes, data.table.rows("train"))
            image = image.model_copy(update={"mean": mean, "std": std})
            # Padding has the colour of the mean, which was unknown until now.
            _fill_padding(pixels, boxes, image)
        _write_items(folder / "items.csv", data)
        metadata = DataMetadata(
            source=data.name,
            fingerprint=fingerprint_from_pixels(pixels, data.table.labels),
            source_fingerprint=data.fingerprint,
            classes=data.classes,
            image=image,
        )
        write_metadata(folder / "contract.json", metadata)
    _LOG.info("%s: %d images of %d x %d stored", data.name, len(data), image.width, image.height)
    return metadata


def _store_pixels(
    folder: Path, data: LabelledImages, image: ImageSpec
) -> tuple[npt.NDArray[np.uint8], LabelledImages, list[DecodedImage]]:
    """Write `pixels.npy` and `report.json`, and return the pixels, the readable images and their properties."""
    pixels = _create_pixel_file(folder / "pixels.npy", len(data), image)
    decoded = data.decode(image, pixels)
    rows = usable_rows(data, decoded)
    report = data_report(data, decoded)
    (folder / "report.json").write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
    for line in (*report.notes, *report_warnings(report)):
        _LOG.warning("%s: %s", data.name, line)
    if len(rows) < len(data):
        everything, pixels = pixels, _create_pixel_file(folder / "usable.npy", len(rows), image)
        for start in range(0, len(rows), _BLOCK):
            pixels[start : start + _BLOCK] = everything[rows[start : start + _BLOCK]]
        (folder / "usable.npy").replace(folder / "pixels.npy")
        data = data.select(rows)
    pixels.flush()
    return pixels, data, [decoded[row] for row in rows]


def _create_pixel_file(path: Path, images: int, image: ImageSpec) -> np.memmap[tuple[int, ...], np.dtype[np.uint8]]:
    """Return a new file's memory map, uint8 `[images, height, width, 3]`.

    Raises:
        OSError: the disk is full, or the file can't be written.
    """
    shape = (images, image.height, image.width, 3)
    pixels = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    # Allocate the file's blocks now: on a full disk, a write into the map would end the process with a bus error.
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return pixels


def _holds_same_images(run: Run, data: LabelledImages) -> bool:
    """Return True if all images of the run are in `data`, in the same splits; unreadable images may be missing."""
    splits = dict(zip(data.table.sources, data.table.splits, strict=True))
    stored = run.table()
    return all(splits.get(source) == split for source, split in zip(stored.sources, stored.splits, strict=True))


def image_spec(data: LabelledImages, settings: TrainSettings, normalisation: Normalisation | None = None) -> ImageSpec:
    """Return the image spec for `data`; mean and std are `normalisation`, by default ImageNet's.

    Without pretrained weights, `store_data` replaces them by those that it measures. The window is that of `data`:
    percentiles must be fitted before.
    """
    mean, std = normalisation or (IMAGENET_MEAN, IMAGENET_STD)
    size = settings.image_size
    if size is None:
        # Most networks halve their input five times, so 32 pixels leave one cell.
        size = 224 if data.side is None else max(32, -(-data.side // 32) * 32)
    return ImageSpec(
        height=size, width=size, colour=settings.colour, resize=settings.resize, mean=mean, std=std, window=data.window
    )


def _content(decoded: DecodedImage, image: ImageSpec) -> Box:
    """Return the box of an image within its stored pixels: left, top, right, bottom."""
    if image.resize != "pad":
        return 0, 0, image.width, image.height
    return content_box((decoded.width, decoded.height), image.height, image.width)


def _fill_padding(pixels: npt.NDArray[np.uint8], boxes: Sequence[Box], image: ImageSpec) -> None:
    """Give everything outside of the images' boxes the colour of padding."""
    if image.resize != "pad":
        return
    fill = image.resizing["fill"]
    for one, (left, top, right, bottom) in zip(pixels, boxes, strict=True):
        one[:top], one[bottom:], one[:, :left], one[:, right:] = (fill,) * 4


def _moments(
    pixels: npt.NDArray[np.uint8], boxes: Sequence[Box], rows: npt.NDArray[np.int64]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel of the images `rows`, on a scale of 0 to 1."""
    counts = np.zeros((3, 256), dtype=np.int64)
    for row in rows:
        left, top, right, bottom = boxes[row]
        content = pixels[row, top:bottom, left:right]
        for channel in range(3):
            counts[channel] += np.bincount(content[..., channel].ravel(), minlength=256)
    shares = counts / counts.sum(axis=1, keepdims=True)
    values = np.arange(256) / 255
    mean = shares @ values
    # At least 1/255, so that a constant channel is not divided by 0.
    std = np.sqrt(np.maximum(shares @ values**2 - mean**2, 1 / 255**2))
    return tuple(mean.tolist()), tuple(std.tolist())


def fingerprint_from_pixels(pixels: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64]) -> str:
    """Return the SHA-256 over labels and pixels."""
    digest = hashlib.sha256(labels.tobytes())
    for start in range(0, len(pixels), _BLOCK):
        digest.update(np.ascontiguousarray(pixels[start : start + _BLOCK]).data)
    return digest.hexdigest()


def _write_items(path: Path, data: LabelledImages) -> None:
    table = data.table
    columns = {} if table.folds is None else {FOLD_COLUMN: tuple(map(str, table.folds.tolist()))}
    columns |= {OTHER_COLUMN + name: cells for name, cells in table.columns.items()}
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "source", "label", "patient", "split", *columns])
        for index, source in enumerate(table.sources):
            label = data.classes[table.labels[index]]
            others = (cells[index] for cells in columns.values())
            writer.writerow([index, source, label, table.patients[index], table.splits[index], *others])
