"""Data sources, and messages for invalid ones."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from plurum.errors import DataError
from plurum.training import load_data
from tests.training.data_files import COUNTS, digit_arrays, save_npz, write_classes, write_image


def test_digits_are_scikit_learns() -> None:
    data = load_data("digits")
    assert len(data) == 1797
    assert data.classes[:3] == ("zero", "one", "two")
    assert data.side == 8
    assert data.table.sources[17] == "digits/17"
    assert {split: len(data.table.rows(split)) for split in ("train", "validation", "test")} == {
        "train": 1150,
        "validation": 287,
        "test": 360,
    }


def test_an_archive_keeps_its_own_splits(archive: Path) -> None:
    data = load_data(str(archive))
    arrays = digit_arrays()
    assert data.classes == ("0", "1", "2", "3")
    assert data.table.rows("validation").tolist() == list(range(160, 240))
    assert data.table.labels.tolist() == [
        int(arrays[f"{part}_labels"][i, 0]) for part in COUNTS for i in range(COUNTS[part])
    ]
    assert data.table.sources[165] == f"{archive}/val/5"


def test_an_archive_of_colour_images_is_read(tmp_path: Path) -> None:
    arrays = digit_arrays()
    for part in COUNTS:
        arrays[f"{part}_images"] = np.stack([arrays[f"{part}_images"]] * 3, axis=-1)
    save_npz(tmp_path / "a.npz", arrays)
    assert len(load_data(str(tmp_path / "a.npz"))) == 320


Change = dict[str, npt.NDArray[Any] | None]
PIXELS = digit_arrays()["val_images"]
LABELS = digit_arrays()["val_labels"]
NO_THREE = LABELS.copy()
NO_THREE[NO_THREE == 3] = 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"val_labels": None}, r"has no array 'val_labels'"),
        ({"val_images": PIXELS.astype(np.float32)}, r"val_images: expected uint8, 0 to 255, got float32"),
        ({"val_images": np.full(PIXELS.shape, np.nan)}, r"val_images: expected uint8, 0 to 255, got float64"),
        ({"val_images": PIXELS.astype(np.int64)}, r"val_images: expected uint8, 0 to 255, got int64"),
        ({"val_images": PIXELS[:, :, :, None]}, r"val_images: expected shape .*, got \[80, 8, 8, 1\]"),
        ({"val_images": np.zeros((80, 8, 8, 8, 3), np.uint8)}, r"expected shape .*, got \[80, 8, 8, 8, 3\]"),
        ({"val_images": PIXELS[:0], "val_labels": LABELS[:0]}, r"has no val image: the shape is"),
        ({"val_images": PIXELS[:70]}, r"70 val images and 80 val labels"),
        ({"val_images": np.zeros((80, 9, 8), np.uint8)}, r"different shapes: \[160, 8, 8\] and \[80, 9, 8\]"),
        ({"val_labels": LABELS.astype(np.float64)}, r"val_labels: expected integers, one class per image, got float64"),
        ({"val_labels": np.repeat(LABELS, 14, axis=1)}, r"val_labels: expected 1 label per image, got 14"),
        ({"val_labels": LABELS[:, :, None]}, r"val_labels: expected shape \[images, 1\], got \[80, 1, 1\]"),
        ({"val_labels": LABELS + np.uint8(1)}, r"expected labels from 0 to 3, as of its training images, got 4"),
        (
            {"val_labels": LABELS.astype(np.int64) - 1},
            r"expected labels from 0 to 3, as of its training images, got -1",
        ),
        ({"val_labels": NO_THREE}, r"class '3' has \d+ images, and none for validation"),
        (
            {f"{part}_labels": np.zeros((count, 1), np.uint8) for part, count in COUNTS.items()},
            r"expected at least 2 classes, got '0'",
        ),
        ({"val_images": np.array([{}] * 80, dtype=object)}, r"is not a NumPy archive of plain arrays"),
    ],
)
def test_a_wrong_archive_is_refused(tmp_path: Path, change: Change, message: str) -> None:
    arrays = {name: array for name, array in {**digit_arrays(), **change}.items() if array is not None}
    save_npz(tmp_path / "a.npz", arrays)
    with pytest.raises(DataError, match=message):
        load_data(str(tmp_path / "a.npz"))


def test_files_that_are_not_archives_are_refused(archive: Path, tmp_path: Path) -> None:
    array, path = io.BytesIO(), tmp_path / "a.npz"
    np.save(array, PIXELS)
    truncated = archive.read_bytes()[:-400]
    for content in (b"", b"no archive", b"PK\x03\x04 truncated", truncated, array.getvalue()):
        path.write_bytes(content)
        with pytest.raises(DataError, match="is not a NumPy archive"):
            load_data(str(path))


def test_a_folder_per_class_is_read_in_order(tmp_path: Path) -> None:
    write_classes(tmp_path, {"LAA": 5, "CE": 4})
    write_image(tmp_path / "CE" / "Z.JPEG", 7)
    write_image(tmp_path / "CE" / "Z.tif", 7)
    (tmp_path / "CE" / "notes.txt").write_text("no image")
    (tmp_path / "CE" / ".hidden.png").write_text("no image")
    (tmp_path / "CE" / ".thumbnails").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / "README").write_text("no image")
    data = load_data(str(tmp_path))
    assert data.notes == ("not read: 3 hidden or of an operating system, 1 without an extension, 1 .txt",)
    assert data.classes == ("CE", "LAA")
    assert [Path(source).relative_to(tmp_path).as_posix() for source in data.table.sources] == [
        *(f"CE/{name}" for name in ("0.png", "1.png", "2.png", "3.png", "Z.JPEG", "Z.tif")),
        *(f"LAA/{number}.png" for number in range(5)),
    ]
    assert data.table.labels.tolist() == [0] * 6 + [1] * 5
    assert set(data.table.patients) == {""}
    assert data.read_encoded(0) == (tmp_path / "CE" / "0.png").read_bytes()


def test_the_folder_below_the_class_is_the_patient_and_is_never_divided(tmp_path: Path) -> None:
    for label, name in enumerate(("CE", "LAA")):
        for patient in range(4):
            for number in range(1 + 3 * patient):
                write_image(tmp_path / name / f"p{label}{patient}" / "slide" / f"{number}.png", number)
    # A patient with images in both classes is one patient.
    write_image(tmp_path / "LAA" / "p03" / "0.png", 1)
    table = load_data(str(tmp_path)).table
    assert table.patients[0] == "p00"
    assert len(set(table.patients)) == 8
    assert len(set(zip(table.patients, table.splits, strict=True))) == 8


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, "expected a folder per class"),
        ({"CE": 5}, "expected at least 2 folders of classes, got only 'CE'. If its folders are the classes, name"),
        ({"CE": 5, "LAA": 0}, "class 'LAA' has no image"),
        ({"CE": 5, "LAA": 1}, "class 'LAA' has 1 image, and none for validation and test"),
    ],
)
def test_a_folder_without_classes_or_images_is_refused(tmp_path: Path, counts: dict[str, int], message: str) -> None:
    write_classes(tmp_path, counts)
    for name in counts:
        (tmp_path / name).mkdir(exist_ok=True)
    with pytest.raises(DataError, match=message):
        load_data(str(tmp_path))


def test_unprintable_names_are_refused(tmp_path: Path) -> None:
    write_classes(tmp_path, {"CE": 5, "LAA": 5})
    (tmp_path / "CE" / "0.png").rename(tmp_path / "CE" / "a\nb.png")
    with pytest.raises(DataError, match=r"'a\\nb.png' has a name with unprintable characters"):
        load_data(str(tmp_path))
    (tmp_path / "CE" / "a\nb.png").unlink()
    (tmp_path / "CE").rename(tmp_path / "C\nE")
    with pytest.raises(DataError, match=r"a class named 'C\\nE'"):
        load_data(str(tmp_path))


def test_missing_and_unsuitable_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing does not exist: name a folder"):
        load_data(str(tmp_path / "nothing"))
    (tmp_path / "table.txt").write_text("a,b")
    with pytest.raises(DataError, match=r"table\.txt is a table in an unsupported format; save it as CSV"):
        load_data(str(tmp_path / "table.txt"))


def test_the_fingerprint_follows_the_content(archive: Path, tmp_path: Path) -> None:
    assert load_data(str(archive)).fingerprint == load_data(str(archive)).fingerprint
    arrays = digit_arrays()
    arrays["test_images"] = arrays["test_images"].copy()
    arrays["test_images"][3, 4, 5] ^= 1
    save_npz(tmp_path / "a.npz", arrays)
    assert load_data(str(archive)).fingerprint != load_data(str(tmp_path / "a.npz")).fingerprint
    folder = write_classes(tmp_path / "classes", {"CE": 4, "LAA": 4})
    before = load_data(str(folder)).fingerprint
    assert load_data(str(folder)).fingerprint == before
    write_image(folder / "CE" / "0.png", 99, (20, 20))
    assert load_data(str(folder)).fingerprint != before
