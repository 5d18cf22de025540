from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from plurum.client.connection.payload import BatchSize, PreparedImage, batches, prepare_image, tensor_from_images
from plurum.client.connection.predictions import Failure
from plurum.errors import ImageError
from plurum.images import open_image, pixels_from_image

SERVED = (16, 24, 3)
RGB = np.random.default_rng(0).integers(0, 256, (20, 10, 3), dtype=np.uint8)


def decoded(payload: bytes | npt.NDArray[np.uint8]) -> Image.Image:
    assert isinstance(payload, bytes)
    return open_image(payload)


def test_a_file_is_sent_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "scan.png").write_bytes(b"whatever it holds")
    for path in (tmp_path / "scan.png", str(tmp_path / "scan.png")):
        assert prepare_image(3, path, SERVED) == PreparedImage(3, str(tmp_path / "scan.png"), b"whatever it holds")


def test_bytes_are_sent_as_they_are() -> None:
    assert prepare_image(3, b"bytes", SERVED) == PreparedImage(3, "image 3", b"bytes")


def test_pixels_of_the_served_size_are_sent_as_they_are() -> None:
    pixels = np.zeros(SERVED, dtype=np.uint8)
    item = prepare_image(0, pixels, SERVED)
    assert item.model == "ensemble_pixels"
    np.testing.assert_array_equal(item.payload, pixels)


@pytest.mark.parametrize("served", [None, (20, 11, 3)])
def test_other_pixels_are_sent_as_a_lossless_png(served: tuple[int, int, int] | None) -> None:
    item = prepare_image(0, RGB, served)
    assert item.model == "ensemble"
    np.testing.assert_array_equal(np.asarray(decoded(item.payload)), RGB)


def test_grey_pixels_are_sent_as_a_png() -> None:
    image = decoded(prepare_image(0, RGB[..., 0], SERVED).payload)
    assert image.mode == "L"
    np.testing.assert_array_equal(np.asarray(image), RGB[..., 0])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I;16B", "PA", "RGBa", "RGBX", "YCbCr"])
def test_a_pillow_image_arrives_as_it_would_from_a_file(mode: str) -> None:
    if mode.startswith("I;16"):
        image = Image.fromarray((RGB[..., 0].astype(np.uint16) << 8) + 5)
        image = (
            Image.frombytes("I;16B", image.size, np.asarray(image).astype(">u2").tobytes()) if "B" in mode else image
        )
    else:
        # Through RGBA, from which every mode with an alpha channel can be reached.
        colour = Image.fromarray(RGB)
        image = colour.convert("RGBA").convert(mode) if mode in {"LA", "RGBa", "PA"} else colour.convert(mode)
    sent = decoded(prepare_image(0, image, SERVED).payload)
    assert sent.format == "PNG"
    np.testing.assert_array_equal(
        pixels_from_image(sent, height=20, width=10), pixels_from_image(image, height=20, width=10)
    )


def test_a_pillow_image_is_turned_as_its_exif_says() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(RGB).save(file, "PNG", exif=exif)
    sent = decoded(prepare_image(0, Image.open(file), SERVED).payload)
    np.testing.assert_array_equal(np.asarray(sent), np.rot90(RGB, -1))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_a_pillow_image_without_a_known_range_is_refused(mode: str) -> None:
    with pytest.raises(ImageError, match=f"mode '{mode}'"):
        prepare_image(0, Image.new(mode, (16, 16)), SERVED)


