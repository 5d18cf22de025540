"""The stream of predictions that `plurum predict` makes with its options for slides."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from plurum.settings.client import SlideOptions

if TYPE_CHECKING:
    from plurum.client import EnsembleClient, SlidePrediction
    from plurum.client.slides.slide_stream import SlideStream
    from plurum.progress import ProgressRate
    from plurum.spec import PatientRule

__all__ = ["journal_settings", "slide_stream"]

# Seconds between two progress lines.
_LINE_S = 10.0


def journal_settings(options: SlideOptions, rule: PatientRule | None) -> dict[str, Any]:
    """Return the settings that slide predictions depend on, for the journal; empty if all are defaults."""
    chosen = {name: str(value) for name, value in options if value}
    return {"slides": chosen | {"rule": rule}} if chosen else {}


def slide_stream(
    client: EnsembleClient, options: SlideOptions, rule: PatientRule | None, line: Callable[[str], None]
) -> SlideStream:
    """Return a stream that predicts images and slides, and reports progress with `line`."""
    from plurum.client import SlideSettings
    from plurum.client.slides.slide_stream import SlideStream

    return SlideStream(
        client=client,
        settings=SlideSettings(
            tile_size=options.tile_size,
            microns_per_pixel=options.microns_per_pixel,
            file_microns_per_pixel=options.file_microns_per_pixel,
            rule=rule,
        ),
        folder=options.folder,
        heat_class=options.heat_class,
        every=options.every,
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
        from plurum.progress import ProgressRate

        now_s = time.monotonic()
        if self._pace is None or path != self._path:
            self._path, self._pace, self._next_s = path, ProgressRate(total, now_s, what="tiles"), now_s + _LINE_S
        if now_s >= self._next_s:
            self._pace.note(done, now_s)
            self._line(f"{path}: {self._pace.summary(now_s)}")
            self._next_s = now_s + _LINE_S
