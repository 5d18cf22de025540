"""Classify a slide: read its tiles one after the other, classify them, and pool their predictions.

Legend: tiles are arranged in `[rows, columns]`, from the top left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
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

# At least 4 × 4 points of the thumbnail decide whether a tile has tissue; its longest side is at most 4,096 pixels.
_POINTS, _LEAST_SIDE, _MOST_SIDE = 4, 1024, 4096
# The requested pixels may be finer than the file's by this factor, as scanners' numbers are slightly off.
_FINEST = 0.95


@dataclass(frozen=True)
class SlideSettings:
    """Settings that divide a slide into tiles and pool the tiles' predictions.

    Attributes:
        tile_size: Side of a tile in pixels of `microns_per_pixel`, as the members were trained. None uses the served
            image size.
        microns_per_pixel: Pixel size of the tiles, microns. None uses the file's own pixels, as training does.
        file_microns_per_pixel: Pixel size of the file, microns, if the file does not state it or states it wrongly.
        least_tissue: Minimum fraction of tissue in a tile, 0 to 1; tiles with less are skipped.
        rule: Rule that pools the tiles' predictions. None uses the ensemble's rule, or the mean if it has none.
        batch_size: Maximum number of tiles in one request; None leaves it to the client.

    Raises:
        SettingsError: a value is out of range.
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
            raise SettingsError(f"tile_size: expected {MIN_SIDE} to {highest:,} pixels, got {self.tile_size}.")
        for microns in (self.microns_per_pixel, self.file_microns_per_pixel):
            if microns is not None and not 0 < microns < math.inf:
                raise SettingsError(f"microns per pixel: expected a number above 0, such as 0.5, got {microns:g}.")
        if not 0 <= self.least_tissue <= 1:
            raise SettingsError(f"least_tissue: expected 0 to 1, got {self.least_tissue:g}.")


def predict_slide(
    client: EnsembleClient,
    path: str | Path,
    settings: SlideSettings | None = None,
    progress: Callable[[int, int], None] | None = None,
    *,
    patient: str | None = None,
) -> SlidePrediction:
    """Classify a slide, and return its prediction with those of its tiles.

    Tiles are read while others are being classified; neither the slide nor all of its tiles are ever in memory.

    Args:
        client: Client of the server.
        path: A tiled TIFF, or another format that OpenSlide reads, if it is installed.
        settings: Settings for tiles and pooling; None uses the defaults.
        progress: Function that is called after each tile with the number of finished tiles and the number of tiles.
        patient: Patient of the slide, by whom a server draws audits; None if unknown: then no audit is drawn.

    Raises:
        ImageError: the slide can't be read, or has no tissue; for a broken slide the message names level and tile.
        MissingExtraError: a package of the extra `slides` is not installed.
        ServerError: no server responds, the server fails, or it serves no ensemble.
        SettingsError: the settings don't fit the slide.
    """
    path, settings = Path(path), settings or SlideSettings()
    served = client.served
    with ExitStack() as stack:
        try:
            slide = open_slide(path, stack, served.window)
            small, cell = thumbnail_from_slide(slide, _thumbnail_side(slide, settings, served))
            tiles = _tiles(slide, settings, served, (tissue_mask(small), cell))
            if not tiles.boxes:
                raise ImageError(
                    f"none of its {tiles.tiles_skipped:,} tiles has at least {settings.least_tissue:.0%} tissue"
                )
            answers = SlideAnswers(served, tiles, settings.rule or served.patient_rule or "mean")
            patients = [patient] * len(tiles.boxes) if patient else None
            regions = _regions(slide, tiles)
            for answer in client.stream(regions, patients=patients, batch_size=settings.batch_size):
                answers.add(answer)
                if progress:
                    progress(answers.count, len(tiles.boxes))
        except (ImageError, SettingsError) as error:
            raise type(error)(f"{path}: {error}") from error
    slide_prediction = answers.prediction(path, _shrink(small))
    # All tiles of a patient are drawn together; those of nobody are drawn one by one, which draws no slide.
    drawn = replace(slide_prediction.answer, audit=answers.audit if patient else None)
    return replace(slide_prediction, answer=drawn)


def _shrink(small: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    step = -(-max(small.shape[:2]) // _LEAST_SIDE)
    return np.ascontiguousarray(small[::step, ::step])


def _regions(slide: AnySlide, tiles: Tiles) -> Iterator[AnyImage]:
    for x, y, width, height in tiles.boxes:
        pixels = slide.region(x, y, width, height, tiles.level)
        # Send transparent pixels as an encoded image: the server blends them with white.
        yield Image.fromarray(pixels) if pixels.ndim == 3 and pixels.shape[2] == 4 else pixels


def _side(settings: SlideSettings, served: Served) -> int:
    if settings.tile_size is not None:
        return settings.tile_size
    if served.pixels_shape is None:
        raise SettingsError(
            "tile_size: expected a number such as 512, because the server does not state its image size."
        )
    return max(served.pixels_shape[:2])


def _zoom(slide: AnySlide, settings: SlideSettings) -> float:
    """Return the width of a pixel of the requested size, in pixels of level 0."""
    requested = settings.microns_per_pixel
    if requested is None:
        return 1.0
    own = settings.file_microns_per_pixel or slide.microns_per_pixel
    if own is None:
        raise SettingsError(
            "the file does not state its pixel size. Give --file-microns-per-pixel (file_microns_per_pixel), or leave "
            "out microns per pixel to use the file's own pixels."
        )
    if requested / own < _FINEST:
        raise SettingsError(f"microns_per_pixel: expected at least the file's {own:.4g}, got {requested:g}.")
    return max(1.0, requested / own)


def _thumbnail_side(slide: AnySlide, settings: SlideSettings, served: Served) -> int:
    tile = _side(settings, served) * _zoom(slide, settings)
    longer = max(slide.levels[0].width, slide.levels[0].height)
    # `thumbnail` returns between half of the requested size and all of it.
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
        width=slide.levels[0].width,
        height=slide.levels[0].height,
        boxes=kept,
        tiles_skipped=len(boxes) - len(kept),
    )
