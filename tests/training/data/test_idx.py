"""IDX files: reading MNIST's four files, and messages for invalid ones."""

from __future__ import annotations

import gzip
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from plurum.errors import DataError
from plurum.images import open_image
from plurum.training import load_data
from plurum.training.data.idx import array_from_idx
from tests.training.data_files import digit_arrays, idx

ARRAYS = digit_arrays()


@pytest.fixture(params=["", ".gz"])
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Write MNIST's four files, with 240 and 80 digits from 0 to 3."""
    parts = {"train": ("train", "val"), "t10k": ("test",)}
    for part, ours in parts.items():
        for kind, name in (("images", "images-idx3-ubyte"), ("labels", "labels-idx1-ubyte")):
            array = np.concatenate([ARRAYS[f"{one}_{kind}"] for one in ours])
            data = idx(array if kind == "images" else array.reshape(-1))
            path = tmp_path / f"{part}-{name}{request.param}"
            path.write_bytes(gzip.compress(data) if request.param else data)
    return tmp_path


def test_the_test_split_is_kept_and_validation_drawn_from_train(folder: Path) -> None:
    data = load_data(str(folder))
    table = data.table
    assert data.classes == ("0", "1", "2", "3")
    assert data.side == 8
    assert table.splits[240:] == ("test",) * 80
    assert "test" not in table.splits[:240]
    np.testing.assert_array_equal(table.labels[240:], ARRAYS["test_labels"].reshape(-1))
    for label in range(4):
        ours = [split for row, split in enumerate(table.splits[:240]) if table.labels[row] == label]
        assert ours.count("validation") == pytest.approx(len(ours) / 5, abs=1)
    assert table.sources[241] == f"{folder}/t10k/1"
    np.testing.assert_array_equal(np.asarray(open_image(data.read_encoded(241))), ARRAYS["test_images"][1])
    assert load_data(str(folder), seed=1).table.splits != table.splits


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not an IDX file: 0 bytes"),
        (b"\0\0\x08\x03", "is not an IDX file: 4 bytes"),
        (b"\x89PNG" + b"\0" * 40, "is not an IDX file"),
        (
            idx(np.zeros((2, 3, 4), np.uint8))[:-1],
            r"truncated or too long: expected 24 bytes of values for \[2, 3, 4\], got 23",
        ),
        (idx(np.zeros((2, 3, 4), np.uint8)) + b"\0", "truncated or too long: .* got at least 25"),
        (
            idx(np.zeros((2, 3), np.uint8)) + b"\0" * 9,
            r"expected 3 dimensions of unsigned bytes \(0x08\), got 2 of type 0x08",
        ),
        (idx(np.zeros((2, 3, 4), np.uint8), kind=0x0D), "got 3 of type 0x0d"),
        (
            struct.pack(">HBB3I", 0, 8, 3, 2**31, 2**31, 2**31),
            r"expected at most .* values, got a header with \[2147483648, 2147483648, 2147483648\]",
        ),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(data)
    with pytest.raises(DataError, match=message):
        array_from_idx(tmp_path / "train-images-idx3-ubyte", 3)


def test_broken_gzip_is_refused(tmp_path: Path) -> None:
    whole = gzip.compress(idx(ARRAYS["val_images"]))
    for content in (whole[: len(whole) // 2], b"no gzip", whole[:50] + b"\0" * 50 + whole[100:]):
        (tmp_path / "a.gz").write_bytes(content)
        with pytest.raises(DataError, match=r"a\.gz can't be read"):
            array_from_idx(tmp_path / "a.gz", 3)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("t10k-labels-idx1-ubyte", None, "has no t10k-labels-idx1-ubyte or t10k-labels-idx1-ubyte.gz"),
        ("t10k-labels-idx1-ubyte", idx(np.zeros(79, np.uint8)), "has 80 t10k images and 79 t10k labels"),
        ("t10k-labels-idx1-ubyte", idx(np.full(80, 4, np.uint8)), "expected labels from 0 to 3, .*, got 4"),
        ("t10k-labels-idx1-ubyte", idx(np.zeros(80, np.uint8)), "class '1' has .* and none for test"),
        (
            "t10k-images-idx3-ubyte",
            idx(np.zeros((80, 9, 8), np.uint8)),
            r"different shapes: \[240, 8, 8\] and \[80, 9, 8\]",
        ),
        ("train-labels-idx1-ubyte", idx(np.zeros(240, np.uint8)), "got 3|expected at least 2 classes"),
    ],
)
def test_files_that_do_not_fit_are_refused(folder: Path, name: str, data: bytes | None, message: str) -> None:
    for file in folder.glob(f"{name}*"):
        file.unlink()
    if data is not None:
        (folder / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        load_data(str(folder))


def test_no_images_are_refused(folder: Path) -> None:
    for file in folder.glob("t10k-*"):
        file.unlink()
    (folder / "t10k-images-idx3-ubyte").write_bytes(idx(np.zeros((0, 8, 8), np.uint8)))
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(0, np.uint8)))
    with pytest.raises(DataError, match="has no t10k image"):
        load_data(str(folder))


def test_a_file_that_unpacks_to_more_than_stated_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train-images-idx3-ubyte.gz"
    # 1 GB of zeros after an image of 6 pixels.
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(idx(np.zeros((1, 2, 3), np.uint8)))
        for _ in range(1024):
            file.write(bytes(1 << 20))
    tracemalloc.start()
    with pytest.raises(DataError, match=r"truncated or too long: expected 6 bytes of values .*, got at least 7"):
        array_from_idx(path, 3)
    assert tracemalloc.get_traced_memory()[1] < 1 << 22
    tracemalloc.stop()
