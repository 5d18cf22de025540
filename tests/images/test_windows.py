"""Rules that map grey values of more than 8 bits to 8 bits: windows and full ranges, over formats and numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from plurum.images import UnreadableImageError, grey_values, open_image, resizing_from_spec, to_eight_bit
from plurum.images.decoder import Decoder
from plurum.images.windows import WindowRule, apply_window, window_from_json, window_from_range
from tests.images.deep_files import FILES, HIGHEST, LOWEST, as_tiff, drawn
from tests.images.dicom_files import dicom
from tests.images.image_files import encoded
from tests.pixel_matrix.cell import samples


@pytest.mark.parametrize("kind", FILES)
def test_a_window_maps_all_numbers_alike(kind: str) -> None:
    dtype, write = FILES[kind]
    values = drawn(dtype)
    data = write(values)
    rule = window_from_range(LOWEST, HIGHEST)
    pixels = np.asarray(open_image(data, window=rule))
    exact = np.clip((values.astype(float) - LOWEST) / (HIGHEST - LOWEST), 0, 1) * 255
    np.testing.assert_allclose(pixels, exact, atol=0.500001)
    assert (pixels.min(), pixels.max()) == (0, 255)
    found = grey_values(data)
    assert found is not None
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("kind", [kind for kind in FILES if "window" not in kind])
def test_without_a_window_such_values_are_refused_or_keep_the_high_byte(kind: str) -> None:
    dtype, write = FILES[kind]
    data = write(drawn(dtype))
    if kind in {"PNG", "TIFF of 16 bits"}:
        np.testing.assert_array_equal(np.asarray(to_eight_bit(open_image(data))), drawn(dtype) >> 8)
        return
    with pytest.raises(UnreadableImageError, match="--window"):
        open_image(data, window=None)


@pytest.mark.parametrize("kind", [kind for kind in FILES if "floating" not in kind])
def test_the_full_range_is_that_of_the_type(kind: str) -> None:
    dtype, write = FILES[kind]
    limits = np.iinfo(dtype)
    values = drawn("f8", float(limits.min), float(limits.max)).astype(dtype)
    values[0, 0], values[0, 1] = limits.min, limits.max
    pixels = np.asarray(open_image(write(values), window="full"))
    exact = (values.astype(float) - limits.min) / (float(limits.max) - limits.min) * 255
    np.testing.assert_allclose(pixels, exact, atol=0.500001)


def test_floating_point_values_have_no_full_range() -> None:
    with pytest.raises(UnreadableImageError, match=r"no full range.*--window LOW%,HIGH%"):
        open_image(as_tiff(drawn("f4")), window="full")


def test_numbers_that_are_not_finite_are_clipped_and_nan_is_black() -> None:
    values = drawn("f4", 0, 1)
    values[1, :3] = (np.nan, np.inf, -np.inf)
    pixels = np.asarray(open_image(as_tiff(values), window=window_from_range(0, 1)))
    assert pixels[1, :3].tolist() == [0, 255, 0]
    np.testing.assert_allclose(pixels[2:], values[2:] * 255, atol=0.51)


def test_large_images_are_mapped_by_rows() -> None:
    values = np.arange(600 * 8, dtype=np.int32).reshape(600, 8)
    np.testing.assert_allclose(apply_window(values, window_from_range(0, 4799)), values / 4799 * 255, atol=0.51)


@pytest.mark.parametrize("rule", [(2000.5, 2001.0), "full"])
def test_the_decoders_process_applies_the_rule(rule: WindowRule) -> None:
    resizing = {"height": 16, "width": 16, "colour": "rgb", "resize": "stretch"}
    data = as_tiff(drawn("i2"))
    decoder = Decoder(resizing_from_spec(resizing), window=rule)
    try:
        own = decoder.pixels(data)
    finally:
        decoder.close()
    alone = np.asarray(open_image(data, window=rule).resize((16, 16), 2))
    np.testing.assert_array_equal(own, np.repeat(alone[..., None], 3, axis=2))


def test_the_rule_in_json() -> None:
    assert window_from_json([40, 400]) == (40.0, 400.0)
    assert window_from_json("full") == "full"
    assert window_from_json(None) is None


def test_colours_and_eight_bits_have_no_grey_values() -> None:
    colours = np.repeat(samples(8, 3)[:24, :32].astype(np.uint8), 1, axis=2)
    for data in (encoded_array(colours), encoded_array(colours[..., 0]), dicom(colours)):
        assert grey_values(data) is None
    found = grey_values(dicom(colours[..., 0], RescaleSlope=2, RescaleIntercept=-5))
    assert found is not None
    np.testing.assert_array_equal(found, colours[..., 0] * 2.0 - 5)


def encoded_array(pixels: npt.NDArray[np.uint8]) -> bytes:
    from PIL import Image

    return encoded(Image.fromarray(pixels))


@pytest.mark.parametrize(
    ("values", "kind"), [(np.float16, "16 floating-point"), (np.float64, "64 floating-point"), (np.int8, "8 signed")]
)
def test_other_numbers_are_refused_by_name(values: Any, kind: str) -> None:
    with pytest.raises(UnreadableImageError, match=f"not supported .TIFF, {kind} bits"):
        open_image(as_tiff(np.ones((16, 16), values)), window=(40.0, 400.0))
