from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from plurum.client import image_files, listing_from_names
from plurum.errors import DataError
from plurum.file_trees import files_below
from tests.client.samples import touch


def test_pattern_matches_only_images_in_all_folders(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.png", "b/c/1.PNG", "a.png", "b/notes.txt", "b/.hidden.png")
    (tmp_path / "folder.png").mkdir()
    listing = listing_from_names([tmp_path / "**" / "*.[pP][nN][gG]"])
    assert list(listing) == [str(tmp_path / name) for name in ("a.png", "b/2.png", "b/c/1.PNG")]
    assert list(listing_from_names([f"{tmp_path}/b/**"])) == [str(tmp_path / name) for name in ("b/2.png", "b/c/1.PNG")]


def test_file_named_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    touch(tmp_path, "a[1].png", "a1.png")
    assert list(listing_from_names([tmp_path / "a[1].png"])) == [str(tmp_path / "a[1].png")]


def test_pattern_without_matches_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "notes.txt")
    with pytest.raises(DataError, match=r"\*\.txt: expected a pattern that matches images \(\.avif, \.dcm, \.dicom, "):
        listing_from_names([tmp_path / "*.txt"])


def test_a_manifest_names_images_patients_and_labels(tmp_path: Path) -> None:
    touch(tmp_path, "scans/1.png", "scans/2.jpg", "cases/3.png")
    manifest = tmp_path / "cases.csv"
    manifest.write_text(
        "Patient_ID, Image_Path ,Class,more\nann,scans/1.png,CE,x\nbob,scans/2\nann,3,LAA\n,gone.png,\n"
    )
    listing = listing_from_names([manifest])
    names = ("scans/1.png", "scans/2.jpg", "cases/3.png", "gone.png")
    assert list(listing) == [str(tmp_path / name) for name in names]
    assert listing.patients == {0: "ann", 1: "bob", 2: "ann"}
    assert listing.labels == {0: "CE", 2: "LAA"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label\nCE\n", r"cases\.csv has no column path \(or image_path, .*\); it has: label"),
        ("path\n", "has no row below its header"),
        ("path,label\na.png,CE\n,LAA\n", r"cases\.csv: expected a path in line 3"),
        ("path,label\na.png,CE\na.png,LAA\n", r"a\.png: expected one label, got 'CE' and 'LAA'"),
        ("path,patient\na.png,ann\na.png,bob\n", r"a\.png: expected one patient, got 'ann' and 'bob'"),
        ('path\n"a.png\n', "is not a CSV in UTF-8"),
    ],
)
def test_invalid_manifest_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "cases.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        listing_from_names([tmp_path / "cases.csv"])


@pytest.mark.parametrize(
    "text", [b"a.png\nb \xe9.png\n", b"a.png\r\nb \xe9.png\r\n", b"a.png\0b \xe9.png\0", b"a.png\nb \xe9.png"]
)
def test_standard_input_names_one_path_a_line_or_nul(text: bytes) -> None:
    listing = listing_from_names(["-"], io.BytesIO(text))
    assert list(listing) == ["a.png", os.fsdecode(b"b \xe9.png")]


def test_with_nul_between_them_paths_may_hold_line_ends() -> None:
    assert list(listing_from_names(["-"], io.BytesIO(b"a\n.png\0b\r\0"))) == ["a\n.png", "b\r"]


def test_empty_standard_input_is_refused() -> None:
    with pytest.raises(DataError, match="standard input: expected at least 1 path"):
        listing_from_names(["-"], io.BytesIO(b"\n\n"))


