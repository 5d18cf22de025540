"""The part of `plurum predict` that is about slides: its options, and who answers where there may be some."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from plurum.client import EnsembleClient, SlidePrediction
    from plurum.client.bulk.pace import Pace
    from plurum.client.slides.slide_stream import SlideStream
    from plurum.spec import PatientRule

__all__ = ["EveryImage", "HeatClass", "Microns", "OwnMicrons", "SlideOptions", "SlidesFolder", "TileSize"]

_PANEL = "Slides: images too large to send"
# Seconds between two lines of progress.
_LINE_S = 10.0

SlidesFolder = Annotated[
    Path | None,
    typer.Option(
        "--slides",
        metavar="FOLDER",
        help="Keep each slide's heat maps, tile table and answer in FOLDER/NAME.",
        rich_help_panel=_PANEL,
    ),
]
Microns = Annotated[
    float | None,
    typer.Option(
        "--microns-per-pixel",
        help="Of the image that tiles are cut from.",
        show_default="the file's own pixels",
        rich_help_panel=_PANEL,
    ),
]
OwnMicrons = Annotated[
    float | None,
    typer.Option(
        "--file-microns-per-pixel",
        help="Of the file's own pixels, where it doesn't say.",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
TileSize = Annotated[
    int | None,
    typer.Option(
        "--tile-size",
        help="Side of a tile, in pixels: what the members were trained with.",
        show_default="the size that the server takes",
        rich_help_panel=_PANEL,
    ),
]
HeatClass = Annotated[
    str | None,
    typer.Option(
        "--heat-class",
        help="Whose probability the heat map shows.",
        show_default="each slide's winner",
        rich_help_panel=_PANEL,
    ),
]
EveryImage = Annotated[
    bool, typer.Option("--slide", help="Cut every image into tiles, whatever its size.", rich_help_panel=_PANEL)
]


@dataclass(frozen=True)
class SlideOptions:
    """What was asked for.

    Attributes:
        folder: Where what is kept of slides goes; None keeps nothing.
        microns_per_pixel: See `plurum.client.SlideSettings`.
        file_microns_per_pixel: Likewise.
        tile_size: Likewise.
        heat_class: Whose probability the heat map shows.
        every: Whether every image is a slide.
    """

    folder: Path | None
    microns_per_pixel: float | None
    file_microns_per_pixel: float | None
    tile_size: int | None
    heat_class: str | None
    every: bool

    def about(self, rule: PatientRule | None) -> dict[str, Any]:
        """Return what slides' answers depend on, and whether their files are there; nothing where all is as usual."""
        chosen = {name: str(value) for name, value in asdict(self).items() if value}
        return {"slides": chosen | {"rule": rule}} if chosen else {}

    def stream(self, client: EnsembleClient, rule: PatientRule | None, line: Callable[[str], None]) -> SlideStream:
        """Return who answers for images and slides, and writes a line of progress with `line` now and then.

        Raises:
            SettingsError: a value that can't be used.
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
            progress=_Progress(line),
            finished=lambda slide: line(_words(slide)),
        )


def _words(slide: SlidePrediction) -> str:
    """Say how a slide was cut: what was asked for by default may be another size than the members have learnt."""
    microns = slide.microns_per_pixel
    size = "pixels of unknown size" if microns is None else f"{microns * slide.scale:.3g} µm per pixel"
    tiles = f"{slide.tiles_asked:,} tiles asked about, {slide.tiles_skipped:,} without tissue"
    return f"{slide.path}: {tiles}; on level {slide.level}, {size}"


class _Progress:
    """Says how far a slide is, at most every ten seconds."""

    def __init__(self, line: Callable[[str], None]) -> None:
        self._line = line
        self._path = ""
        self._pace: Pace | None = None
        self._next_s = 0.0

    def __call__(self, path: str, done: int, total: int) -> None:
        from plurum.client.bulk.pace import Pace

        now_s = time.monotonic()
        if self._pace is None or path != self._path:
            self._path, self._pace, self._next_s = path, Pace(total, now_s, what="tiles"), now_s + _LINE_S
        if now_s >= self._next_s:
            self._pace.note(done, now_s)
            self._line(f"{path}: {self._pace.words(now_s)}")
            self._next_s = now_s + _LINE_S
