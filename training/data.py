"""Labelled images, and the pixels that members see of them.

Legend: `[images, height, width, 3]` arrays are uint8, 0 to 255, RGB.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from plurum.errors import DataError, ImageError
from plurum.images import UnreadableImageError, open_image, pixels_from_image
from plurum.run import Table
from plurum.spec import ImageSpec
from plurum.training.progress import shown

__all__ = ["LabelledImages"]

# How many images are in flight at once: enough for all cores, little to wait for after Ctrl-C.
_BLOCK = 64
_NAMED = 5


@dataclass(frozen=True)
class LabelledImages:
    """Images with a class each, divided into splits; nothing is decoded yet.

    Attributes:
        name: As it was named by the user.
        classes: Names, in the order of the labels.
        table: Sources, labels, patients and splits, one per image.
        fingerprint: SHA-256 over what the images are, without decoding them: it changes when they do.
        side: The longer side of images that are all of one size, in pixels; None for files.
        read: Gives the encoded image of an index: a file's bytes, or a PNG.
    """

    name: str
    classes: tuple[str, ...]
    table: Table
    fingerprint: str
    side: int | None
    read: Callable[[int], bytes]

    def __len__(self) -> int:
        return len(self.table.sources)

    def encoded(self, index: int) -> bytes:
        """Return the image `index` as a JPEG, PNG or TIFF, as one would send it to a server.

        Raises:
            ImageError: its file can't be read.
        """
        try:
            return self.read(index)
        except OSError as error:
            raise ImageError(f"{self.table.sources[index]} can't be read: {error.strerror}") from error

    def pixels(self, image: ImageSpec, out: npt.NDArray[np.uint8] | None = None) -> npt.NDArray[np.uint8]:
        """Return all images as members see them, `[images, height, width, 3]`.

        They go through `plurum.images`, as they will when they are served.

        Args:
            image: Size, colour and resize rule; mean and std play no part.
            out: Where to write them, such as a mapped file; a new array by default.

        Raises:
            DataError: some can't be read; the first are named, the others counted.
        """
        if out is None:
            out = np.empty((len(self), image.height, image.width, 3), dtype=np.uint8)
        broken: list[str] = []
        for index, result in enumerate(self._decoded(image)):
            if isinstance(result, str):
                broken.append(f"{self.table.sources[index]} ({result})")
            else:
                out[index] = result
        if broken:
            more = f"; and {len(broken) - _NAMED} more" if len(broken) > _NAMED else ""
            raise DataError(
                f"{len(broken)} of {len(self):,} images can't be read; mend or remove them: "
                f"{'; '.join(broken[:_NAMED])}{more}"
            )
        return out

    def _decoded(self, image: ImageSpec) -> Iterator[npt.NDArray[np.uint8] | str]:
        """Yield each image's pixels, or why there are none, in order."""

        def one(index: int) -> npt.NDArray[np.uint8] | str:
            try:
                opened = open_image(self.encoded(index))
                return pixels_from_image(
                    opened, height=image.height, width=image.width, colour=image.colour, resize=image.resize
                )
            except (ImageError, UnreadableImageError) as error:
                return str(error)

        with ThreadPoolExecutor(os.cpu_count()) as pool, shown("reading images", len(self)) as progress:
            for start in range(0, len(self), _BLOCK):
                block = range(start, min(start + _BLOCK, len(self)))
                yield from pool.map(one, block)
                progress(len(block), "")
