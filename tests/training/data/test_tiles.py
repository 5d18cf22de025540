"""Tiles: positions, selection, pixels, and bounded memory for large files."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image

from plurum.errors import DataError, ImageError, SettingsError
from plurum.images import TooLargeImageError, open_image, pixels_from_image
from plurum.slides.slides import Slide
from plurum.slides.tissue import is_background, tile_starts
from plurum.spec import ImageSpec
from plurum.training import load_data
from plurum.training.data import tiles as tiles_module
from plurum.training.data.tiles import ImageRegion, Tiling, regions_from_file

WHITE = 240
IMAGE = ImageSpec(height=100, width=100, mean=(0, 0, 0), std=(1, 1, 1))


def slide_pixels(height: int, width: int) -> npt.NDArray[np.uint8]:
    """Write glass with two rectangles of tissue: half of the tile at (0, 0) and all of that at (200, 100)."""
    pixels = np.full((height, width, 3), WHITE, dtype=np.uint8)
    noise = np.random.default_rng(0).integers(20, 200, (100, 100, 3), dtype=np.uint8)
    pixels[:100, :50] = noise[:, :50]
    pixels[100:200, 200:300] = noise
    return pixels


@pytest.fixture
def all_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat small files as too large to be decoded at once."""
    monkeypatch.setattr(tiles_module, "_is_large", lambda _size: True)


@pytest.mark.parametrize(
    ("length", "size", "starts"),
    [
        (100, 100, [0]),
        (99, 100, [0]),
        (200, 100, [0, 100]),
        (201, 100, [0, 50, 101]),
        (250, 100, [0, 75, 150]),
        (1000, 300, [0, 233, 467, 700]),
    ],
)
def test_tiles_begin_where_as_few_as_possible_cover_the_image(length: int, size: int, starts: list[int]) -> None:
    assert tile_starts(length, size) == starts
    assert starts[-1] == max(0, length - size)


@pytest.mark.parametrize(
    ("pixel", "background"),
    [((220, 220, 220), True), ((255, 255, 219), False), ((10, 10, 10), True), ((11, 0, 0), False), ((180,) * 3, False)],
)
def test_background_is_nearly_white_or_nearly_empty(pixel: tuple[int, int, int], background: bool) -> None:
    assert is_background(np.array([[pixel]], dtype=np.uint8)).item() is background
    if len(set(pixel)) == 1:
        assert is_background(np.array([[pixel[0]]], dtype=np.uint8)).item() is background


@pytest.mark.parametrize("most", [1, 2, 16])
@pytest.mark.parametrize("large", [False, True])
def test_the_tiles_with_most_tissue_are_kept_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, large: bool
) -> None:
    if large:
        monkeypatch.setattr(tiles_module, "_is_large", lambda _size: True)
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, slide_pixels(300, 400), tile=(64, 48), photometric="rgb", compression="zlib")
    pictures = regions_from_file(path, Tiling(100, most))
    half, whole = (0, 0, 100, 100), (200, 100, 100, 100)
    assert [picture.box for picture in pictures] == ([whole] if most == 1 else [half, whole])
    assert pictures[-1].source == f"{path}#xywh=200,100,100,100"


