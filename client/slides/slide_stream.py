"""Stream predictions for images and slides: each slide counts as one image with one prediction."""

from __future__ import annotations

import json
import os
import struct
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, tee
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from plurum.client.connection.client import EnsembleClient
from plurum.client.connection.payload import AnyImage
from plurum.client.connection.predictions import Answer, Failure
from plurum.client.connection.requests import Patients, pairs
from plurum.client.slides.heat_maps import SLIDE_FILES, write_slide
from plurum.client.slides.slide_answers import SlidePrediction
from plurum.client.slides.slides import SlideSettings, predict_slide
from plurum.dicom_files import heading_from_file
from plurum.errors import ImageError, SettingsError
from plurum.images import FORMATS, MAX_PIXELS
from plurum.regular_files import check_regular

__all__ = ["SlideStream", "is_slide"]

# Suffixes of scanners' formats, which the server can't decode.
_SCANNED = (".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu")
# An empty image of 64 megapixels is larger than this, however it is compressed.
_SMALL_BYTES = 1 << 15


def is_slide(path: str | Path) -> bool:
    """Return True if the file is a TIFF too large to decode whole, a DICOM slide, or has a scanner's suffix."""
    # Few images are slides, so check the suffix first: reading headers of a million files would be slow.
    end = str(path)[-5:].lower()
    if end.endswith(_SCANNED):
        return True
    if not end.endswith(FORMATS["TIFF"].suffixes):
        heading = heading_from_file(Path(path))
        return heading is not None and bool(heading.slide)
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
        # Let the server report what is wrong with the file.
        return False


@dataclass
class SlideStream:
    """A stream like `EnsembleClient.stream` that also accepts slides, and returns one pooled prediction for each.

    Attributes:
        client: Client of the server.
        settings: Settings for slides.
        folder: Folder for heat maps and tables, in a subfolder with the slide's name, where files of another slide are
            never overwritten; None writes none.
        heat_class: Class whose probability the heat map shows; None shows each slide's label.
        every: If True, treat every image as a slide, whatever its size.
        progress: Function that is called after each tile with the slide's path, the number of finished tiles, and the
            number of tiles.
        finished: Function that is called with each slide's prediction.
    """

    client: EnsembleClient
    settings: SlideSettings
    folder: Path | None = None
    heat_class: str | None = None
    every: bool = False
    progress: Callable[[str, int, int], None] | None = None
    finished: Callable[[SlidePrediction], None] | None = None

    def stream(
        self, images: Iterable[AnyImage], *, patients: Patients | None = None, batch_size: int | None = None
    ) -> Iterator[Answer]:
        """Yield one result per image, in order.

        A slide that can't be read, or can't be divided as the settings state, gives a `Failure`. The index of a failure
        counts from the last slide.

        Raises:
            MissingExtraError: there is a slide, and a package of the extra `slides` is not installed.
            OutputError: a slide's files can't be written.
            ServerError: no server responds, the server fails, or it serves no ensemble.
            SettingsError: the class is unknown, the batch size is below 1, or there is not one patient per image.
        """
        if self.heat_class is not None and self.heat_class not in self.client.served.classes:
            known = ", ".join(self.client.served.classes)
            raise SettingsError(f"heat_class: expected one of {known}, got {self.heat_class!r}.")
        for slides, group in groupby(pairs(images, patients), key=lambda pair: self._is_slide(pair[0])):
            if not slides:
                # The client reads both in step, so `tee` keeps at most one pair.
                first, second = tee(group)
                named = None if patients is None else (patient for _, patient in second)
                yield from self.client.stream((image for image, _ in first), patients=named, batch_size=batch_size)
                continue
            for index, (path, patient) in enumerate(group):
                yield self._answer(index, str(path), patient)

    def _is_slide(self, image: AnyImage) -> bool:
        return isinstance(image, str | Path) and (self.every or is_slide(image))

    def _answer(self, index: int, path: str, patient: str) -> Answer:
        tell = self.progress
        try:
            slide = predict_slide(
                self.client,
                path,
                self.settings,
                (lambda done, of: tell(path, done, of)) if tell else None,
                patient=patient,
            )
        except (ImageError, SettingsError) as error:
            return Failure(index, path, str(error).removeprefix(f"{path}: "))
        if self.folder:
            write_slide(slide, _slide_folder(self.folder, path), self.heat_class)
        if self.finished:
            self.finished(slide)
        return slide.answer


def _slide_folder(folder: Path, path: str) -> Path:
    """Return the subfolder for a slide's files, named like the slide without suffix.

    Folder names are prepended while another slide's files lie there, also those of an earlier or interrupted run.
    """
    place = _absolute(path)
    for depth in range(1, len(place.parts)):
        found = folder / "_".join(place.with_suffix("").parts[-depth:])
        if _slide_in(found) in {None, place}:
            return found
    return folder / "_".join(place.parts[1:])


def _slide_in(folder: Path) -> Path | None:
    """Return the absolute path of the slide whose files lie in a folder; None without a complete set of them."""
    try:
        return _absolute(json.loads((folder / SLIDE_FILES[3]).read_bytes())["path"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _absolute(path: str) -> Path:
    """Return a path without `..`; links are not followed, because folders have the names that users give."""
    return Path(os.path.abspath(path))  # noqa: PTH100 (resolve follows links)
