"""Pixels equal those of serving, and unreadable files are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from plurum.errors import DataError, ImageError
from plurum.images import open_image, pixels_from_image
from plurum.spec import ImageSpec
from plurum.training import load_data
from tests.training.data_files import digit_arrays, save_npz, write_classes, write_image

IMAGE = ImageSpec(height=24, width=20, resize="crop", mean=(0, 0, 0), std=(1, 1, 1))


def test_pixels_of_files_are_those_of_the_one_rule(tmp_path: Path) -> None:
    for label, name in enumerate(("CE", "LAA")):
        for number in range(40):
            kind = ("png", "jpg", "tiff")[number % 3]
            write_image(tmp_path / name / f"{number:02d}.{kind}", 100 * label + number, (30 + number, 25))
    data = load_data(str(tmp_path))
    pixels = data.pixels(IMAGE)
    assert pixels.shape == (80, 24, 20, 3)
    for index, source in enumerate(data.table.sources):
        image = open_image(Path(source).read_bytes())
        expected = pixels_from_image(image, height=24, width=20, colour="rgb", resize="crop")
        np.testing.assert_array_equal(pixels[index], expected)


def test_colour_and_resize_reach_the_rule(tmp_path: Path) -> None:
    write_classes(tmp_path, {"CE": 3, "LAA": 3})
    data = load_data(str(tmp_path))
    grey = data.pixels(IMAGE.model_copy(update={"colour": "grey"}))
    assert (grey[..., 0] == grey[..., 2]).all()
    assert (data.pixels(IMAGE.model_copy(update={"resize": "stretch"})) != data.pixels(IMAGE)).any()


def test_pixels_of_an_archive_are_those_of_its_arrays_as_png(archive: Path) -> None:
    arrays = digit_arrays()
    data = load_data(str(archive))
    same = ImageSpec(height=8, width=8, mean=(0, 0, 0), std=(1, 1, 1))
    expected = np.concatenate([arrays[f"{part}_images"] for part in ("train", "val", "test")])
    pixels = data.pixels(same)
    np.testing.assert_array_equal(pixels, np.stack([expected] * 3, axis=-1))
    assert data.read_encoded(200).startswith(b"\x89PNG")
    np.testing.assert_array_equal(np.asarray(open_image(data.read_encoded(200))), expected[200])


def test_pixels_are_written_into_a_given_array(archive: Path) -> None:
    data = load_data(str(archive))
    out = np.zeros((320, 24, 20, 3), dtype=np.uint8)
    assert data.pixels(IMAGE, out=out) is out
    np.testing.assert_array_equal(out, data.pixels(IMAGE))


def test_all_broken_files_are_counted_and_the_first_named(tmp_path: Path) -> None:
    write_classes(tmp_path, {"CE": 9, "LAA": 3})
    for number in range(7):
        (tmp_path / "CE" / f"{number}.png").write_bytes(b"no image" if number else b"")
    whole = (tmp_path / "LAA" / "2.png").read_bytes()
    (tmp_path / "LAA" / "2.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="8 of 12 images can't be read") as caught:
        load_data(str(tmp_path)).pixels(IMAGE)
    message = str(caught.value)
    assert f"{tmp_path}/CE/0.png" in message
    assert f"{tmp_path}/CE/4.png" in message
    assert f"{tmp_path}/CE/5.png" not in message
    assert message.endswith("; and 3 more")


def test_a_file_that_went_away_is_named(tmp_path: Path) -> None:
    write_classes(tmp_path, {"CE": 3, "LAA": 3})
    data = load_data(str(tmp_path))
    (tmp_path / "LAA" / "1.png").unlink()
    with pytest.raises(ImageError, match=r"LAA/1.png can't be read: No such file"):
        data.read_encoded(4)
    with pytest.raises(DataError, match=r"1 of 6 images.*LAA/1.png"):
        data.pixels(IMAGE)


def test_images_of_an_archive_that_are_too_small_are_refused(tmp_path: Path) -> None:
    arrays = {name: array[:, :4, :4] if "images" in name else array for name, array in digit_arrays().items()}
    save_npz(tmp_path / "a.npz", arrays)
    with pytest.raises(DataError, match=r"320 of 320 images can't be read.*4 x 4 pixels is too small"):
        load_data(str(tmp_path / "a.npz")).pixels(IMAGE)