def test_mixed_names_are_listed_once_in_order(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.png", "c.png", "d.png")
    (tmp_path / "list.csv").write_text("path,patient\nc.png,ann\na.png,bob\n")
    names: list[str | Path] = [tmp_path / "b.png", tmp_path / "list.csv", "-", tmp_path / "*.png", tmp_path]
    listing = listing_from_names(names, io.BytesIO(f"{tmp_path}/d.png\n".encode()))
    assert [Path(path).name for path in listing] == ["b.png", "c.png", "a.png", "d.png"]
    assert listing.patients == {1: "ann", 2: "bob"}
    assert len(listing) == 4


def test_pattern_finds_an_image_once_despite_links(tmp_path: Path) -> None:
    touch(tmp_path, "scans/z.png", "scans/a/1.png", "elsewhere/2.png")
    (tmp_path / "scans" / "a" / "loop").symlink_to(tmp_path / "scans")
    (tmp_path / "scans" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "scans" / "linked_again").symlink_to(tmp_path / "elsewhere")
    names = ("scans/a/1.png", "scans/linked/2.png", "scans/z.png")
    assert list(listing_from_names([f"{tmp_path}/scans/**/*.png"])) == [str(tmp_path / name) for name in names]


def test_manifests_are_divided_by_semicolons_too(tmp_path: Path) -> None:
    touch(tmp_path, "a,1.png", "b.png")
    (tmp_path / "cases.csv").write_text("sep=;\r\npath;patient\r\na,1.png;007\r\nb.png;\r\n", encoding="utf-16")
    listing = listing_from_names([tmp_path / "cases.csv"])
    assert list(listing) == [str(tmp_path / "a,1.png"), str(tmp_path / "b.png")]
    assert listing.patients == {0: "007"}


def test_folders_are_walked_in_sorted_order(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.png", "b/10.png", "a.JPG", "c.tiff", "b/a/x.jpeg", "d.TIF", "notes.txt", "a.gif", "png")
    found = [path.relative_to(tmp_path).as_posix() for path in image_files([tmp_path])]
    assert found == ["a.JPG", "c.tiff", "d.TIF", "b/10.png", "b/2.png", "b/a/x.jpeg"]


def test_hidden_files_are_skipped(tmp_path: Path) -> None:
    touch(tmp_path, "._scan.png", ".thumbnails/scan.png", "scan.png")
    assert image_files([tmp_path]) == [tmp_path / "scan.png"]


def test_named_files_are_taken_whatever_their_suffix(tmp_path: Path) -> None:
    touch(tmp_path, "scan", ".scan.png")
    assert image_files([tmp_path / "scan", tmp_path / ".scan.png"]) == [tmp_path / "scan", tmp_path / ".scan.png"]


def test_files_keep_their_order_and_come_once(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.png")
    assert image_files([tmp_path / "b.png", tmp_path, tmp_path / "b.png"]) == [tmp_path / "b.png", tmp_path / "a.png"]


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert image_files([tmp_path]) == [tmp_path / "a.png"]


def test_paths_are_written_as_they_were_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.png", "b/c/1.png")
    monkeypatch.chdir(tmp_path)
    for folder, expected in (
        (".", ["a.png", "b/c/1.png"]),
        ("./b/", ["b/c/1.png"]),
        ("b/..", ["b/../a.png", "b/../b/c/1.png"]),
    ):
        assert list(files_below(Path(folder))) == expected
        assert image_files([Path(folder)]) == [Path(path) for path in expected]


def test_missing_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: expected an image or a folder of images"):
        image_files([tmp_path / "nowhere"])


def test_folder_without_images_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "full/a.png", "empty/notes.txt")
    with pytest.raises(DataError, match=r"empty: expected images \(\.avif, \.dcm, .*, \.tiff, \.webp\), got none"):
        image_files([tmp_path / "full", tmp_path / "empty"])


def test_linked_folders_are_walked_once(tmp_path: Path) -> None:
    touch(tmp_path, "scans/a.png", "elsewhere/b.png", "elsewhere/c/d.png")
    (tmp_path / "scans" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "scans" / "linked_again").symlink_to(tmp_path / "elsewhere" / "c")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "up").symlink_to(tmp_path)
    found = [path.relative_to(tmp_path / "scans").as_posix() for path in image_files([tmp_path / "scans"])]
    assert found == ["a.png", "linked/b.png", "linked/c/d.png"]


def test_skipped_files_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "a.png", ".DS_Store", "__MACOSX/a.png", "Thumbs.db")
    assert image_files([tmp_path]) == [tmp_path / "a.png"]
    assert caplog.text == ""
    touch(tmp_path, "1.nii", "2.NII", "b.heic", "IM0001")
    assert image_files([tmp_path]) == [tmp_path / "a.png"]
    assert "skipped: 2 .nii, 1 without an extension, 1 .heic" in caplog.text
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match=r"got none; skipped: 2 \.nii, 1 without"):
        image_files([tmp_path])
