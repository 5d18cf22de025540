"""What is to be known of images before anything is learnt from them: counts, sizes, duplicates, leaks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from plurum.errors import ContractError, DataError
from plurum.regular_files import read_regular
from plurum.run import Run, Split
from plurum.training.data.labelled_images import Decoded, LabelledImages, check_readable
from plurum.training.data.splits import SHARES, check_splits

__all__ = [
    "Count",
    "DataReport",
    "Item",
    "Range",
    "Unreadable",
    "data_report",
    "read_data_report",
    "report_lines",
    "report_warnings",
    "usable_rows",
]

_NAMED = 3
# A report names every image that can't be read.
_MAX_BYTES = 1 << 30


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Count(_Part):
    """How many there are in a class and split.

    Attributes:
        images: That can be read.
        patients: That are known; an image without one counts for none.
    """

    images: int
    patients: int


class Range(_Part):
    """Of all images, in pixels."""

    lowest: int
    median: float
    highest: int


class Item(_Part):
    """One image."""

    source: str
    label: str
    split: Split


class Unreadable(_Part):
    """An image that can't be read, and why."""

    source: str
    reason: str


class DataReport(_Part):
    """What `plurum data` says, and `RUN/data/report.json` keeps.

    Images are the same where all their pixels are, as decoded and before they are brought to size: a copy in another
    file format counts, one that was compressed anew does not.

    Attributes:
        source: As the user named it.
        classes: Names, in the order of the labels.
        counts: By class and split; images that can't be read are not in them.
        splits: The same over all classes.
        width: Of the images, tiles where they were cut.
        height: Likewise.
        duplicates: By split: images that are the same as an earlier one of their split.
        across_splits: Images that are the same in several splits, each group with all its images.
        other_label: Images that are the same and have different labels, likewise.
        divided_patients: The splits of each patient who is in more than one.
        unreadable: All images that can't be read.
        nearly_black: Images that show nothing brighter than 15 of 255, as 12 bits in 16-bit files do.
        notes: How the source was read, and what of it was not, a sentence each.
    """

    version: Literal[1] = 1
    source: str
    classes: tuple[str, ...]
    counts: dict[str, dict[Split, Count]]
    splits: dict[Split, Count]
    width: Range
    height: Range
    duplicates: dict[Split, int]
    across_splits: tuple[tuple[Item, ...], ...]
    other_label: tuple[tuple[Item, ...], ...]
    divided_patients: dict[str, tuple[Split, ...]]
    unreadable: tuple[Unreadable, ...]
    nearly_black: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def data_report(data: LabelledImages, decoded: Sequence[Decoded]) -> DataReport:
    """Return what is known of the images.

    Args:
        data: The images.
        decoded: What decoding each of them told.

    Raises:
        DataError: not one can be read.
    """
    rows = _readable(decoded)
    if not rows:
        check_readable(data, decoded)
    table = data.table
    of_split = {split: [row for row in rows if table.splits[row] == split] for split in SHARES}
    groups = _same(data, decoded, rows)
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
        divided_patients=_divided(data, rows),
        unreadable=tuple(
            Unreadable(source=source, reason=one.fault)
            for source, one in zip(table.sources, decoded, strict=True)
            if one.fault
        ),
        nearly_black=tuple(table.sources[row] for row in rows if decoded[row].is_nearly_black),
        notes=data.notes,
    )


def usable_rows(data: LabelledImages, decoded: Sequence[Decoded]) -> npt.NDArray[np.int64]:
    """Return the indices of the images that can be read, int64.

    Raises:
        DataError: some can't and shall not be left out, or a class is in a split no more without them.
    """
    if not data.skip_unreadable:
        check_readable(data, decoded)
    rows = np.array(_readable(decoded), dtype=np.int64)
    if len(rows) < len(data):
        kept = data.table.taken(rows)
        try:
            check_splits(kept.labels, kept.patients, kept.splits, data.classes)
        except DataError as error:
            left_out = _counted(len(data) - len(rows), "image")
            raise DataError(f"without {left_out} that can't be read, {error}") from error
    return rows


