"""CSV manifests: columns, paths, and a one-line message for each fault."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tifffile

from plurum.errors import DataError
from plurum.run import Run
from plurum.training import TrainSettings, load_data
from plurum.training.data.store import store_data
from tests.training.data_files import write_image


def write_manifest(folder: Path, header: str, rows: Sequence[str], name: str = "images.csv") -> str:
    path = folder / name
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """20 images, a/0.png to a/19.png."""
    for number in range(20):
        write_image(tmp_path / "a" / f"{number}.png", number)
    return tmp_path


def rows_of(count: int = 20) -> list[str]:
    return [f"a/{number}.png,{'CE' if number % 2 else 'LAA'}" for number in range(count)]


def test_paths_and_labels_are_enough(folder: Path) -> None:
    data = load_data(write_manifest(folder, "path,label", rows_of()))
    assert data.classes == ("CE", "LAA")
    assert data.table.labels.tolist() == [1, 0] * 10
    assert data.table.sources[3] == str(folder / "a" / "3.png")
    assert data.read_encoded(3) == (folder / "a" / "3.png").read_bytes()
    assert {split: len(data.table.rows(split)) for split in ("train", "validation", "test")} == {
        "train": 12,
        "validation": 4,
        "test": 4,
    }


def test_other_names_other_columns_and_a_byte_order_mark_are_read(folder: Path) -> None:
    rows = [f"{number},{row},p{number // 2}" for number, row in enumerate(rows_of())]
    path = write_manifest(folder, "﻿Number, File ,TARGET,Subject_ID", rows)
    table = load_data(path).table
    assert table.patients == tuple(f"p{number // 2}" for number in range(20))
    assert table.labels.tolist() == [1, 0] * 10


def test_patients_are_not_divided(folder: Path) -> None:
    rows = [f"{row},p{number // 4 * 2 + number % 2}" for number, row in enumerate(rows_of())]
    table = load_data(write_manifest(folder, "path,label,patient", rows)).table
    where = defaultdict(set)
    for patient, split in zip(table.patients, table.splits, strict=True):
        where[patient].add(split)
    assert len(where) == 10
    assert all(len(found) == 1 for found in where.values())
    assert {split for found in where.values() for split in found} == {"train", "validation", "test"}


def test_given_splits_are_kept(folder: Path) -> None:
    words = ["Train", "training", "VAL", "valid", "validation", "validation", "test", "testing"]
    given = [*words, *["train"] * 12]
    rows = [f"{row},{word}" for row, word in zip(rows_of(), given, strict=True)]
    table = load_data(write_manifest(folder, "path,label,split", rows)).table
    assert table.splits == ("train",) * 2 + ("validation",) * 4 + ("test",) * 2 + ("train",) * 12


def test_other_columns_are_kept_in_the_run(folder: Path, tmp_path: Path) -> None:
    rows = [f"{row},{'north' if number < 9 else ''},b{number},{number}" for number, row in enumerate(rows_of())]
    data = load_data(write_manifest(folder, "path,label,Site, index ,label2", rows))
    expected = {
        "Site": ("north",) * 9 + ("",) * 11,
        "index": tuple(f"b{number}" for number in range(20)),
        "label2": tuple(map(str, range(20))),
    }
    assert data.table.columns == expected
    run = Run(tmp_path / "run")
    store_data(run, data, TrainSettings(archs=("a",), image_size=16))
    assert run.table().columns == expected
    assert run.table().select(np.arange(3, 11)).columns["Site"] == expected["Site"][3:11]


def test_a_manifest_may_set_images_aside(folder: Path) -> None:
    words = ["train"] * 8 + ["val"] * 4 + ["test"] * 4 + ["Calibration"] * 2 + ["certification"] * 2
    rows = [f"{row},{word}" for row, word in zip(rows_of(), words, strict=True)]
    path = write_manifest(folder, "path,label,split", rows)
    table = load_data(path).table
    assert table.splits[16:] == ("calibration",) * 2 + ("certification",) * 2
    with pytest.raises(DataError, match="--certification: expected data without the split"):
        load_data(path, certification=0.2)


def test_without_validation_a_fifth_of_train_is_drawn(folder: Path) -> None:
    rows = [f"{row},{'train' if number < 10 else 'test'}" for number, row in enumerate(rows_of())]
    table = load_data(write_manifest(folder, "path,label,split", rows)).table
    assert table.splits[10:] == ("test",) * 10
    assert sorted(table.splits[:10]) == ["train"] * 8 + ["validation"] * 2
    assert {table.labels[row] for row in table.rows("validation")} == {0, 1}


def test_a_patient_in_two_splits_is_named(folder: Path) -> None:
    given = ["train", "train", "validation", "validation", "test", "test"] + ["train"] * 14
    rows = [
        f"{row},{'p0' if number in {0, 4} else f'q{number}'},{word}"
        for number, (row, word) in enumerate(zip(rows_of(), given, strict=True))
    ]
    with pytest.raises(DataError, match=r"patient 'p0' is in train and test, .*the same split"):
        load_data(write_manifest(folder, "path,label,patient,split", rows))


def test_the_competitions_file_is_read_as_it_is(tmp_path: Path) -> None:
    """Mayo Clinic's STRIP AI: ids instead of paths, slides in a folder beside the CSV file."""
    rows = []
    for number in range(12):
        name = f"{number:06x}_{number % 2}"
        write_image(tmp_path / "train" / f"{name}.tif", number)
        rows.append(f"{name},11,{name[:6]},{number % 2},{'LAA' if number % 3 else 'CE'}")
    header = "image_id,center_id,patient_id,image_num,label"
    data = load_data(write_manifest(tmp_path, header, rows, "train.csv"))
    assert data.table.sources[5] == str(tmp_path / "train" / "000005_1.tif")
    assert data.table.patients[5] == "000005"
    # Slides directly beside the CSV file work too.
    for file in (tmp_path / "train").iterdir():
        file.rename(tmp_path / file.name)
    assert load_data(str(tmp_path / "train.csv")).table.sources[5] == str(tmp_path / "000005_1.tif")


