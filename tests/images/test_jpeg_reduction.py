"""Large JPEGs are decoded at a reduced scale: nearly the same pixels, and the same files are refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from plurum.benchmarks.claims.images.reduction import reduction
from plurum.images import UnreadableImageError, decoding_from_spec, open_image, reduction_of, structure_of
from plurum.images.decoder import Decoder
from tests.docs.pages import text_of
from tests.images.image_files import Pixels, encoded, photograph, seen

TARGET = (16, 16)


def jpeg(image: Image.Image | None = None, **options: Any) -> bytes:
    return encoded(image or photograph(), "JPEG", **{"quality": 90} | options)


def reduced(data: bytes) -> Pixels:
    image = open_image(data, reduce_to=TARGET)
    assert image.width < structure_of(data).width
    return np.asarray(image)


@pytest.mark.parametrize(
    ("size", "reduction"),
    [
        ((512, 520), 8),
        ((511, 520), 1),
        ((504, 512), 4),
        ((256, 260), 4),
        ((254, 256), 2),
        ((128, 128), 2),
        ((126, 128), 1),
    ],
)
def test_an_image_stays_four_times_as_large_as_the_input(size: tuple[int, int], reduction: int) -> None:
    data = jpeg(Image.new("RGB", size))
    assert reduction_of(structure_of(data), TARGET) == reduction
    assert reduction_of(structure_of(data), None) == 1
    assert open_image(data, reduce_to=TARGET).size == (size[0] // reduction, size[1] // reduction)


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"subsampling": 1}], ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_pixels_are_nearly_those_of_the_whole_image(mode: str, options: dict[str, int]) -> None:
    data = jpeg(photograph().convert(mode), **options)
    difference = np.abs(seen(data).astype(int) - seen(data, reduce_to=TARGET))
    assert 0 < difference.mean() <= 0.5
    assert difference.max() <= 4


def test_an_image_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = jpeg(exif=exif)
    np.testing.assert_allclose(seen(data, reduce_to=TARGET).astype(int), seen(data), atol=4)


@pytest.mark.parametrize(
    "data",
    [jpeg(progressive=True), jpeg(restart_marker_rows=1), encoded(photograph(), "PNG")],
    ids=["progressive", "restarts", "png"],
)
def test_other_images_are_decoded_as_wholes(data: bytes) -> None:
    np.testing.assert_array_equal(np.asarray(open_image(data, reduce_to=TARGET)), np.asarray(open_image(data)))


@pytest.mark.parametrize(
    "image", [photograph(), Image.new("RGB", (256, 192), (128, 128, 128))], ids=["colours", "grey"]
)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_the_same_truncated_files_are_refused(image: Image.Image, mode: str) -> None:
    data = jpeg(image.convert(mode))
    reduced(data)
    (start, end) = structure_of(data).scans[0]
    verdicts = []
    for share in np.linspace(0, 1, 41):
        short = data[: start + round(share * (end - start))].rstrip(b"\xff") + data[end:]
        verdicts.append(refusal(short, None))
        assert refusal(short, TARGET) == verdicts[-1]
    assert "truncated" in verdicts[0]
    assert not verdicts[-1]


def refusal(data: bytes, reduce_to: tuple[int, int] | None) -> str:
    """Return the reason for which an image is refused; empty if it is read."""
    try:
        open_image(data, reduce_to=reduce_to)
    except UnreadableImageError as error:
        return str(error)
    return ""


def test_a_complete_image_with_a_grey_end_is_read_reduced() -> None:
    image = photograph()
    image.paste((128, 128, 128), (200, 150, 256, 192))
    assert reduced(jpeg(image)).shape == (96, 128, 3)


def test_the_decoder_process_reads_the_same_pixels() -> None:
    data = jpeg()
    rule = {"height": 16, "width": 16, "colour": "rgb", "resize": "stretch"}
    decoder = Decoder(rule, reduce_to=TARGET)
    pixels = decoder.pixels(data)
    decoder.close()
    np.testing.assert_array_equal(pixels, seen(data, reduce_to=TARGET))


def test_an_older_image_spec_decodes_images_as_wholes() -> None:
    image = {"height": 16, "width": 24}
    assert decoding_from_spec(image) == {"window": None, "reduce_to": None}
    assert decoding_from_spec(image | {"reduced_decoding": True})["reduce_to"] == (16, 24)


def test_the_command_of_the_page_measures_time_and_pixels(capsys: pytest.CaptureFixture[str]) -> None:
    assert "\npython -m plurum.benchmarks.claims.images.reduction\n" in text_of("data.md")
    reduction(image_size=32, width=512, rounds=1)
    report = json.loads(capsys.readouterr().out)
    assert all(min(times["whole"], times["reduced"]) > 0 for times in report["ms"].values())
    photographs = [found for name, found in report["changes"].items() if name.startswith("photograph of")]
    assert [found["4"]["within"] for found in photographs] == [1, 1]
    plate = report["changes"]["zone plate"]
    assert plate["4"]["within"] == 0
    assert plate["2"]["mean"] > plate["3"]["mean"] > plate["4"]["mean"] > plate["4"]["jpeg_mean"]
