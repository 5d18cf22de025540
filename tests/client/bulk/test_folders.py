from __future__ import annotations

from pathlib import Path

import pytest

from plurum.client import image_files
from plurum.errors import DataError
from plurum.file_trees import files_below
from tests.client.samples import touch


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
    with pytest.raises(DataError, match=r"empty: expected images \(\.jpeg, \.jpg, \.png, \.tif, \.tiff\), got none"):
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
    touch(tmp_path, "1.dcm", "2.DCM", "b.webp", "IM0001")
    assert image_files([tmp_path]) == [tmp_path / "a.png"]
    assert "skipped: 2 .dcm, 1 without an extension, 1 .webp" in caplog.text
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match=r"got none; skipped: 2 \.dcm, 1 without"):
        image_files([tmp_path])
