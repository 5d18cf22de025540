"""Slide options of `plurum predict`, and the stream of predictions that they configure."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from plurum.client import EnsembleClient, SlidePrediction
    from plurum.client.bulk.progress_rate import ProgressRate
    from plurum.client.slides.slide_stream import SlideStream
    from plurum.spec import PatientRule

__all__ = ["EveryImage", "HeatClass", "Microns", "OwnMicrons", "SlideOptions", "SlidesFolder", "TileSize"]

_PANEL = "Slides: images too large to send"
# Seconds between two progress lines.
_LINE_S = 10.0

SlidesFolder = Annotated[
    Path | None,
    typer.Option(
        "--slides",
        metavar="FOLDER",
        help="Save each slide's heat maps, tile table and prediction to FOLDER/NAME.",
        rich_help_panel=_PANEL,
    ),
]
Microns = Annotated[
    float | None,
    typer.Option(
        "--microns-per-pixel",
        help="Resolution to cut tiles at, in µm per pixel.",
        show_default="the file's own resolution",
        rich_help_panel=_PANEL,
    ),
]
OwnMicrons = Annotated[
    float | None,
    typer.Option(
        "--file-microns-per-pixel",
        help="Resolution of the file in µm per pixel, if its metadata lack it.",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
TileSize = Annotated[
    int | None,
    typer.Option(
        "--tile-size",
        help="Side of a tile in pixels, as the members were trained with.",
        show_default="the server's input size",
        rich_help_panel=_PANEL,
    ),
]
HeatClass = Annotated[
    str | None,
    typer.Option(
        "--heat-class",
        help="Class whose probability the heat map shows.",
        show_default="each slide's predicted class",
        rich_help_panel=_PANEL,
    ),
]
EveryImage = Annotated[
    bool, typer.Option("--slide", help="Cut every image into tiles, whatever its size.", rich_help_panel=_PANEL)
]


@dataclass(frozen=True)
class SlideOptions:
    """Slide options of a command.

    Attributes:
        folder: Folder for each slide's heat maps, tile table and prediction; None saves nothing.
        microns_per_pixel: Resolution to cut tiles at, in µm per pixel; None is the file's own.
        file_microns_per_pixel: Resolution of files whose metadata lack it, in µm per pixel.
        tile_size: Side of a tile in pixels; None is the server's input size.
        heat_class: Class whose probability the heat map shows; None is each slide's predicted class.
        every: If True, cut every image into tiles, whatever its size.
    """

    folder: Path | None
    microns_per_pixel: float | None
    file_microns_per_pixel: float | None
    tile_size: int | None
    heat_class: str | None
    every: bool

    def journal_settings(self, rule: PatientRule | None) -> dict[str, Any]:
        """Return the settings that slide predictions depend on, for the journal; empty if all are defaults."""
        chosen = {name: str(value) for name, value in asdict(self).items() if value}
        return {"slides": chosen | {"rule": rule}} if chosen else {}

    def stream(self, client: EnsembleClient, rule: PatientRule | None, line: Callable[[str], None]) -> SlideStream:
        """Return a stream that predicts images and slides, and reports progress with `line`.

        Raises:
            SettingsError: an option has an invalid value.
        """
        from plurum.client import SlideSettings
        from plurum.client.slides.slide_stream import SlideStream

        settings = SlideSettings(
            tile_size=self.tile_size,
            microns_per_pixel=self.microns_per_pixel,
            file_microns_per_pixel=self.file_microns_per_pixel,
            rule=rule,
        )
        return SlideStream(
            client=client,
            settings=settings,
            folder=self.folder,
            heat_class=self.heat_class,
            every=self.every,
            progress=_SlideProgress(line),
            finished=lambda slide: line(_summary(slide)),
        )


def _summary(slide: SlidePrediction) -> str:
    """Return how a slide was cut, as the defaults may differ from what the members were trained with."""
    microns = slide.microns_per_pixel
    size = "pixels of unknown size" if microns is None else f"{microns * slide.scale:.3g} µm per pixel"
    tiles = f"{slide.tiles_asked:,} tiles classified, {slide.tiles_skipped:,} without tissue"
    return f"{slide.path}: {tiles}; on level {slide.level}, {size}"


class _SlideProgress:
    """Reports the progress of a slide, at most every ten seconds."""

    def __init__(self, line: Callable[[str], None]) -> None:
        self._line = line
        self._path = ""
        self._pace: ProgressRate | None = None
        self._next_s = 0.0

    def __call__(self, path: str, done: int, total: int) -> None:
        from plurum.client.bulk.progress_rate import ProgressRate

        now_s = time.monotonic()
        if self._pace is None or path != self._path:
            self._path, self._pace, self._next_s = path, ProgressRate(total, now_s, what="tiles"), now_s + _LINE_S
        if now_s >= self._next_s:
            self._pace.note(done, now_s)
            self._line(f"{path}: {self._pace.summary(now_s)}")
            self._next_s = now_s + _LINE_S