def test_small_images_stay_whole_and_long_ones_are_cut_along_one_side(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(20, 200, (60, 250, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "long.png")
    Image.fromarray(noise[:, :100]).save(tmp_path / "small.png")
    tiling = Tiling(100, 16)
    assert regions_from_file(tmp_path / "small.png", tiling) == [ImageRegion(tmp_path / "small.png")]
    boxes = [picture.box for picture in regions_from_file(tmp_path / "long.png", tiling)]
    assert boxes == [(0, 0, 100, 60), (75, 0, 100, 60), (150, 0, 100, 60)]


KINDS: list[tuple[str, npt.NDArray[Any], dict[str, Any]]] = [
    ("rgb tiles", np.random.default_rng(1).integers(0, 256, (150, 170, 3), dtype=np.uint8), {"tile": (64, 48)}),
    ("rgb strips", np.random.default_rng(1).integers(0, 256, (150, 170, 3), dtype=np.uint8), {"rowsperstrip": 7}),
    ("grey", np.random.default_rng(1).integers(0, 256, (150, 170), dtype=np.uint8), {"tile": (64, 48)}),
    ("grey 16", np.random.default_rng(1).integers(0, 65536, (150, 170), dtype=np.uint16), {"tile": (64, 48)}),
    (
        "white is 0",
        np.random.default_rng(1).integers(0, 256, (150, 170), dtype=np.uint8),
        {"photometric": "miniswhite"},
    ),
    (
        "rgba",
        np.random.default_rng(1).integers(0, 256, (150, 170, 4), dtype=np.uint8),
        {"extrasamples": ["unassalpha"]},
    ),
    (
        "jpeg",
        np.asarray(Image.linear_gradient("L").resize((176, 160)).convert("RGB")),
        {"tile": (64, 48), "compression": "jpeg"},
    ),
    (
        "lzw, predicted",
        np.random.default_rng(1).integers(0, 256, (150, 170, 3), dtype=np.uint8),
        {"tile": (64, 48), "compression": "lzw", "predictor": True},
    ),
]


@pytest.mark.parametrize(("pixels", "options"), [kind[1:] for kind in KINDS], ids=[kind[0] for kind in KINDS])
@pytest.mark.usefixtures("all_are_large")
def test_a_tile_of_a_large_file_is_what_the_one_rule_makes_of_it(
    tmp_path: Path, pixels: npt.NDArray[Any], options: dict[str, Any]
) -> None:
    path = tmp_path / "slide.tif"
    colour = {"photometric": "rgb"} if pixels.ndim == 3 else {"photometric": "minisblack"}
    tifffile.imwrite(path, pixels, **(colour | options))
    whole = open_image(path.read_bytes())
    expected = pixels_from_image(whole.crop((40, 30, 140, 130)), height=100, width=100)
    tile = open_image(ImageRegion(path, (40, 30, 100, 100)).read_encoded())
    # JPEG decoders may differ by rounding.
    tolerance = 3 if options.get("compression") == "jpeg" else 0
    np.testing.assert_allclose(pixels_from_image(tile, height=100, width=100), expected, atol=tolerance)


@pytest.mark.parametrize(
    ("pixels", "options", "message"),
    [
        (np.full((90, 90), np.nan, np.float32), {}, "pixels of type float32: expected 8- or 16-bit"),
        (np.zeros((3, 90, 90), np.uint8), {"planarconfig": "separate", "photometric": "rgb"}, "interleaved colours"),
        (
            np.zeros((90, 90), np.uint8),
            {"photometric": "palette", "colormap": np.zeros((3, 256), np.uint16)},
            "of kind PALETTE can't be read by tiles",
        ),
        (np.zeros((90, 90), np.uint8), {"extratags": [(274, "H", 1, 6, True)]}, "turned by its Orientation tag"),
    ],
)
@pytest.mark.usefixtures("all_are_large")
def test_large_files_of_other_kinds_have_a_fault(
    tmp_path: Path, pixels: npt.NDArray[Any], options: dict[str, Any], message: str
) -> None:
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, pixels, **options)
    (picture,) = regions_from_file(path, Tiling(32, 4))
    assert message in picture.fault
    with pytest.raises(ImageError, match="image"):
        picture.read_encoded()


def test_empty_broken_and_missing_files_have_a_fault(tmp_path: Path) -> None:
    Image.new("RGB", (200, 200), (235, 235, 235)).save(tmp_path / "glass.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    whole = io.BytesIO()
    Image.fromarray(slide_pixels(300, 400)).save(whole, "PNG")
    (tmp_path / "cut.png").write_bytes(whole.getvalue()[:2000])
    for name, fault in (
        ("glass.png", "no tile of 100 pixels has at least 10% tissue"),
        ("broken.png", "not a JPEG, PNG, TIFF, WEBP, AVIF, JPEG2000 or DICOM image"),
        ("cut.png", "corrupt or truncated"),
        ("away.png", "No such file"),
    ):
        (picture,) = regions_from_file(tmp_path / name, Tiling(100, 4))
        assert fault in picture.fault


@pytest.mark.usefixtures("all_are_large")
def test_a_truncated_slide_has_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, slide_pixels(300, 400), tile=(64, 48), photometric="rgb", compression="zlib")
    whole = path.read_bytes()
    broken = bytearray(whole)
    with tifffile.TiffFile(path) as file:
        offset = file.pages.first.dataoffsets[0]
    broken[offset : offset + 40] = b"\xff" * 40
    path.write_bytes(broken)
    (picture,) = regions_from_file(path, Tiling(100, 4))
    assert "corrupt or truncated" in picture.fault
    with Slide(path) as slide, pytest.raises(ImageError, match="corrupt or truncated"):
        slide.region(0, 0, 10, 10)


def test_the_lowest_level_of_a_pyramid_with_enough_pixels_is_looked_at(tmp_path: Path) -> None:
    """Only the second of three levels is grey all over, so only there everything is tissue."""
    path = tmp_path / "pyramid.tif"
    with tifffile.TiffWriter(path) as file:
        options: dict[str, Any] = {"tile": (64, 64), "photometric": "rgb"}
        file.write(np.full((1024, 1024, 3), WHITE, np.uint8), subifds=2, **options)
        file.write(np.full((512, 512, 3), 100, np.uint8), subfiletype=1, **options)
        file.write(np.full((256, 256, 3), WHITE, np.uint8), subfiletype=1, **options)
    with Slide(path) as slide:
        tissue, cell = slide.tissue(32, 64)
        assert tissue.all()
        assert (tissue.shape, cell) == ((512, 512), 2)
        # Tiles of 128 pixels have 32 samples on the third level, where all is glass.
        tissue, cell = slide.tissue(32, 128)
        assert not tissue.any()
        assert (tissue.shape, cell) == ((256, 256), 4)


@pytest.mark.parametrize(
    ("size", "most", "option"),
    [(7, 1, "--tile-size: .* got 7"), (8001, 1, "8001"), (64, 0, "--max-tiles: expected at least 1, got 0")],
)
def test_invalid_tile_settings_are_refused(size: int, most: int, option: str) -> None:
    with pytest.raises(SettingsError, match=option):
        Tiling(size, most)
    with pytest.raises(SettingsError, match=option):
        load_data("digits", tile_size=size, max_tiles=most)


def test_arrays_are_not_cut() -> None:
    with pytest.raises(SettingsError, match="--tile-size: expected image files, got arrays in digits"):
        load_data("digits", tile_size=64)


BOUNDED = """
import resource, sys
import numpy as np, tifffile, zlib
from pathlib import Path
from plurum.training.data.tiles import ImageRegion, Tiling, regions_from_file
path = Path(sys.argv[1])
regions_from_file(path, Tiling(8, 1))  # imports
ImageRegion(path.with_name("small.tif"), (0, 0, 8, 8)).read_encoded()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pictures = regions_from_file(path.with_name("large.tif"), Tiling(512, 4))
for picture in pictures:
    picture.read_encoded()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, *(p.box[:2] for p in pictures))
"""


def test_a_slide_of_108_megapixels_never_lies_in_memory_whole(tmp_path: Path) -> None:
    width, height, side = 12_000, 9_000, 512
    glass = np.full((side, side, 3), WHITE, np.uint8)
    tissue = np.random.default_rng(0).integers(60, 62, (side, side, 3), dtype=np.uint8)
    across, down = -(-width // side), -(-height // side)
    tiles = (tissue if index in {5, 30} else glass for index in range(across * down))
    tifffile.imwrite(
        tmp_path / "large.tif",
        tiles,
        shape=(height, width, 3),
        dtype=np.uint8,
        tile=(side, side),
        photometric="rgb",
        compression="zlib",
    )
    tifffile.imwrite(tmp_path / "small.tif", tissue, photometric="rgb")
    with pytest.raises(TooLargeImageError, match="12000 x 9000 pixels is too large"):
        open_image((tmp_path / "large.tif").read_bytes())
    ended = subprocess.run(
        [sys.executable, "-c", BOUNDED, str(tmp_path / "small.tif")], capture_output=True, text=True, check=True
    )
    grown_mb, *boxes = ended.stdout.split(maxsplit=1)
    # The whole image takes 324 MB, a tile less than 1 MB.
    assert float(grown_mb) < 40
    # 24 tiles of 512 pixels cover 12,000 pixels, so the sixth starts at 2,497.
    assert boxes == ["(2497, 0) (2997, 0) (2997, 499) (3496, 499)\n"]


def test_a_slide_without_tile_size_is_refused_and_the_option_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plurum.images.image_limits.MAX_PIXELS", 10_000)
    monkeypatch.setattr(tiles_module, "MAX_PIXELS", 10_000)
    for number in range(6):
        path = tmp_path / "AB"[number % 2] / f"{number}.tif"
        path.parent.mkdir(exist_ok=True)
        tifffile.imwrite(path, slide_pixels(300, 400), tile=(64, 48), photometric="rgb")
    message = "6 of 6 images can't be read; .*image of 400 x 300 pixels is too large: .* with --tile-size"
    for small_bytes in (1 << 25, 0):
        # The header of a large file is checked before the file is read.
        monkeypatch.setattr(tiles_module, "_SMALL_BYTES", small_bytes)
        with pytest.raises(DataError, match=message):
            load_data(str(tmp_path)).pixels(IMAGE)


@pytest.mark.usefixtures("all_are_large")
def test_members_see_the_tiles(tmp_path: Path) -> None:
    pixels = slide_pixels(300, 400)
    for number in range(6):
        path = tmp_path / "AB"[number % 2] / f"{number}.tif"
        path.parent.mkdir(exist_ok=True)
        tifffile.imwrite(path, pixels + np.uint8(number), tile=(64, 48), photometric="rgb", compression="zlib")
    data = load_data(str(tmp_path), tile_size=100, max_tiles=1)
    seen = data.pixels(IMAGE)
    for row, source in enumerate(data.table.sources):
        number = int(Path(source.split("#")[0]).stem)
        np.testing.assert_array_equal(seen[row], pixels[100:200, 200:300] + np.uint8(number))


@pytest.mark.parametrize("options", [{"tile": (64, 48)}, {"rowsperstrip": 7}])
def test_the_coarse_grid_is_every_so_many_pixels_across_tiles_and_strips(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    path = tmp_path / "slide.tif"
    pixels = np.random.default_rng(2).integers(0, 256, (151, 173), dtype=np.uint8)
    tifffile.imwrite(path, pixels, photometric="minisblack", **options)
    with Slide(path) as slide:
        tissue, cell = slide.tissue(20, 100)
    assert cell == 5
    np.testing.assert_array_equal(tissue, ~is_background(pixels[::5, ::5]))
