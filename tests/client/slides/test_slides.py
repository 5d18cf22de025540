"""Slides: tiles, pooled predictions, heat maps, and a slide of 20,000 x 20,000 pixels with a real server."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import tifffile
from PIL import Image

from plurum.client import EnsembleClient, patients_from_answers
from plurum.client.slides.heat_maps import SLIDE_FILES, heat_map, tile_grid, write_slide
from plurum.client.slides.slide_answers import SlidePrediction
from plurum.client.slides.slides import SlideSettings, predict_slide
from plurum.errors import ImageError, MissingExtraError, OutputError, SettingsError
from plurum.serving import Server
from tests.client.slides.painter import PURPLE, Painter, answer_of
from tests.client.slides.slide_writer import MICRONS, TISSUE, PlantedTile, write_slide_file

SIZE = 2048


def classify(painter: Painter, path: Path, **settings: Any) -> SlidePrediction:
    return predict_slide(cast("EnsembleClient", painter), path, SlideSettings(**settings))


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slide_file(tmp_path_factory.mktemp("slide") / "slide.tif", SIZE, 3, PlantedTile())


def test_only_tiles_with_tissue_are_classified(slide: Path) -> None:
    painter = Painter()
    done: list[tuple[int, int]] = []
    answer = predict_slide(
        cast("EnsembleClient", painter), slide, SlideSettings(), lambda now, of: done.append((now, of))
    )
    assert done == [(count + 1, answer.tiles_asked) for count in range(answer.tiles_asked)]
    assert (answer.level, answer.scale, answer.width, answer.height) == (0, 1, SIZE, SIZE)
    assert answer.microns_per_pixel == pytest.approx(MICRONS)
    assert answer.tiles_asked + answer.tiles_skipped == 32 * 32
    # The disc's share of the slide, and the rim that its edge touches.
    assert 0.2**2 * math.pi * 1024 < answer.tiles_asked < 0.22**2 * math.pi * 1024
    with tifffile.TiffFile(slide) as file:
        whole = file.asarray()
    for seen, (x, y) in zip(painter.seen, answer.tiles[["x", "y"]].to_numpy(), strict=True):
        np.testing.assert_array_equal(seen, whole[y : y + 64, x : x + 64])
        assert (seen[..., 1] < 200).mean() > 0.05


def test_slide_is_pooled_like_the_images_of_a_patient(slide: Path) -> None:
    means, majority, most = (classify(Painter(), slide, rule=rule) for rule in ("mean", None, "max"))
    tiles = means.tiles
    assert means.answer.probabilities == pytest.approx(
        {"CE": tiles["p_CE"].mean(), "LAA": tiles["p_LAA"].mean()}, abs=1e-6
    )
    # What the server says that the ensemble was fitted with.
    assert majority.rule == "majority"
    assert majority.answer.probabilities["CE"] == pytest.approx((tiles["label"] == "CE").mean(), abs=1e-6)
    high = tiles["p_CE"].max(), tiles["p_LAA"].max()
    assert most.answer.probabilities["CE"] == pytest.approx(high[0] / sum(high), abs=1e-6)
    assert means.answer.label == majority.answer.label == "LAA"
    assert means.answer.confidence == means.answer.probabilities["LAA"]
    assert means.answer.entropy == pytest.approx(tiles["entropy"].mean(), abs=1e-6)
    assert means.answer.disagreement == pytest.approx(0.02)
    assert means.tiles_review == tiles["review"].sum() > 0


@pytest.mark.parametrize(
    ("microns", "tile_size", "level", "side"),
    [(None, None, 0, 64), (0.25, 64, 0, 64), (0.5, 32, 1, 32), (0.4, 40, 0, 64), (1.0, 32, 2, 32), (2.0, 16, 2, 32)],
)
def test_level_follows_from_the_requested_pixel_size(
    slide: Path, microns: float | None, tile_size: int | None, level: int, side: int
) -> None:
    painter = Painter()
    answer = classify(painter, slide, microns_per_pixel=microns, tile_size=tile_size)
    assert answer.level == level
    assert {seen.shape for seen in painter.seen} == {(side, side, 3)}
    # In pixels of level 0, whatever was read.
    assert set(answer.tiles["width"]) == {side * 2**level}
    grid, _, _ = tile_grid(answer, answer.tiles["p_CE"])
    rows, columns = np.nonzero(grid > 0.8)
    tile = SIZE / grid.shape[0]
    expected = (0.5 * SIZE, 0.42 * SIZE)
    assert columns.min() * tile == pytest.approx(expected[0], abs=tile)
    assert rows.min() * tile == pytest.approx(expected[1], abs=tile)
    assert (columns.max() + 1) * tile == pytest.approx(0.6 * SIZE, abs=tile)


def test_missing_pixel_size_must_be_given(tmp_path: Path) -> None:
    path = write_slide_file(tmp_path / "silent.tif", 1024, 2, PlantedTile(), resolution=None, resolutionunit=None)
    with pytest.raises(SettingsError, match=r"silent.tif: the file does not state .* Give --file-microns-per-pixel"):
        classify(Painter(), path, microns_per_pixel=1.0)
    assert classify(Painter(), path).microns_per_pixel is None
    known = classify(Painter(), path, microns_per_pixel=1.0, file_microns_per_pixel=0.5)
    assert (known.level, known.microns_per_pixel) == (1, 0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tile_size": 7}, "tile_size: expected 8 to 8,000 pixels, got 7"),
        ({"microns_per_pixel": 0}, "expected a number above 0, such as 0.5, got 0"),
        ({"file_microns_per_pixel": math.nan}, "expected a number above 0, such as 0.5, got nan"),
        ({"least_tissue": 1.5}, "least_tissue: expected 0 to 1, got 1.5"),
        ({"microns_per_pixel": 0.1}, r"slide.tif: microns_per_pixel: expected at least the file's 0.25, got 0.1"),
    ],
)
def test_impossible_settings_give_one_line(slide: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        classify(Painter(), slide, **settings)


def test_tile_size_is_required_if_the_server_states_none(slide: Path) -> None:
    with pytest.raises(SettingsError, match="tile_size: expected a number such as 512"):
        classify(Painter(size=None), slide)
    assert classify(Painter(size=None), slide, tile_size=64).tiles_asked


def test_empty_and_invalid_slides_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "glass.tif"
    tifffile.imwrite(path, np.full((500, 500, 3), 238, np.uint8), tile=(64, 64), photometric="rgb")
    with pytest.raises(ImageError, match=r"glass.tif: none of its 64 tiles has at least 10% tissue"):
        classify(Painter(), path)
    path.write_bytes(b"no slide")
    with pytest.raises(
        ImageError, match=r"glass.tif: 8 bytes that are not a JPEG, PNG, TIFF, WEBP, AVIF, JPEG2000 or DICOM"
    ):
        classify(Painter(), path)


def test_broken_tile_is_named_and_leaves_no_file(slide: Path, tmp_path: Path) -> None:
    broken = bytearray(slide.read_bytes())
    with tifffile.TiffFile(slide) as file:
        page = file.pages.first
        tile = 3 * 8 + 4
        offset, count = page.dataoffsets[tile], page.databytecounts[tile]
    broken[offset : offset + count] = b"\0" * count
    path = tmp_path / "broken.tif"
    path.write_bytes(broken)
    with pytest.raises(ImageError, match=r"broken.tif: .*tile \(column 4, row 3\) of level 0, at pixel \(1024, 768\)"):
        classify(Painter(), path)
    assert [one.name for one in tmp_path.iterdir()] == ["broken.tif"]


@pytest.mark.parametrize("kind", ["grey", "rgba"])
def test_grey_and_transparent_slides_are_sent_unchanged(tmp_path: Path, kind: str) -> None:
    pixels = np.full((512, 512, 4), 240, np.uint8)
    pixels[100:300, 100:300] = (*PURPLE, 255)
    path = tmp_path / "slide.tif"
    options: dict[str, Any] = {"photometric": "rgb", "extrasamples": ["unassalpha"]}
    shown = pixels if kind == "rgba" else pixels[..., 1]
    tifffile.imwrite(path, shown, tile=(64, 64), **(options if kind == "rgba" else {"photometric": "minisblack"}))
    painter = Painter()
    if kind == "grey":
        painter.stream = lambda images, **_: (answer_of(0.9) for image in images if painter.seen.append(image) is None)  # type: ignore[method-assign,func-returns-value]
    answer = classify(painter, path)
    assert answer.tiles_asked == len(painter.seen) == 16
    assert {np.asarray(seen).shape for seen in painter.seen} == {(64, 64, 4) if kind == "rgba" else (64, 64)}
    assert len(heat_map(answer)) > 1000


def test_failed_tiles_are_named_and_the_slide_needs_review(slide: Path) -> None:
    whole = classify(Painter(), slide)
    answer = classify(Painter(failing=[0, 5]), slide)
    assert (whole.answer.review, answer.answer.review, answer.tiles_failed) == (False, True, 2)
    assert list(np.flatnonzero(answer.tiles["error"].notna())) == [0, 5]
    assert answer.tiles.loc[5, ["label", "review"]].isna().all()
    assert answer.tiles["confidence"].isna()[5]
    assert len(heat_map(answer)) > 1000
    with pytest.raises(ImageError, match=r"slide.tif: all \d+ tiles failed, the first with: no good"):
        classify(Painter(failing=range(10_000)), slide)


@pytest.mark.parametrize(
    ("answers", "review"),
    [
        ([0.95] * 5, False),
        ([0.95, 0.95, 0.6, 0.95, 0.85], False),
        ([0.95, 0.6, 0.6, 0.95], True),
        ([0.97, 0.03], True),
        ([0.95, 0.95, math.nan, 0.95], True),
    ],
)
def test_when_a_slide_needs_review(tmp_path: Path, answers: list[float], review: bool) -> None:
    """Half of the tiles need review, or confident tiles contradict each other."""
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, np.full((64, 64 * len(answers), 3), TISSUE, np.uint8), tile=(64, 64), photometric="rgb")
    painter = Painter()
    painter.stream = lambda images, **_: (answer_of(ce) for ce, _ in zip(answers, images, strict=True))  # type: ignore[method-assign]
    assert classify(painter, path, rule="mean").answer.review is review


def test_slides_of_a_patient_are_pooled_like_images(slide: Path, tmp_path: Path) -> None:
    other = write_slide_file(tmp_path / "other.tif", 1024, 1, PlantedTile(side=0.3, x=0.35, y=0.35))
    slides = [classify(Painter(), path, rule="mean").answer for path in (slide, other, slide)]
    one, both = patients_from_answers(["b", "b", "a"], slides, ("CE", "LAA"), "mean")
    assert (one.patient, both.patient, both.images) == ("a", "b", 2)
    assert one.probabilities == pytest.approx(slides[0].probabilities)
    mean = (slides[0].probabilities["CE"] + slides[1].probabilities["CE"]) / 2
    assert both.probabilities["CE"] == pytest.approx(mean)


def test_mean_of_the_tiles(slide: Path) -> None:
    answer = classify(Painter(), slide, rule="mean").answer
    assert answer.member_probabilities["one"] == pytest.approx(answer.probabilities, abs=1e-6)
    assert answer.std == {"CE": 0, "LAA": 0}
    # Each tile's set holds its winner alone, and most say LAA.
    assert answer.prediction_set == ("LAA",)


def test_tiles_are_drawn_at_their_positions(slide: Path) -> None:
    answer = classify(Painter(), slide, tile_size=100)
    grid, across, down = tile_grid(answer, np.arange(answer.tiles_asked))
    assert grid.shape == (len(down) - 1, len(across) - 1) == (21, 21)
    assert np.isnan(grid).sum() == answer.tiles_skipped
    assert (across[0], across[-1], down[0], down[-1]) == (0, SIZE, 0, SIZE)
    for number, (x, y, width, height) in enumerate(answer.tiles[["x", "y", "width", "height"]].to_numpy()):
        ((row, column),) = np.argwhere(grid == number)
        # Neighbours share evenly what both cover.
        np.testing.assert_allclose([across[column], across[column + 1]], [x, x + width], atol=3)
        np.testing.assert_allclose([down[row], down[row + 1]], [y, y + height], atol=3)


def test_heat_maps_table_and_answer_are_written(slide: Path, tmp_path: Path) -> None:
    answer = classify(Painter(), slide)
    write_slide(answer, tmp_path / "out" / "slide")
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out" / "slide").iterdir()} == {0o600}
    assert sorted(path.name for path in (tmp_path / "out" / "slide").iterdir()) == sorted(SLIDE_FILES)
    kept = pd.read_parquet(tmp_path / "out" / "slide" / "tiles.parquet")
    assert list(kept.columns) == [
        *("x", "y", "width", "height", "level", "label", "confidence", "p_CE", "p_LAA", "entropy", "disagreement"),
        *("review", "error"),
    ]
    pd.testing.assert_frame_equal(kept, answer.tiles)
    said = json.loads((tmp_path / "out" / "slide" / "slide.json").read_text())
    assert said == answer.to_dict()
    assert said["label"] == "LAA"
    for name in SLIDE_FILES[:2]:
        with Image.open(tmp_path / "out" / "slide" / name) as picture:
            assert min(picture.size) > 500
    assert heat_map(answer) == heat_map(answer) != heat_map(answer, "uncertainty") != heat_map(answer, heat_class="CE")
    with pytest.raises(SettingsError, match="heat_class: expected one of CE, LAA, got 'XX'"):
        write_slide(answer, tmp_path / "none", "XX")
    assert not (tmp_path / "none").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        write_slide(answer, tmp_path / "file")


@pytest.mark.parametrize(("module", "action"), [("pandas", "predict"), ("pyarrow", "write"), ("matplotlib", "map")])
def test_a_missing_package_names_its_extra(
    slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, action: str
) -> None:
    answer = classify(Painter(), slide)
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, module, None)
    calls: dict[str, Callable[[], object]] = {
        "predict": lambda: classify(Painter(), slide),
        "write": lambda: write_slide(answer, tmp_path / "out"),
        "map": lambda: heat_map(answer),
    }
    with pytest.raises(MissingExtraError, match=rf"'{module}.*plurum\[slides\]"):
        calls[action]()
    assert not (tmp_path / "out").exists()


WHOLE = r"""
import re, sys
from pathlib import Path
from plurum.client import EnsembleClient
from plurum.client.slides.heat_maps import write_slide
from plurum.client.slides.slides import SlideSettings, predict_slide
with EnsembleClient(sys.argv[1]) as client:
    slide = predict_slide(client, sys.argv[2], SlideSettings(tile_size=128, microns_per_pixel=1.0, rule="mean"))