def read_data_report(run: Run) -> DataReport:
    """Return the report that `plurum train` left in a run.

    Raises:
        ContractError: there is none, or a broken one.
    """
    path = run.data_folder / "report.json"
    try:
        return DataReport.model_validate_json(read_regular(path, _MAX_BYTES))
    except OSError as error:
        raise ContractError(f"{path} can't be read: {error.strerror}") from error
    except ValidationError as error:
        raise ContractError(f"{path} is no data report of version 1: {error.errors()[0]['msg']}") from error


def report_lines(report: DataReport) -> list[str]:
    """Return the report in a few lines, what is wrong with the data at the end."""
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
    """Return what is wrong with the data, one line each; none where nothing is."""
    lines = []
    if groups := report.across_splits:
        lines.append(
            f"{_counted(len(groups), 'image')} in more than one split, which flatters every score: {_named(groups)}"
        )
    if report.divided_patients:
        named = [f"{name} ({', '.join(found)})" for name, found in report.divided_patients.items()]
        lines.append(
            f"{_counted(len(named), 'patient')} in more than one split, which flatters every score: {_first(named)}"
        )
    if groups := report.other_label:
        lines.append(f"{_counted(len(groups), 'image')} with more than one label: {_named(groups, label=True)}")
    if report.unreadable:
        named = [f"{one.source} ({one.reason})" for one in report.unreadable]
        lines.append(f"{_counted(len(named), 'image')} that can't be read: {_first(named)}")
    if report.nearly_black:
        lines.append(
            f"{_counted(len(report.nearly_black), 'image')} nearly black, with no value above 15 of 255; 12 bits in a "
            f"16-bit file look like this, scale them up to 65,535: {_first(report.nearly_black)}"
        )
    return lines


def _readable(decoded: Sequence[Decoded]) -> list[int]:
    return [row for row, one in enumerate(decoded) if not one.fault]


def _same(data: LabelledImages, decoded: Sequence[Decoded], rows: Sequence[int]) -> list[tuple[Item, ...]]:
    """Return every group of images that are the same, in the order of their first."""
    found: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        found[decoded[row].sha256].append(row)
    table = data.table
    return [
        tuple(
            Item(source=table.sources[row], label=data.classes[table.labels[row]], split=table.splits[row])
            for row in same
        )
        for same in found.values()
        if len(same) > 1
    ]


def _divided(data: LabelledImages, rows: Sequence[int]) -> dict[str, tuple[Split, ...]]:
    where: dict[str, set[Split]] = defaultdict(set)
    for row in rows:
        if patient := data.table.patients[row]:
            where[patient].add(data.table.splits[row])
    return {
        patient: tuple(split for split in SHARES if split in found)
        for patient, found in where.items()
        if len(found) > 1
    }


def _count(data: LabelledImages, rows: Sequence[int]) -> Count:
    return Count(images=len(rows), patients=len({data.table.patients[row] for row in rows} - {""}))


def _range(values: Sequence[int]) -> Range:
    return Range(lowest=min(values), median=float(np.median(values)), highest=max(values))


def _range_text(found: Range) -> str:
    if found.lowest == found.highest:
        return f"{found.lowest:,}"
    return f"{found.lowest:,} to {found.highest:,} (median {found.median:,g})"


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _named(groups: Sequence[Sequence[Item]], *, label: bool = False) -> str:
    return _first(
        [
            " = ".join(f"{item.source} ({item.label if label else item.split})" for item in _differing(group, label))
            for group in groups
        ]
    )


def _differing(group: Sequence[Item], label: bool) -> list[Item]:
    """Return the first image of each label, or of each split, in a group of the same images."""
    first: dict[str, Item] = {}
    for item in group:
        first.setdefault(item.label if label else item.split, item)
    return list(first.values())


def _first(named: Sequence[str]) -> str:
    more = f"; and {len(named) - _NAMED:,} more" if len(named) > _NAMED else ""
    return "; ".join(named[:_NAMED]) + more
