"""Slides: levels and pixel sizes; partly corrupt slides give one line that names level and tile."""

from __future__ import annotations

import struct
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image

from plurum.errors import ImageError, MissingExtraError
from plurum.slides.scanners import ScannerSlide, WholeImage, open_slide
from plurum.slides.slides import Level, Slide, coarsest_level, thumbnail_from_slide

SIZES = (640, 320, 160)
PIXELS = [np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8) for side in SIZES]


def write_pyramid(path: Path, *, subifds: bool = True, **options: Any) -> Path:
    """Write three levels of noise in tiles of 64 pixels, as sub-directories or as successive pages."""
    kept: dict[str, Any] = {"tile": (64, 64), "photometric": "rgb", "compression": "zlib", "metadata": None}
    with tifffile.TiffWriter(path) as file:
        file.write(PIXELS[0], subifds=2 if subifds else 0, **(kept | options))
        for pixels in PIXELS[1:]:
            file.write(pixels, subfiletype=1, **(kept | {"compression": options.get("compression", "zlib")}))
    return path


def place_of(path: Path, level: int, tile: int) -> tuple[int, int]:
    """Return the offset and size of a tile's data in the file."""
    with tifffile.TiffFile(path) as file:
        page = file.series[0].levels[level].keyframe
        return page.dataoffsets[tile], page.databytecounts[tile]


def read(path: Path, x: int, y: int, size: int, level: int) -> npt.NDArray[np.uint8]:
    with Slide(path) as slide:
        return slide.region(x, y, size, size, level)


@pytest.mark.parametrize("subifds", [True, False])
def test_regions_of_every_level_are_its_pixels(tmp_path: Path, subifds: bool) -> None:
    with Slide(write_pyramid(tmp_path / "slide.tif", subifds=subifds)) as slide:
        assert slide.levels == (Level(640, 640, 1), Level(320, 320, 2), Level(160, 160, 4))
        for level, pixels in enumerate(PIXELS):
            np.testing.assert_array_equal(slide.region(30, 50, 100, 90, level), pixels[50:140, 30:130])
            # Twice: the second time from the cache.
            np.testing.assert_array_equal(slide.region(30, 50, 100, 90, level), pixels[50:140, 30:130])


def test_the_cache_of_decoded_tiles_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plurum.slides.slides._CACHE_BYTES", 5 * 64 * 64 * 3)
    with Slide(write_pyramid(tmp_path / "slide.tif")) as slide:
        for x in range(0, 600, 40):
            np.testing.assert_array_equal(slide.region(x, 0, 40, 40), PIXELS[0][:40, x : x + 40])
        assert len(slide._cache) == 5


@pytest.mark.parametrize(("most", "level"), [(0.5, 0), (1, 0), (1.9, 0), (1.995, 1), (2, 1), (3.9, 1), (4, 2), (50, 2)])
def test_the_coarsest_level_that_is_fine_enough(tmp_path: Path, most: float, level: int) -> None:
    with Slide(write_pyramid(tmp_path / "slide.tif")) as slide:
        assert coarsest_level(slide.levels, most) == level


@pytest.mark.parametrize(("side", "level", "step"), [(640, 0, 1), (639, 0, 2), (320, 1, 1), (100, 2, 2), (53, 2, 4)])
def test_a_thumbnail_is_every_so_many_pixels_of_the_coarsest_level_that_will_do(
    tmp_path: Path, side: int, level: int, step: int
) -> None:
    with Slide(write_pyramid(tmp_path / "slide.tif")) as slide:
        small, cell = thumbnail_from_slide(slide, side)
    assert cell == step * 2**level
    np.testing.assert_array_equal(small, PIXELS[level][::step, ::step])
    assert side / 2 < small.shape[0] <= side