def test_tiles_of_a_file_without_a_patient_are_not_divided(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for number in range(10):
        tifffile.imwrite(tmp_path / f"{number}.tif", rng.integers(20, 200, (64, 64, 3), dtype=np.uint8))
        rows.append(f"{number}.tif,{'CE' if number % 2 else 'LAA'},{'p' if number == 9 else ''}")
    path = write_manifest(tmp_path, "path,label,patient", rows)
    data = load_data(path, tile_size=32, max_tiles=3)
    table = data.table
    assert len(data) == 30
    assert table.patients == tuple(f"{number}.tif" for number in range(9) for _ in range(3)) + ("p",) * 3
    assert len(set(zip(table.patients, table.splits, strict=True))) == 10
    assert table.sources[4].endswith("/1.tif#xywh=32,0,32,32")
    assert load_data(path, tile_size=32, max_tiles=3).fingerprint == data.fingerprint
    assert load_data(path, tile_size=32, max_tiles=2).fingerprint != data.fingerprint


def test_the_fingerprint_follows_labels_and_patients(folder: Path) -> None:
    rows = [f"{row},p{number}" for number, row in enumerate(rows_of())]
    prints = {
        load_data(write_manifest(folder, "path,label,patient", changed)).fingerprint
        for changed in (rows, ["a/0.png,CE,p0", *rows[1:]], ["a/0.png,LAA,p9", *rows[1:]])
    }
    assert len(prints) == 3


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        ("path,diagnosis", ["a/0.png,CE"], r"no column label \(or class, target\); it has: path, diagnosis"),
        ("a,b", ["1,2"], r"no column path \(or image_path, .*\) and none label"),
        ("", [], "no column path .*it has: none"),
        ("path,label", [], "has no row below its header"),
        ("path,label", ["a/0.png,CE", "a/1.png,", "a/2.png"], "line 3 has no label; and 1 more like it"),
        ("path,label", [",CE"], "line 2 has no path"),
        ("path,label,split", ["a/0.png,CE,holdout"], "line 2 has the split 'holdout'; expected train, validation"),
        ("path,label,split", ["a/0.png,CE,train", "a/1.png,CE,"], "line 3 has the split ''"),
        (
            "path,label",
            ["a/0.png,CE", "a/98.png,CE", "a/99.png,CE"],
            "line 3 names a/98.png, which does not exist; and 1",
        ),
        ("path,label", ["a/0.png,CE", "a/1.png,CE", "a/../a/0.png,LAA"], "line 4 lists .* a second time, as 'LAA' and"),
        ("path,label", ["a/0.png,CE", "a/1.png,CE"], "expected at least 2 classes, got 'CE'"),
        ("path,label", ["a/0.png,CE", "a/1.png,C\x07E"], r"a class named 'C\\x07E'"),
        ("path,label", ["a/\x07.png,CE"], r"names 'a/\\x07.png', with unprintable"),
        ("path,label", ['"a/0.png,CE'], "is not a CSV in UTF-8"),
        ("path,label", ["a/0.png,CE", "a/1.png,LAA"], "class 'CE' has 1 image, and none for"),
        ("path,label", ["a/0.png,CE", f"{'a' * 300}.png,CE"], r"line 3 names a{300}\.png, which does not exist"),
        ("path,label", ["a/0.png,CE", f"{'a/' * 3000}b.png,CE"], r"line 3 names .*b\.png, which does not exist"),
        ("path,label,Label", ["a/0.png,CE,LAA"], "expected one column label, got 2"),
        ("path,label,path", ["a/0.png,CE,a/1.png"], "expected one column path, got 2"),
    ],
)
def test_each_fault_gives_one_line(folder: Path, header: str, rows: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_data(write_manifest(folder, header, rows))
    assert "\n" not in str(caught.value)


def test_other_encodings_are_refused(folder: Path) -> None:
    (folder / "images.csv").write_bytes("path,label\nä.png,CE".encode("latin-1"))
    with pytest.raises(DataError, match="is not a CSV in UTF-8"):
        load_data(str(folder / "images.csv"))
