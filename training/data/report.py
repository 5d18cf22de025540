"""Report on a data set before training: counts, sizes, duplicates, leaks between splits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from plurum.errors import DataError, MetadataError
from plurum.regular_files import read_regular
from plurum.run import Run, Split
from plurum.spec import Metadata
from plurum.training.data.labelled_images import DecodedImage, LabelledImages, check_readable
from plurum.training.data.splits import HELD_OUT, SHARES, check_splits, present_splits

__all__ = [
    "DataReport",
    "ImageCounts",
    "PixelRange",
    "ReportedImage",
    "UnreadableImage",
    "data_report",
    "read_data_report",
    "report_lines",
    "report_warnings",
    "usable_rows",
]

_NAMED = 3
# A report names every unreadable image, so it can be large.
_MAX_BYTES = 1 << 30


class ImageCounts(Metadata):
    """Numbers of images and patients in a class and split.

    Attributes:
        images: Number of readable images.
        patients: Number of known patients.
    """

    images: int
    patients: int


class PixelRange(Metadata):
    """Range of a side over all images, in pixels."""

    lowest: int
    median: float
    highest: int


class ReportedImage(Metadata):
    """Source, label and split of one image."""

    source: str
    label: str
    split: Split


class UnreadableImage(Metadata):
    """An unreadable image, and the reason."""

    source: str
    reason: str


class DataReport(Metadata):
    """Report of `plurum data`, stored as `RUN/data/report.json`.

    Two images are equal if all their decoded pixels are equal before resizing. A copy in another lossless format is
    equal; a copy with new lossy compression is not.

    Attributes:
        version: Version of the file format.
        source: Data source, as named by the user.
        classes: Class names, in the order of the labels.
        counts: Counts of readable images by class and split.
        splits: Counts of readable images by split, over all classes.
        width: Range of the widths of images, or of tiles.
        height: Range of the heights of images, or of tiles.
        duplicates: Number of images per split that equal an earlier image of the split.
        across_splits: Groups of equal images that are in more than one split.
        other_label: Groups of equal images with more than one label.
        divided_patients: Splits of each patient who is in more than one.
        unreadable: All unreadable images.
        nearly_black: Images with no value above 15 of 255, as with 12 bits in 16-bit files.
        notes: Remarks on how the source was read and what was left out, one sentence each.
    """

    version: Literal[1] = 1
    source: str
    classes: tuple[str, ...]
    counts: dict[str, dict[Split, ImageCounts]]
    splits: dict[Split, ImageCounts]
    width: PixelRange
    height: PixelRange
    duplicates: dict[Split, int]
    across_splits: tuple[tuple[ReportedImage, ...], ...]
    other_label: tuple[tuple[ReportedImage, ...], ...]
    divided_patients: dict[str, tuple[Split, ...]]
    unreadable: tuple[UnreadableImage, ...]
    nearly_black: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def data_report(data: LabelledImages, decoded: Sequence[DecodedImage]) -> DataReport:
    """Return the report on the images.

    Args:
        data: Labelled images.
        decoded: Properties of each image, in the same order.

    Raises:
        DataError: no image is readable.
    """
    rows = _readable(decoded)
    if not rows:
        check_readable(data, decoded)
    table = data.table
    of_split = {split: [row for row in rows if table.splits[row] == split] for split in present_splits(table.splits)}
    groups = _group_equal_images(data, decoded, rows)
    return DataReport(
        source=data.name,
        classes=data.classes,
        counts={
            name: {
                split: _count(data, [row for row in some if table.labels[row] == label])
                for split, some in of_split.items()
            }
            for label, name in enumerate(data.classes)
        },
        splits={split: _count(data, some) for split, some in of_split.items()},
        width=_range([decoded[row].width for row in rows]),
        height=_range([decoded[row].height for row in rows]),
        duplicates={split: len(some) - len({decoded[row].sha256 for row in some}) for split, some in of_split.items()},
        across_splits=tuple(group for group in groups if len({item.split for item in group}) > 1),
        other_label=tuple(group for group in groups if len({item.label for item in group}) > 1),
        divided_patients=_divided_patients(data, rows),
        unreadable=tuple(
            UnreadableImage(source=source, reason=one.fault)
            for source, one in zip(table.sources, decoded, strict=True)
            if one.fault
        ),
        nearly_black=tuple(table.sources[row] for row in rows if decoded[row].is_nearly_black),
        notes=data.notes,
    )


def usable_rows(data: LabelledImages, decoded: Sequence[DecodedImage]) -> npt.NDArray[np.int64]:
    """Return the indices of the readable images, int64.

    Raises:
        DataError: some images are unreadable and may not be left out, or a split loses a class without them.
    """
    if not data.skip_unreadable:
        check_readable(data, decoded)
    rows = np.array(_readable(decoded), dtype=np.int64)
    if len(rows) < len(data):
        kept = data.table.select(rows)
        try:
            check_splits(kept.labels, kept.patients, kept.splits, data.classes)
        except DataError as error:
            left_out = _count_text(len(data) - len(rows), "image")
            raise DataError(f"without {left_out} that can't be read, {error}") from error
    return rows


def read_data_report(run: Run) -> DataReport:
    """Return the report that `plurum train` wrote into a run.

    Raises:
        MetadataError: the report is missing or invalid.
    """
    path = run.data_folder / "report.json"
    try:
        return DataReport.model_validate_json(read_regular(path, _MAX_BYTES))
    except OSError as error:
        raise MetadataError(f"{path} can't be read: {error.strerror}") from error
    except ValidationError as error:
        raise MetadataError(f"{path} is not a data report of version 1: {error.errors()[0]['msg']}") from error


def report_lines(report: DataReport) -> list[str]:
    """Return the report in a few lines, with the warnings at the end."""
    total = sum(count.images for count in report.splits.values())
    by_split = ", ".join(f"{split} {count.images:,}" for split, count in report.splits.items())
    lines = [f"{total:,} images of {len(report.classes)} classes: {by_split}"]
    if patients := {split: count.patients for split, count in report.splits.items() if count.patients}:
        lines.append("patients: " + ", ".join(f"{split} {number:,}" for split, number in patients.items()))
    lines.append(f"width {_range_text(report.width)}, height {_range_text(report.height)} pixels")
    warnings = report_warnings(report)
    if not report.across_splits and not report.divided_patients:
        lines.append("no image is in two splits" + (", and no patient" if patients else ""))
    if repeated := {split: number for split, number in report.duplicates.items() if number}:
        lines.append("repeated within " + ", ".join(f"{split} {number:,}" for split, number in repeated.items()))
    return [*lines, *report.notes, *warnings]


def report_warnings(report: DataReport) -> list[str]:
    """Return one line per problem of the data."""
    lines = []
    if groups := report.across_splits:
        lines.append(
            f"{_count_text(len(groups), 'image')} in more than one split, which inflates every score: "
            f"{_groups_text(groups)}"
        )
    if report.divided_patients:
        named = [f"{name} ({', '.join(found)})" for name, found in report.divided_patients.items()]
        lines.append(
            f"{_count_text(len(named), 'patient')} in more than one split, which inflates every score: "
            f"{_first_text(named)}"
        )
    if groups := report.other_label:
        lines.append(
            f"{_count_text(len(groups), 'image')} with more than one label: {_groups_text(groups, label=True)}"
        )
    if report.unreadable:
        named = [f"{one.source} ({one.reason})" for one in report.unreadable]
        lines.append(f"{_count_text(len(named), 'image')} that can't be read: {_first_text(named)}")
    if report.nearly_black:
        lines.append(
            f"{_count_text(len(report.nearly_black), 'image')} nearly black, with no value above 15 of 255, as with 12 "
            f"bits in a 16-bit file; if so, give --window 2048,4096 or --window 0.1%,99.9%: "
            f"{_first_text(report.nearly_black)}"
        )
    return lines


def _readable(decoded: Sequence[DecodedImage]) -> list[int]:
    return [row for row, one in enumerate(decoded) if not one.fault]


def _group_equal_images(
    data: LabelledImages, decoded: Sequence[DecodedImage], rows: Sequence[int]
) -> list[tuple[ReportedImage, ...]]:
    """Return every group of equal images, in the order of their first image."""
    found: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        found[decoded[row].sha256].append(row)
    table = data.table
    return [
        tuple(
            ReportedImage(source=table.sources[row], label=data.classes[table.labels[row]], split=table.splits[row])
            for row in same
        )
        for same in found.values()
        if len(same) > 1
    ]


def _divided_patients(data: LabelledImages, rows: Sequence[int]) -> dict[str, tuple[Split, ...]]:
    where: dict[str, set[Split]] = defaultdict(set)
    for row in rows:
        if patient := data.table.patients[row]:
            where[patient].add(data.table.splits[row])
    return {
        patient: tuple(split for split in (*SHARES, *HELD_OUT) if split in found)
        for patient, found in where.items()
        if len(found) > 1
    }


def _count(data: LabelledImages, rows: Sequence[int]) -> ImageCounts:
    return ImageCounts(images=len(rows), patients=len({data.table.patients[row] for row in rows} - {""}))


def _range(values: Sequence[int]) -> PixelRange:
    return PixelRange(lowest=min(values), median=float(np.median(values)), highest=max(values))


def _range_text(found: PixelRange) -> str:
    if found.lowest == found.highest:
        return f"{found.lowest:,}"
    return f"{found.lowest:,} to {found.highest:,} (median {found.median:,g})"


def _count_text(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _groups_text(groups: Sequence[Sequence[ReportedImage]], *, label: bool = False) -> str:
    return _first_text(
        [
            " = ".join(
                f"{item.source} ({item.label if label else item.split})" for item in _representatives(group, label)
            )
            for group in groups
        ]
    )


def _representatives(group: Sequence[ReportedImage], label: bool) -> list[ReportedImage]:
    """Return the first image of each label, or of each split, in a group of equal images."""
    first: dict[str, ReportedImage] = {}
    for item in group:
        first.setdefault(item.label if label else item.split, item)
    return list(first.values())


def _first_text(named: Sequence[str]) -> str:
    more = f"; and {len(named) - _NAMED:,} more" if len(named) > _NAMED else ""
    return "; ".join(named[:_NAMED]) + more
