"""Only regular files are read, up to a limit, without blocking."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from plurum.client import listing_from_names
from plurum.client.connection.payload import prepare_image
from plurum.client.slides.slide_stream import is_slide
from plurum.errors import DataError, ImageError, MetadataError
from plurum.regular_files import MAX_IMAGE_BYTES, open_regular, read_regular
from plurum.run import Run
from plurum.spec import read_ensemble
from plurum.training import load_data
from plurum.training.data.report import read_data_report
from plurum.training.data.tiles import Tiling, regions_from_file
from plurum.training.data.unlabelled import find_unlabelled_images

pytestmark = pytest.mark.timeout(10)


def zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


def pipe(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        folder = os.open(path.parent, os.O_DIRECTORY)
        # Socket names must be short, but the test's folder name is long.
        one.bind(f"/proc/self/fd/{folder}/{path.name}")
        os.close(folder)


def folder(path: Path) -> None:
    path.mkdir()


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


KINDS = [
    (zeros, r"it is a device, not a regular file"),
    (pipe, r"it is a pipe \(FIFO\), not a regular file"),
    (listening, r"it is a socket, not a regular file"),
    (folder, r"it is a folder, not a regular file"),
    (sparse, r"it has 1,099,511,627,776 bytes, and at most [\d,]+ are read"),
]
Make = Callable[[Path], None]
every_kind = pytest.mark.parametrize(("make", "message"), KINDS, ids=[make.__name__ for make, _ in KINDS])


@every_kind
def test_files_that_are_not_regular_or_too_large_are_refused(make: Make, message: str, tmp_path: Path) -> None:
    make(tmp_path / "a.png")
    with pytest.raises(OSError, match=message):
        read_regular(tmp_path / "a.png")
    with pytest.raises(ImageError, match=f"can't be read: {message}"):
        prepare_image(0, tmp_path / "a.png", None)


@every_kind
def test_a_manifest_may_name_anything(make: Make, message: str, tmp_path: Path) -> None:
    make(tmp_path / "a.tif")
    (tmp_path / "b.tif").write_bytes(b"no image")
    manifest = tmp_path / "images.csv"
    manifest.write_text("path,label\na.tif,CE\nb.tif,LAA\n")
    # `plurum predict` reports it as failed, with the reason.
    (first, _) = listing_from_names([manifest])
    assert not is_slide(first)
    with pytest.raises(ImageError, match=message):
        prepare_image(0, first, None)
    (picture,) = regions_from_file(tmp_path / "a.tif", Tiling(64, 1))
    if make is not sparse:
        assert "not a regular file" in picture.fault
        with pytest.raises(DataError, match=r"line 2 names a\.tif, which is not a regular file"):
            load_data(str(manifest))
        with pytest.raises(DataError, match=r"do not exist: line 2 names a\.tif"):
            find_unlabelled_images(manifest)


@every_kind
def test_metadata_are_read_only_from_regular_files(make: Make, message: str, tmp_path: Path) -> None:
    make(tmp_path / "ensemble.json")
    with pytest.raises(MetadataError, match=message):
        read_ensemble(tmp_path / "ensemble.json")
    run = Run(tmp_path)
    run.data_folder.mkdir()
    for name in ("contract.json", "report.json"):
        make(run.data_folder / name)
    with pytest.raises(MetadataError, match=message):
        run.data()
    with pytest.raises(MetadataError, match=message):
        read_data_report(run)
    make(run.data_folder / "pixels.npy")
    with pytest.raises(MetadataError, match=r"pixels\.npy can't be read: "):
        run.pixels()


def test_a_manifest_that_is_no_text_ends_at_its_first_line(tmp_path: Path) -> None:
    sparse(tmp_path / "sparse.csv")
    with pytest.raises(DataError, match="line 1 has a NUL character"):
        load_data(str(tmp_path / "sparse.csv"))
    (tmp_path / "long.csv").write_bytes(b"path,label\n" + b"a" * (1 << 21))
    with pytest.raises(DataError, match="line 2 has more than 1,048,576 characters"):
        load_data(str(tmp_path / "long.csv"))


def test_standard_input_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plurum.client.bulk.listing._MOST_BYTES", 1 << 20)
    with (
        Path("/dev/zero").open("rb") as file,
        pytest.raises(DataError, match="expected at most 1,048,576 bytes of paths"),
    ):
        listing_from_names(["-"], file)


def test_files_of_proc_are_read_though_they_have_no_size_and_bounded(tmp_path: Path) -> None:
    assert read_regular("/proc/self/cmdline") == Path("/proc/self/cmdline").read_bytes()
    with pytest.raises(OSError, match="it has more than 64 bytes"):
        read_regular("/proc/self/maps", 64)
    (tmp_path / "empty").write_bytes(b"")
    assert read_regular(tmp_path / "empty") == b""
    (tmp_path / "full").write_bytes(b"12345678")
    assert read_regular(tmp_path / "full", 8) == b"12345678"
    with open_regular(tmp_path / "full") as file:
        assert file.read(3) == b"123"


def test_every_image_that_is_decoded_may_be_read() -> None:
    from plurum.images import MAX_PIXELS

    assert MAX_IMAGE_BYTES > 8 * MAX_PIXELS