def test_a_broken_pillow_image_is_refused() -> None:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (99, 99, 3), dtype=np.uint8)).save(file, "PNG")
    with pytest.raises(ImageError, match="can't be encoded"):
        prepare_image(0, Image.open(io.BytesIO(file.getvalue()[:5000])), SERVED)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (
            np.zeros((16, 24, 3), np.float32),
            r"expected uint8 \[height, width, 3\] .* got an array of float32 \[16, 24, 3\]",
        ),
        (np.zeros((16, 24, 4), np.uint8), r"uint8 \[16, 24, 4\]"),
        (np.zeros((1, 16, 24, 3), np.uint8), r"uint8 \[1, 16, 24, 3\]"),
        (np.zeros(9, np.uint8), r"uint8 \[9\]"),
        (np.zeros((0, 24, 3), np.uint8), "got an empty one"),
        (17, "got a int"),
        (None, "got a NoneType"),
    ],
)
def test_other_types_are_refused(image: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        prepare_image(0, image, SERVED)


def test_a_file_that_can_not_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="can't be read: No such file or directory"):
        prepare_image(0, tmp_path / "nowhere.png", SERVED)
    with pytest.raises(ImageError, match="can't be read: it is a folder, not a regular file"):
        prepare_image(0, tmp_path, SERVED)


def test_batches_are_full_and_in_order() -> None:
    items = [PreparedImage(index, "", b"x") for index in range(7)]
    assert [[entry.index for entry in batch] for batch in batches(items, BatchSize(3, 64))] == [
        [0, 1, 2],
        [3, 4, 5],
        [6],
    ]
    assert list(batches([], BatchSize(3, 64))) == []


def test_a_batch_goes_to_one_model() -> None:
    pixels = np.zeros(SERVED, dtype=np.uint8)
    entries: list[PreparedImage | Failure] = [
        PreparedImage(0, "", b"x"),
        Failure(1, "", ""),
        PreparedImage(2, "", pixels),
        Failure(3, "", ""),
        PreparedImage(4, "", pixels),
    ]
    assert [[entry.index for entry in batch] for batch in batches(entries, BatchSize(8, 64))] == [[0, 1], [2, 3, 4]]


def test_failures_keep_their_position() -> None:
    entries = [Failure(index, "", "") for index in range(5)]
    assert [len(batch) for batch in batches(entries, BatchSize(2, 64))] == [2, 2, 1]


def test_adaptive_batch_grows_while_responses_are_quick() -> None:
    size = BatchSize(None, 64)
    sizes = []
    for took_s in (0.1, 0.1, 0.1, 1.0, 6.0, 6.0, 0.1):
        sizes.append(size.images)
        size.note(size.images, took_s)
    assert sizes == [8, 16, 32, 32, 32, 16, 8]
    assert size.images == 16
    # A few at the end of a stream say nothing.
    size.note(3, 0.01)
    assert size.images == 16


def test_limit_of_the_server_holds() -> None:
    size = BatchSize(None, 4)
    size.note(4, 0.01)
    assert size.images == 4
    assert BatchSize(16, 4).images == 4
    fixed = BatchSize(3, 64)
    fixed.note(3, 0.01)
    fixed.note(3, 60.0)
    assert fixed.images == 3


def test_large_images_make_smaller_batches() -> None:
    large = bytes(20 << 20)
    sizes = [len(batch) for batch in batches([PreparedImage(index, "", large) for index in range(3)], BatchSize(8, 64))]
    assert sizes == [1, 1, 1]


def test_batches_are_created_lazily() -> None:
    taken: list[None] = []

    def endless() -> Any:
        while True:
            taken.append(None)
            yield PreparedImage(0, "", b"x")

    next(batches(endless(), BatchSize(4, 64)))
    assert len(taken) == 5


def test_tensors_have_a_leading_batch_dimension() -> None:
    model, name, tensor = tensor_from_images([PreparedImage(0, "", b""), PreparedImage(1, "", b"\0b\0")])
    assert (model, name, tensor.shape, tensor.dtype) == ("ensemble", "IMAGE", (2, 1), np.dtype(object))
    assert tensor[:, 0].tolist() == [b"", b"\0b\0"]
    one, other = np.zeros(SERVED, np.uint8), np.ones(SERVED, np.uint8)
    model, name, tensor = tensor_from_images([PreparedImage(0, "", one), PreparedImage(1, "", other)])
    assert (model, name, tensor.shape, tensor.dtype) == ("ensemble_pixels", "PIXELS", (2, 16, 24, 3), np.dtype("u1"))
    assert tensor[1].all()
