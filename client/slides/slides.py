"""Ask about an image too large to send: its tiles, read one after the other, and one answer of them all.

Legend: tiles lie in `[rows, columns]`, from the top left; `classes` stands for their number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from plurum.client.connection.client import EnsembleClient
from plurum.client.connection.payload import AnyImage
from plurum.client.connection.predictions import Served
from plurum.client.slides.slide_answers import SlideAnswers, SlidePrediction, Tiles
from plurum.errors import ImageError, SettingsError
from plurum.images import MAX_PIXELS, MIN_SIDE
from plurum.slides.scanners import open_slide
from plurum.slides.slides import AnySlide, coarsest_level, thumbnail_from_slide
from plurum.slides.tissue import LEAST_TISSUE, tile_starts, tissue_mask, tissue_share
from plurum.spec import PatientRule

__all__ = ["SlideSettings", "predict_slide"]

# A tile is judged by at least 4 × 4 points of the thumbnail, which is never larger than 4,096 a side.
_POINTS, _LEAST_SIDE, _MOST_SIDE = 4, 1024, 4096
# Finer than the file has it is no magnification of it; a scanner's own numbers are a little off.
_FINEST = 0.95


@dataclass(frozen=True)
class SlideSettings:
    """How a slide is cut, and how its tiles' answers become one.

    Attributes:
        tile_size: Side of a tile in pixels of `microns_per_pixel`: what the members were trained on. None takes the
            served size.
        microns_per_pixel: Of the image that is cut. None takes the file's own pixels, as training does.
        file_microns_per_pixel: Of the file's own pixels, for files that don't say; believed before what they say.
        least_tissue: Share of a tile, 0 to 1; those with less are not asked about.
        rule: None takes what the ensemble was fitted with, else the mean.
        batch_size: Tiles in one request, at most; None leaves it to the client.

    Raises:
        SettingsError: a value that can't be used.
    """

    tile_size: int | None = None
    microns_per_pixel: float | None = None
    file_microns_per_pixel: float | None = None
    least_tissue: float = LEAST_TISSUE
    rule: PatientRule | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        highest = int(MAX_PIXELS**0.5)
        if self.tile_size is not None and not MIN_SIDE <= self.tile_size <= highest:
            raise SettingsError(
                f"tiles of {self.tile_size} pixels can't be had: {MIN_SIDE} to {highest:,} are possible"
            )
        for microns in (self.microns_per_pixel, self.file_microns_per_pixel):
            if microns is not None and not 0 < microns < math.inf:
                raise SettingsError(f"{microns:g} microns per pixel are none; give a number above 0, such as 0.5")
        if not 0 <= self.least_tissue <= 1:
            raise SettingsError(f"a share of {self.least_tissue:g} is none; give least_tissue from 0 to 1")


def predict_slide(
    client: EnsembleClient,
    path: str | Path,
    settings: SlideSettings | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SlidePrediction:
    """Return one answer for a slide, and those of its tiles.

    Tiles are read while others are on their way; neither all of them nor the slide ever lie in memory.

    Args:
        client: Whom to ask.
        path: A tiled TIFF, or what else OpenSlide reads where it is installed.
        settings: How it is cut.
        progress: Told after each answer how many tiles are done, and of how many.

    Raises:
        ImageError: the slide can't be read, or shows no tissue; of a broken one, level and tile are named.
        MissingExtraError: a package of the extra `slides` is not installed.
        ServerError: no server answers (any more), it fails, or it serves no ensemble.
        SettingsError: what was asked for can't be had of this slide.
    """
    path, settings = Path(path), settings or SlideSettings()
    served = client.served
    with ExitStack() as stack:
        try:
            slide = open_slide(path, stack)
            small, cell = thumbnail_from_slide(slide, _thumbnail_side(slide, settings, served))
            tiles = _tiles(slide, settings, served, (tissue_mask(small), cell))
            if not tiles.boxes:
                raise ImageError(f"none of its {tiles.skipped:,} tiles shows {settings.least_tissue:.0%} of tissue")
            answers = SlideAnswers(served, tiles)
            size = {} if settings.batch_size is None else {"batch_size": settings.batch_size}
            for answer in client.stream(_regions(slide, tiles), **size):
                answers.add(answer)
                if progress:
                    progress(answers.count, len(tiles.boxes))
        except (ImageError, SettingsError) as error:
            raise type(error)(f"{path}: {error}") from error
        whole = slide.levels[0].width, slide.levels[0].height
    return answers.prediction(path, whole, _shown(small), settings.rule or served.patient_rule or "mean")


def _shown(small: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    step = -(-max(small.shape[:2]) // _LEAST_SIDE)
    return np.ascontiguousarray(small[::step, ::step])


def _regions(slide: AnySlide, tiles: Tiles) -> Iterator[AnyImage]:
    for x, y, width, height in tiles.boxes:
        pixels = slide.region(x, y, width, height, tiles.level)
        # Only an image's opacity reaches the server, which lays it over white.
        yield Image.fromarray(pixels) if pixels.ndim == 3 and pixels.shape[2] == 4 else pixels


def _side(settings: SlideSettings, served: Served) -> int:
    if settings.tile_size is not None:
        return settings.tile_size
    if served.pixels_shape is None:
        raise SettingsError("the server does not say what size it takes; give the tile size, such as 512")
    return max(served.pixels_shape[:2])


def _zoom(slide: AnySlide, settings: SlideSettings) -> float:
    """Return how many of level 0's pixels one of the asked size is wide.

    Raises:
        SettingsError: nobody knows how large the file's are, or they are larger than was asked for.
    """
    wanted = settings.microns_per_pixel
    if wanted is None:
        return 1.0
    own = settings.file_microns_per_pixel or slide.microns_per_pixel
    if own is None:
        raise SettingsError(
            "the file does not say how large its pixels are; give --file-microns-per-pixel (file_microns_per_pixel), "
            "or leave out microns per pixel: then tiles are cut from the file's own pixels"
        )
    if wanted / own < _FINEST:
        raise SettingsError(
            f"{wanted:g} microns per pixel were asked for, and the file has {own:.4g} at the finest; give no less"
        )
    return max(1.0, wanted / own)


def _thumbnail_side(slide: AnySlide, settings: SlideSettings, served: Served) -> int:
    tile = _side(settings, served) * _zoom(slide, settings)
    longer = max(slide.levels[0].width, slide.levels[0].height)
    # Between half of what is asked for and all of it comes.
    return min(_MOST_SIDE, max(_LEAST_SIDE, math.ceil(2 * _POINTS * longer / tile)))


def _tiles(
    slide: AnySlide, settings: SlideSettings, served: Served, tissue: tuple[npt.NDArray[np.bool_], float]
) -> Tiles:
    zoom = _zoom(slide, settings)
    number = coarsest_level(slide.levels, zoom)
    level = slide.levels[number]
    size = max(MIN_SIDE, round(_side(settings, served) * zoom / level.scale))
    lefts, tops = tile_starts(level.width, size), tile_starts(level.height, size)
    boxes = [(x, y, min(size, level.width), min(size, level.height)) for y in tops for x in lefts]
    mask, cell = tissue
    kept = tuple(box for box in boxes if tissue_share(mask, cell / level.scale, box) >= settings.least_tissue)
    return Tiles(
        level=number,
        scale=level.scale,
        microns_per_pixel=settings.file_microns_per_pixel or slide.microns_per_pixel,
        lefts=tuple(round(x * level.scale) for x in lefts),
        tops=tuple(round(y * level.scale) for y in tops),
        boxes=kept,
        skipped=len(boxes) - len(kept),
    )