def test_a_truncated_tile_is_named(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "slide.tif")
    # The last tile written: level 2, column 2, row 2.
    offset, count = place_of(path, 2, 8)
    path.write_bytes(path.read_bytes()[: offset + count // 2])
    message = r"corrupt or truncated: tile \(column 2, row 2\) of level 2, at pixel \(128, 128\): [\d,]+ of its"
    with pytest.raises(ImageError, match=message):
        read(path, 100, 100, 60, 2)
    np.testing.assert_array_equal(read(path, 100, 100, 60, 1), PIXELS[1][100:160, 100:160])


@pytest.mark.parametrize("compression", ["zlib", "lzw", "jpeg"])
def test_a_tile_whose_bytes_are_none_of_it_is_named(tmp_path: Path, compression: str) -> None:
    """Overwrite the second half of a tile; a JPEG decoder would fill in the rest."""
    path = write_pyramid(tmp_path / "slide.tif", compression=compression)
    offset, count = place_of(path, 1, 7)
    broken = bytearray(path.read_bytes())
    broken[offset + count // 2 : offset + count] = b"\0" * (count - count // 2)
    path.write_bytes(broken)
    with pytest.raises(ImageError, match=r"tile \(column 2, row 1\) of level 1, at pixel \(128, 64\): "):
        read(path, 130, 70, 20, 1)
    read(path, 0, 0, 60, 1)


@pytest.mark.parametrize("subifds", [True, False])
@pytest.mark.parametrize("lost", [1, 2])
def test_a_missing_level_is_named(tmp_path: Path, subifds: bool, lost: int) -> None:
    """The directory's offset is beyond the end of the file."""
    path = write_pyramid(tmp_path / "slide.tif", subifds=subifds)
    whole = path.read_bytes()
    with tifffile.TiffFile(path) as file:
        place = struct.pack("<I", file.series[0].levels[lost].keyframe.offset)
    path.write_bytes(whole.replace(place, struct.pack("<I", len(whole) + 1000)))
    with Slide(path) as slide, pytest.raises(ImageError, match=rf"level {lost} is missing: .* byte [\d,]+ of [\d,]+"):
        _ = slide.levels


def test_a_file_cut_within_a_directory_is_corrupt(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "slide.tif", subifds=False)
    with tifffile.TiffFile(path) as file:
        offset = file.series[0].levels[2].keyframe.offset
    path.write_bytes(path.read_bytes()[: offset + 20])
    with Slide(path) as slide, pytest.raises(ImageError, match=r"corrupt or truncated: .*level"):
        _ = slide.levels


OME = (
    '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
    '<Image ID="Image:0">{}</Image></OME>'
)
PIXELS_OF_OME = (
    '<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="640" SizeY="640" SizeC="3" SizeZ="1" SizeT="1" '
    '{}><Channel ID="Channel:0" SamplesPerPixel="3"/><TiffData/></Pixels>'
)


@pytest.mark.parametrize(
    ("options", "microns"),
    [
        ({}, None),
        ({"resolution": (40_000, 40_000), "resolutionunit": "CENTIMETER"}, 0.25),
        ({"resolution": (50_800, 50_800), "resolutionunit": "INCH"}, 0.5),
        ({"resolution": (40_000, 10_000), "resolutionunit": "CENTIMETER"}, 0.5),
        # Programs without this information write such values.
        ({"resolution": (72, 72), "resolutionunit": "INCH"}, None),
        ({"resolution": (1, 1), "resolutionunit": "NONE"}, None),
        ({"description": "Aperio Image Library v11.2.1\n640x640 |AppMag = 20|MPP = 0.4990|Left = 2"}, 0.499),
        ({"description": "Aperio Image Library v11.2.1\n640x640 |AppMag = 20|MPP = none"}, None),
        ({"description": OME.format(PIXELS_OF_OME.format('PhysicalSizeX="0.3" PhysicalSizeY="0.3"'))}, 0.3),
        (
            {
                "description": OME.format(
                    PIXELS_OF_OME.format(
                        'PhysicalSizeX="230" PhysicalSizeXUnit="nm" PhysicalSizeY="230" PhysicalSizeYUnit="nm"'
                    )
                )
            },
            0.23,
        ),
        ({"description": OME.format(PIXELS_OF_OME.format(""))}, None),
    ],
)
def test_how_large_pixels_are_is_what_the_file_says(
    tmp_path: Path, options: dict[str, Any], microns: float | None
) -> None:
    with Slide(write_pyramid(tmp_path / "slide.tif", subifds=False, **options)) as slide:
        assert slide.microns_per_pixel == (None if microns is None else pytest.approx(microns, rel=1e-3))


def write_planar(path: Path) -> Path:
    """Tiles with separate colour planes, which OpenSlide reads and `Slide` does not."""
    planes = np.moveaxis(PIXELS[0], -1, 0)
    tifffile.imwrite(
        path, planes, photometric="rgb", planarconfig="separate", tile=(64, 64), metadata=None, compression="zlib"
    )
    return path


def test_openslide_reads_what_tifffile_cannot(tmp_path: Path) -> None:
    path = write_planar(tmp_path / "slide.tif")
    with pytest.raises(ImageError, match="interleaved"):
        Slide(path)
    with ExitStack() as stack:
        slide = open_slide(path, stack)
        assert isinstance(slide, ScannerSlide)
        assert slide.levels == (Level(640, 640, 1),)
        np.testing.assert_array_equal(slide.region(30, 50, 100, 90), PIXELS[0][50:140, 30:130])
        small, cell = thumbnail_from_slide(slide, 100)
    assert cell == 7
    np.testing.assert_array_equal(small, PIXELS[0][::7, ::7])


def test_openslide_says_how_large_pixels_are_and_reads_levels(tmp_path: Path) -> None:
    """An Aperio slide as scanners write it, read by each reader."""
    path = tmp_path / "slide.svs"
    description = "Aperio Image Library v11.2.1\n640x640 [0,0 640x640] (64x64) JPEG/RGB Q=90|AppMag = 20|MPP = 0.4990"
    smooth = [np.full((side, side, 3), (200, 120, 160), np.uint8) for side in SIZES]
    options: dict[str, Any] = {
        "photometric": "rgb",
        "compression": "jpeg",
        "description": description,
        "metadata": None,
    }
    with tifffile.TiffWriter(path) as file:
        file.write(smooth[0], tile=(64, 64), **options)
        # The second image of an Aperio slide is a thumbnail, not a level.
        file.write(smooth[2][:100, :100], rowsperstrip=16, **options)
        for pixels in smooth[1:]:
            file.write(pixels, tile=(64, 64), **options)
    with ScannerSlide(path) as theirs, Slide(path) as ours:
        assert theirs.microns_per_pixel == ours.microns_per_pixel == pytest.approx(0.499)
        assert theirs.levels == ours.levels
        for level in range(len(ours.levels)):
            np.testing.assert_allclose(theirs.region(10, 20, 90, 80, level), ours.region(10, 20, 90, 80, level), atol=3)


def test_a_broken_slide_of_openslide_is_named(tmp_path: Path) -> None:
    path = write_planar(tmp_path / "slide.tif")
    # The red plane, column 0, row 8.
    offset, count = place_of(path, 0, 80)
    broken = bytearray(path.read_bytes())
    broken[offset : offset + count] = b"\xff" * count
    path.write_bytes(broken)
    with ExitStack() as stack, pytest.raises(ImageError, match=r"corrupt .* of level 0, at pixel \(0, 512\): "):
        open_slide(path, stack).region(0, 512, 100, 100)


def test_unreadable_slides_give_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "slide.tif"
    path.write_bytes(b"II*\0no slide")
    with ExitStack() as stack, pytest.raises(ImageError, match=r"^image is corrupt or truncated: .*; OpenSlide can't"):
        open_slide(path, stack)
    with ExitStack() as stack, pytest.raises(ImageError, match=r"^can't be read: No such file"):
        open_slide(tmp_path / "away.svs", stack)
    Image.fromarray(PIXELS[0]).save(tmp_path / "large.png")
    monkeypatch.setattr("plurum.images.image_limits.MAX_PIXELS", 100_000)
    with (
        ExitStack() as stack,
        pytest.raises(ImageError, match=r"not a TIFF that can be read by tiles: .*OpenSlide can't"),
    ):
        open_slide(tmp_path / "large.png", stack)
    monkeypatch.setitem(sys.modules, "openslide", None)
    with ExitStack() as stack, pytest.raises(ImageError, match=r"not installed: pip install 'plurum\[openslide\]'"):
        open_slide(path, stack)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(MissingExtraError, match=r"'tifffile'.*plurum\[slides\]"):
        Slide(path)


@pytest.mark.parametrize("openslide", [True, False])
def test_a_small_image_of_any_kind_is_cut_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, openslide: bool) -> None:
    Image.fromarray(PIXELS[1]).save(tmp_path / "image.png")
    if not openslide:
        monkeypatch.setitem(sys.modules, "openslide", None)
    with ExitStack() as stack:
        image = open_slide(tmp_path / "image.png", stack)
        assert isinstance(image, WholeImage)
        assert image.levels == (Level(320, 320, 1),)
        np.testing.assert_array_equal(image.region(30, 50, 100, 90), PIXELS[1][50:140, 30:130])
        small, cell = thumbnail_from_slide(image, 100)
    np.testing.assert_array_equal(small, PIXELS[1][::4, ::4])
    assert cell == 4


def test_large_files_have_levels_too(tmp_path: Path) -> None:
    """BigTIFF has 64-bit offsets."""
    path = tmp_path / "slide.tif"
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for number, pixels in enumerate(PIXELS):
            file.write(pixels, tile=(64, 64), photometric="rgb", subfiletype=int(number > 0), metadata=None)
    np.testing.assert_array_equal(read(path, 10, 20, 50, 2), PIXELS[2][20:70, 10:60])
    whole = path.read_bytes()
    with tifffile.TiffFile(path) as file:
        place = struct.pack("<Q", file.series[0].levels[2].keyframe.offset)
    path.write_bytes(whole.replace(place, struct.pack("<Q", len(whole) + 1)))
    with pytest.raises(ImageError, match="level 2 is missing"):
        read(path, 10, 20, 50, 1)


def _pages(path: Path, *subfiles: int) -> Path:
    with tifffile.TiffWriter(path) as file:
        for number, subfile in enumerate(subfiles):
            pixels = np.full((256, 256, 3), 50 + number, np.uint8)[
                :: 4 if subfile & 1 else 1, :: 4 if subfile & 1 else 1
            ]
            file.write(pixels, tile=(64, 64), photometric="rgb", subfiletype=subfile, metadata=None)
    return path


def test_a_thumbnail_in_front_is_not_taken_for_the_slide(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="its first page is a reduced copy or a mask"):
        Slide(_pages(tmp_path / "slide.tif", 1, 0))


def test_several_pages_of_equal_rank_are_refused(tmp_path: Path) -> None:
    with Slide(_pages(tmp_path / "slide.tif", 0, 0)) as slide, pytest.raises(ImageError, match="2 pages of equal rank"):
        slide.levels  # noqa: B018
    with Slide(_pages(tmp_path / "pyramid.tif", 0, 1)) as slide:
        assert slide.levels[0].width == 256


def test_a_slide_of_12_bits_that_says_so_is_refused(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 4096, (256, 256)).astype(np.uint16)
    tags = [("MaxSampleValue", 3, 1, 4095, True)]
    tifffile.imwrite(tmp_path / "slide.tif", pixels, tile=(64, 64), extratags=tags, metadata=None)
    with pytest.raises(ImageError, match="values that end at 4,095, not at 65,535"):
        Slide(tmp_path / "slide.tif")


def test_a_tile_whose_jpeg_is_larger_than_it_or_ends_early_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "slide.tif"
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    tifffile.imwrite(path, noise, tile=(64, 64), photometric="rgb", compression="jpeg", metadata=None)
    data = path.read_bytes()
    with Slide(path) as slide:
        assert slide.region(0, 0, 128, 128).shape == (128, 128, 3)
    for place, value, reason in ((5, (8000, 8000), "truncated"), (5, (72, 64), "holds a JPEG of 64 x 72")):
        at = data.index(b"\xff\xc0") + place
        path.write_bytes(data[:at] + struct.pack(">HH", *value) + data[at + 4 :])
        with Slide(path) as slide, pytest.raises(ImageError, match=reason):
            slide.region(0, 0, 128, 128)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_grey_of_16_bits_is_read_as_a_whole_by_the_servers_window(tmp_path: Path, suffix: str) -> None:
    values = np.random.default_rng(0).integers(1000, 1401, (64, 96)).astype(np.uint16)
    path = tmp_path / f"slide{suffix}"
    if suffix == ".tif":
        tifffile.imwrite(path, values, tile=(32, 32))
    else:
        Image.fromarray(values).save(path)
    with ExitStack() as stack:
        slide = open_slide(path, stack, (1200.5, 401.0))
        np.testing.assert_allclose(slide.region(8, 16, 24, 32), (values[16:48, 8:32] - 1000.0) / 400 * 255, atol=0.51)
