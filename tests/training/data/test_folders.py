"""Folders of images: classes, splits, and messages for other layouts."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plurum.errors import DataError
from plurum.training import load_data
from plurum.training.data.folders import files_from_folder
from plurum.training.data.labelled_images import LabelledImages
from plurum.training.data.splits import split_from_word
from tests.training.data_files import write_classes, write_image

CLASSES = {"CE": 10, "LAA": 10}


def splits_of(data: LabelledImages) -> dict[str, int]:
    return {split: len(data.table.rows(split)) for split in ("train", "validation", "test")}


def write_split(folder: Path, counts: dict[str, int], first: int) -> None:
    for label, (name, count) in enumerate(counts.items()):
        for number in range(count):
            write_image(folder / name / f"{number}.png", first + 100 * label + number)


@pytest.fixture
def divided(tmp_path: Path) -> Path:
    """train, val and test, with two classes each: 8, 4 and 6 images."""
    for number, (name, count) in enumerate({"train": 4, "val": 2, "test": 3}.items()):
        write_split(tmp_path / name, {"CE": count, "LAA": count}, 1000 * number)
    return tmp_path


@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("Train", "VALID", "Test"), ("training", "validation", "testing")]
)
def test_folders_called_like_splits_are_splits(divided: Path, names: tuple[str, str, str]) -> None:
    for before, name in zip(("train", "val", "test"), names, strict=True):
        (divided / before).rename(divided / name)
    data = load_data(str(divided))
    assert data.classes == ("CE", "LAA")
    assert splits_of(data) == {"train": 8, "validation": 4, "test": 6}
    assert set(data.table.patients) == {""}
    for source, split, label in zip(data.table.sources, data.table.splits, data.table.labels, strict=True):
        part, name, _ = Path(source).relative_to(divided).parts
        assert split == dict(zip(names, ("train", "validation", "test"), strict=True))[part]
        assert data.classes[label] == name
    assert data.notes == (
        f"the folders {names[0]}, {names[1]} and {names[2]} are taken as splits, and the folders in them as classes",
    )


def test_patients_below_the_classes_of_splits_are_known_and_held_apart(divided: Path) -> None:
    for split in ("train", "val", "test"):
        for name in ("CE", "LAA"):
            for file in list((divided / split / name).iterdir()):
                patient = divided / split / name / f"{split}-{name}-{file.stem}"
                patient.mkdir()
                file.rename(patient / file.name)
    data = load_data(str(divided))
    assert splits_of(data) == {"train": 8, "validation": 4, "test": 6}
    assert data.table.patients[0] == "train-CE-0"
    (divided / "test" / "CE" / "test-CE-0").rename(divided / "test" / "CE" / "train-CE-0")
    with pytest.raises(DataError, match=r"patient 'train-CE-0' is in train and test, .*the same split"):
        load_data(str(divided))


@pytest.mark.parametrize(("missing", "split"), [("val", "validation"), ("test", "test")])
def test_a_missing_split_is_drawn_from_train_by_patient(divided: Path, missing: str, split: str) -> None:
    shutil.rmtree(divided / missing)
    for name in ("CE", "LAA"):
        for number in range(10):
            for image in range(2):
                write_image(divided / "train" / name / f"p{name}{number}" / f"{image}.png", number * 10 + image)
    data = load_data(str(divided))
    drawn = list(data.table.rows(split))  # type: ignore[arg-type]
    assert len(drawn) == 10
    assert all(Path(data.table.sources[row]).relative_to(divided).parts[0] == "train" for row in drawn)
    where: dict[str, set[str]] = {}
    for patient, one in zip(data.table.patients, data.table.splits, strict=True):
        where.setdefault(patient, set()).add(one)
    assert all(len(found) == 1 for patient, found in where.items() if patient)
    assert f"no images are given for {split}: a fifth of each class of train is drawn" in data.notes


def test_with_train_alone_all_splits_are_drawn(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", CLASSES)
    data = load_data(str(tmp_path))
    assert data.classes == ("CE", "LAA")
    assert all(splits_of(data).values())
    assert data.notes[0].startswith("the folder train is taken as a split, and")


def add_a_folder(folder: Path) -> None:
    write_split(folder / "extra", {"CE": 1, "LAA": 1}, 9000)


def add_valid_beside_val(folder: Path) -> None:
    shutil.copytree(folder / "val", folder / "valid")


def remove_train(folder: Path) -> None:
    shutil.rmtree(folder / "train")


def rename_a_class(folder: Path) -> None:
    (folder / "test" / "LAA").rename(folder / "test" / "large artery")


def add_a_class(folder: Path) -> None:
    write_split(folder / "val", {"other": 1}, 9000)


def spell_a_class_otherwise(folder: Path) -> None:
    (folder / "val" / "LAA").rename(folder / "val" / "laa")


def take_letters_apart(folder: Path) -> None:
    for split in ("train", "val", "test"):
        (folder / split / "LAA").rename(folder / split / ("A\u0308" if split == "val" else "\u00c4"))


def add_a_loose_image(folder: Path) -> None:
    write_image(folder / "test" / "x.png", 9)


def remove_the_classes(folder: Path) -> None:
    for file in list((folder / "test").rglob("*.png")):
        file.rename(folder / "test" / f"{file.parent.name}{file.name}")
    for name in ("CE", "LAA"):
        (folder / "test" / name).rmdir()


def call_classes_like_containers(folder: Path) -> None:
    for split in ("train", "val", "test"):
        (folder / split / "CE").rename(folder / split / "images")


def empty_a_split(folder: Path) -> None:
    shutil.rmtree(folder / "test")
    (folder / "test").mkdir()


def empty_a_class(folder: Path) -> None:
    shutil.rmtree(folder / "test" / "LAA")
    (folder / "test" / "LAA").mkdir()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (add_a_folder, r"has folders named like splits \(test and train and val\) and others \(extra\)\. If the"),
        (add_valid_beside_val, r"has several folders for one split \(test and train and val and valid\); merge"),
        (remove_train, r"has the folders test and val and no folder train"),
        (rename_a_class, r"train has a class 'LAA', and .*test has not; 2 names are in one of them only"),
        (add_a_class, r"val has a class 'other', and .*train has not; 1 name is in one of them only"),
        (spell_a_class_otherwise, r"train has a class 'LAA', and .*val has not; 2 names are in one of them only"),
        (take_letters_apart, r"val has a class 'A\\u0308', and .*train has not; 2 names are in one of them only"),
        (add_a_loose_image, r"test has images outside of class folders \(1\)"),
        (remove_the_classes, r"test has images outside of class folders"),
        (call_classes_like_containers, r"train has a folder 'images' beside LAA, which is hardly a class"),
        (empty_a_split, r"test: expected a folder per class, .*, got none"),
        (empty_a_class, r"class 'LAA' has no image: expected a file in .*test/LAA that ends in"),
    ],
)
def test_splits_that_are_not_clear_are_refused_by_name(
    divided: Path, change: Callable[[Path], None], message: str
) -> None:
    change(divided)
    with pytest.raises(DataError, match=message) as caught:
        load_data(str(divided))
    assert "\n" not in str(caught.value)


def test_classes_that_are_called_like_splits_are_refused_with_a_way_out(tmp_path: Path) -> None:
    write_classes(tmp_path, {"train": 5, "plane": 5})
    with pytest.raises(DataError, match=r"if all are classes, list the images in a \.csv with a column label"):
        load_data(str(tmp_path))
    rows = [f"{name}/{number}.png,{name}" for name in ("train", "plane") for number in range(5)]
    (tmp_path / "images.csv").write_text("\n".join(["path,label", *rows]))
    assert load_data(str(tmp_path / "images.csv")).classes == ("plane", "train")


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("images/{}", r"expected at least 2 folders of classes, got only 'images'. .* name .*/images$"),
        ("CE/{}", r"expected at least 2 folders of classes, got only 'CE'"),
        ("{}/train", r"class 'CE' has a folder 'train' in it, where patients are expected; lay splits"),
        ("{}/images", r"class 'CE' has a folder 'images' in it, where patients are expected"),
        ("{}/fold_3", r"class 'CE' has a folder 'fold_3' in it"),
    ],
)
def test_class_folders_at_another_level_are_named(tmp_path: Path, layout: str, message: str) -> None:
    for name in CLASSES:
        write_classes(tmp_path / layout.format(name), {"p1" if "{}/" in layout else name: 5})
        if "{}/" in layout:
            write_image(tmp_path / layout.format(name) / "0.png", 0)
    with pytest.raises(DataError, match=message):
        load_data(str(tmp_path))


@pytest.mark.parametrize("name", ["masks", "Images", "fold1", "train_set", "test-images", "test2", "data", "holdout"])
def test_folders_that_are_hardly_classes_are_refused(tmp_path: Path, name: str) -> None:
    write_classes(tmp_path, {name: 5, "CE": 5})
    with pytest.raises(DataError, match=rf"has a folder '{name}' beside CE, which is hardly a class"):
        load_data(str(tmp_path))


def test_classes_below_sites_are_told(tmp_path: Path) -> None:
    for site in ("Graz", "Wien"):
        for number in range(5):
            write_image(tmp_path / site / "CE" / f"{number}.png", number)
            write_image(tmp_path / site / "LAA" / f"{number}.png", number)
            write_image(tmp_path / site / "other" / f"{number}.png", number)
    data = load_data(str(tmp_path))
    assert data.notes == ("all classes have the same folders in them (CE, LAA, other), which are taken as patients",)


def test_system_files_are_skipped_and_other_unread_files_are_counted(tmp_path: Path) -> None:
    write_classes(tmp_path, CLASSES)
    for name in ("__MACOSX/CE/._0.png", ".ipynb_checkpoints/0.png", "CE/.ipynb_checkpoints/0.png", "@eaDir/CE/0.png"):
        write_image(tmp_path / name, 0)
    for name in (".DS_Store", "CE/.DS_Store", "CE/Thumbs.db", "LAA/desktop.ini"):
        (tmp_path / name).write_bytes(b"")
    for number in range(12):
        (tmp_path / "CE" / f"{number}.NII").write_bytes(b"")
    for name in ("CE/a.heic", "LAA/b.heic", "LAA/c.heic", "notes.txt", "CE/IM0001"):
        (tmp_path / name).write_bytes(b"")
    write_image(tmp_path / "loose.png", 3)
    data = load_data(str(tmp_path))
    assert len(data) == 20
    assert data.classes == ("CE", "LAA")
    assert set(data.table.patients) == {""}
    (note,) = data.notes
    assert note.startswith("not read: 12 .nii, 8 hidden or of an operating system, 3 .heic, 1 ")
    for one in ("1 outside of the classes' folders", "1 .txt", "1 without an extension"):
        assert one in note


def test_a_class_of_another_file_type_is_refused_with_what_is_there(tmp_path: Path) -> None:
    write_classes(tmp_path, {"CE": 5})
    (tmp_path / "LAA").mkdir()
    for number in range(3):
        (tmp_path / "LAA" / f"{number}.nii").write_bytes(b"")
    with pytest.raises(DataError, match=r"class 'LAA' has no image: .*, but 3 \.nii"):
        load_data(str(tmp_path))


def test_linked_folders_are_read_once_and_loops_are_told(tmp_path: Path) -> None:
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    write_classes(data, CLASSES)
    write_classes(elsewhere, {"p1": 3, "p2": 2})
    (data / "CE" / "p1").symlink_to(elsewhere / "p1")
    (data / "LAA" / "p2").symlink_to(os.path.relpath(elsewhere / "p2", data / "LAA"))
    (elsewhere / "p1" / "loop").symlink_to(elsewhere / "p1")
    (elsewhere / "p2" / "itself").symlink_to("itself")
    (data / "LAA" / "up").symlink_to("..")
    (data / "LAA" / "root").symlink_to("/")
    (data / "LAA" / "q2").symlink_to(elsewhere / "p2")
    loaded = load_data(str(data))
    assert len(loaded) == 25
    assert [source for source in loaded.table.sources if "/p" in source[len(str(data)) :]] == [
        *(f"{data}/CE/p1/{number}.png" for number in range(3)),
        *(f"{data}/LAA/p2/{number}.png" for number in range(2)),
    ]
    assert {"p1", "p2", ""} == set(loaded.table.patients)
    (note,) = loaded.notes
    assert "links to folders that are read anyway" in note


def test_a_class_that_is_a_link_is_read(tmp_path: Path) -> None:
    write_classes(tmp_path / "elsewhere", {"ce": 5})
    write_classes(tmp_path / "data", {"LAA": 5})
    (tmp_path / "data" / "CE").symlink_to(tmp_path / "elsewhere" / "ce")
    data = load_data(str(tmp_path / "data"))
    assert data.classes == ("CE", "LAA")
    assert len(data) == 10


def test_a_folder_that_may_not_be_read_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_classes(tmp_path, CLASSES)
    write_image(tmp_path / "CE" / "p1" / "0.png", 0)
    scandir = os.scandir

    def denied(place: str | Path) -> object:
        if str(place).endswith("p1"):
            raise PermissionError(13, "Permission denied", place)
        return scandir(place)

    # Root may read everything.
    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(DataError, match=r"CE/p1 can't be read: Permission denied"):
        load_data(str(tmp_path))


@pytest.mark.parametrize(("one", "other"), [("CE", "ce"), ("1", "1.0"), ("\u00c4", "A\u0308")])
def test_classes_that_are_one_name_are_refused(tmp_path: Path, one: str, other: str) -> None:
    write_classes(tmp_path, {one: 5, other: 5})
    with pytest.raises(DataError, match="which are one name in different spellings"):
        load_data(str(tmp_path))


def test_patients_that_are_one_name_are_refused(tmp_path: Path) -> None:
    write_classes(tmp_path, CLASSES)
    write_image(tmp_path / "CE" / "P1" / "0.png", 0)
    write_image(tmp_path / "LAA" / "p1" / "0.png", 1)
    with pytest.raises(DataError, match="has the patients 'P1' and 'p1', which are one name"):
        load_data(str(tmp_path))


NAMES = ("train", "val", "test", "Valid", "CE", "LAA", "ce", "p1", "p2", "images", "masks", "fold1", "__MACOSX", ".x")
trees = st.lists(
    st.tuples(st.lists(st.sampled_from(NAMES), max_size=4), st.sampled_from(["0.png", "1.JPG", "2.nii", ".3.png"])),
    min_size=1,
    max_size=24,
)
COMMON = [[split, name] for split in ("train", "val", "test") for name in ("CE", "LAA")]


@settings(max_examples=150, deadline=None)
@given(trees, st.sampled_from([[], COMMON, [name for _, name in COMMON]]))
def test_images_have_the_class_and_split_of_their_folders(
    tree: list[tuple[list[str], str]], above: list[list[str] | str]
) -> None:
    with tempfile.TemporaryDirectory() as place:
        for number, (folders, name) in enumerate(tree):
            start = above[number % len(above)] if above else []
            path = Path(place, *([start] if isinstance(start, str) else start), *folders[2 * bool(above) :], name)
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                path.write_bytes(b"")
        try:
            files = files_from_folder(Path(place))
        except DataError:
            return
        for row, path in enumerate(files.paths):
            first, *rest = path.relative_to(place).parts
            split = split_from_word(first)
            label, *below = rest if split else (first, *rest)
            assert files.classes[files.labels[row]] == label
            assert split_from_word(label) is None
            assert files.patients[row] == (below[0] if len(below) > 1 else "")
            assert not files.splits or files.splits[row] == split
            assert not {".x", "__MACOSX"} & set(path.parts)