write_slide(slide, Path(sys.argv[3]), sys.argv[4])
assert not {"torch", "timm"} & set(sys.modules)
# Not getrusage's, which begins with what the process had that started this one.
print(int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024)
"""


def telling_colour(client: EnsembleClient) -> tuple[tuple[int, int, int], str]:
    """The colour of which the ensemble says most differently what it says of tissue, and the class that it is about."""
    colours = [(90, 40, 130), (60, 20, 60), (200, 40, 40), (40, 90, 200), (30, 130, 60)]
    tissue, *others = client.predict([np.full((32, 32, 3), colour, np.uint8) for colour in (TISSUE, *colours)])
    risen, name, colour = max(
        (other.probabilities[name] - tissue.probabilities[name], name, colour)
        for other, colour in zip(others, colours, strict=True)
        for name in other.probabilities
    )
    assert risen > 0.2
    return colour, name


def pixels_at(picture: npt.NDArray[np.uint8], x: float, y: float) -> npt.NDArray[np.float64]:
    """The colour at a place of the slide, given as shares: the axes' frame is the outermost that is black."""
    black = (picture[..., :3] < 30).all(axis=-1)
    rows, columns = (np.flatnonzero(black.mean(axis=axis) > 0.5) for axis in (1, 0))
    top, bottom = rows.min(), rows.max()
    left = columns.min()
    # The slide is square, and the bar stands to its right.
    right = left + bottom - top
    row, column = round(top + y * (bottom - top)), round(left + x * (right - left))
    return np.asarray(picture[row - 2 : row + 3, column - 2 : column + 3, :3].mean(axis=(0, 1)), dtype=np.float64)


