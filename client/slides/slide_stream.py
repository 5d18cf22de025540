"""A client's stream of answers that takes slides between images: each slide is one image with one answer."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from plurum.client.connection.client import EnsembleClient
from plurum.client.connection.payload import AnyImage
from plurum.client.connection.predictions import Answer, Failure
from plurum.client.slides.heat_maps import write_slide
from plurum.client.slides.slide_answers import SlidePrediction
from plurum.client.slides.slides import SlideSettings, predict_slide
from plurum.errors import ImageError, SettingsError
from plurum.images import MAX_PIXELS
from plurum.regular_files import check_regular

__all__ = ["SlideStream", "is_slide"]

# What scanners write and no server of images reads.
_SCANNED = (".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu")
_TIFF = (".tif", ".tiff")
# 64 megapixels of nothing at all are larger than this, however they are compressed.
_SMALL_BYTES = 1 << 15


def is_slide(path: str | Path) -> bool:
    """Whether a file is a TIFF too large to be decoded whole, by its header, or of a scanner's format, by its name."""
    # Of a million images hardly one is a slide: a look at the name must do for the others.
    end = str(path)[-5:].lower()
    if end.endswith(_SCANNED):
        return True
    if not end.endswith(_TIFF):
        return False
    try:
        if check_regular(path).st_size < _SMALL_BYTES:
            return False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                return image.width * image.height > MAX_PIXELS
    except Image.DecompressionBombError:
        return True
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, KeyError, TypeError, struct.error):
        # What it is, the server says.
        return False


@dataclass
class SlideStream:
    """Asks as `EnsembleClient.stream` does; what a slide's tiles say together is its answer.

    Attributes:
        client: Whom to ask.
        settings: How slides are cut.
        folder: Where heat maps and tables go, in a folder with the slide's name; None writes none.
        heat_class: Whose probability the heat map shows; None takes each slide's winner.
        every: Whether every image is a slide, whatever its size.
        progress: Told after each tile which slide it is of, how many of its tiles are done, and of how many.
        finished: Told of each slide that has an answer.
    """

    client: EnsembleClient
    settings: SlideSettings
    folder: Path | None = None
    heat_class: str | None = None
    every: bool = False
    progress: Callable[[str, int, int], None] | None = None
    finished: Callable[[SlidePrediction], None] | None = None
    _named: dict[str, str] = field(default_factory=dict, init=False)

    def stream(self, images: Iterable[AnyImage], *, batch_size: int | None = None) -> Iterator[Answer]:
        """Yield one answer per image, in order.

        A slide that can't be read is a `Failure`, and so is one that can't be cut as asked. The place of a failure
        counts from the last slide.

        Raises:
            MissingExtraError: there is a slide, and a package of the extra `slides` is not installed.
            OutputError: what is kept of a slide can't be written.
            ServerError: no server answers (any more), it fails, or it serves no ensemble.
            SettingsError: a class that the ensemble doesn't know, or a batch of less than one image.
        """
        if self.heat_class is not None and self.heat_class not in self.client.served.classes:
            known = ", ".join(self.client.served.classes)
            raise SettingsError(f"there is no class {self.heat_class!r}; the ensemble knows {known}")
        size = {} if batch_size is None else {"batch_size": batch_size}
        for slides, group in groupby(images, key=self._is_slide):
            if not slides:
                yield from self.client.stream(group, **size)
                continue
            for index, path in enumerate(group):
                yield self._answer(index, str(path))

    def _is_slide(self, image: AnyImage) -> bool:
        return isinstance(image, str | Path) and (self.every or is_slide(image))

    def _answer(self, index: int, path: str) -> Answer:
        tell = self.progress
        try:
            slide = predict_slide(
                self.client, path, self.settings, (lambda done, of: tell(path, done, of)) if tell else None
            )
        except (ImageError, SettingsError) as error:
            return Failure(index, path, str(error).removeprefix(f"{path}: "))
        if self.folder:
            write_slide(slide, self.folder / self._name(path), self.heat_class)
        if self.finished:
            self.finished(slide)
        return slide.answer

    def _name(self, path: str) -> str:
        """Return the slide's own name; where another slide has it already, one that says in which folder it is."""
        place = Path(path).absolute()
        for depth in range(1, len(place.parts)):
            name = "_".join(place.with_suffix("").parts[-depth:])
            if self._named.setdefault(name, path) == path:
                return name
        return "_".join(place.parts[1:])