@pytest.mark.slow
@pytest.mark.triton
def test_a_slide_of_400_megapixels_shows_what_is_planted_in_less_than_a_gigabyte(
    served: Server, tmp_path: Path
) -> None:
    with EnsembleClient(served.urls.grpc) as client:
        colour, name = telling_colour(client)
        inside, outside = (
            client.predict([np.full((128, 128, 3), one, np.uint8)])[0].probabilities[name] for one in (colour, TISSUE)
        )
    path = write_slide_file(tmp_path / "slide.tif", 20_000, 5, PlantedTile(colour=colour))
    words = [sys.executable, "-c", WHOLE, served.urls.grpc, str(path), str(tmp_path / "out"), name]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    # The level that is read is 75 MB, the largest 1,200.
    assert int(ended.stdout) < 1000
    said = json.loads((tmp_path / "out" / "slide.json").read_text())
    assert (said["level"], said["width"], said["height"]) == (2, 20_000, 20_000)
    assert said["tiles_asked"] < said["tiles_skipped"] / 4
    assert said["tiles_failed"] == 0
    tiles = pd.read_parquet(tmp_path / "out" / "tiles.parquet")
    x, y = (tiles["x"] + tiles["width"] / 2) / 20_000, (tiles["y"] + tiles["height"] / 2) / 20_000
    planted = x.between(0.515, 0.585) & y.between(0.435, 0.505)
    tissue = (np.hypot(x - 0.5, y - 0.5) < 0.18) & ~(x.between(0.48, 0.62) & y.between(0.4, 0.54))
    assert planted.sum() >= 6
    np.testing.assert_allclose(tiles[planted][f"p_{name}"], inside, atol=1e-3)
    np.testing.assert_allclose(tiles[tissue][f"p_{name}"], outside, atol=1e-3)
    for file, numbers in (("probability.png", (inside, outside)), ("uncertainty.png", None)):
        picture = np.asarray(Image.open(tmp_path / "out" / file).convert("RGB"))
        there, beside, glass = (pixels_at(picture, *place) for place in ((0.55, 0.47), (0.4, 0.6), (0.1, 0.1)))
        assert np.abs(glass - glass.mean()).max() < 1
        assert np.abs(there - beside).max() > 20 or numbers is None
        if numbers:
            for seen, number in zip((there, beside), numbers, strict=True):
                assert_on_the_bar(seen, number)


def assert_on_the_bar(seen: npt.NDArray[np.float64], number: float) -> None:
    """A colour of the map is the bar's at that number, laid over a pale grey."""
    from matplotlib import colormaps

    bar = np.asarray(colormaps["viridis"](np.linspace(0, 1, 101))[:, :3]) * 255
    over = 0.65 * bar[:, None] + 0.35 * np.arange(190, 254)[None, :, None]
    best = np.abs(over - seen).sum(axis=-1).min(axis=1).argmin() / 100
    assert best == pytest.approx(number, abs=0.04)
