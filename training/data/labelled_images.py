"""Labelled images, and the pixels that members see of them.

Legend: `[images, height, width, 3]` arrays are uint8, 0 to 255, RGB.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from plurum.errors import DataError, ImageError
from plurum.images import (
    TooLargeImageError,
    UnreadableImageError,
    is_nearly_black,
    open_image,
    resize_to_pixels,
    to_eight_bit,
)
from plurum.run import Table
from plurum.spec import ImageSpec
from plurum.spellings import check_spellings
from plurum.training.progress import shown

__all__ = ["Decoded", "LabelledImages", "check_classes", "check_readable"]

# How many images are in flight at once: enough for all cores, little to wait for after Ctrl-C.
_BLOCK = 64
_NAMED = 5
# Of an image, while it is hashed.
_ROWS = 256


@dataclass(frozen=True)
class Decoded:
    """What is known of an image once it was decoded.

    Attributes:
        width: Before it was brought to size, upright, in pixels; 0 where it can't be read.
        height: Likewise.
        sha256: Of its size and its pixels before they were brought to size, upright, 8-bit, RGB, in hexadecimal. The
            same picture in another file, lossless format or with other metadata has the same; one compressed again
            has not.
        fault: Why it can't be read; empty where it can.
        is_nearly_black: Whether all of it is darker than 16 of 255, as 12 bits in a 16-bit file are.
    """

    width: int
    height: int
    sha256: str
    fault: str = ""
    is_nearly_black: bool = False


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
        skip_unreadable: Whether images that can't be read are left out, rather than refused.
        notes: How the source was read, and what of it was not, a sentence each.
    """

    name: str
    classes: tuple[str, ...]
    table: Table
    fingerprint: str
    side: int | None
    read: Callable[[int], bytes]
    skip_unreadable: bool = False
    notes: tuple[str, ...] = ()

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
            raise ImageError(f"{self.table.sources[index]} can't be read: {error.strerror or error}") from error

    def taken(self, rows: npt.NDArray[np.int64]) -> LabelledImages:
        """Return the images of these indices, under the same fingerprint."""
        read = self.read
        return replace(self, table=self.table.taken(rows), read=lambda index: read(int(rows[index])))

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
        check_readable(self, self.decoded(image, out))
        return out

    def decoded(self, image: ImageSpec | None = None, out: npt.NDArray[np.uint8] | None = None) -> tuple[Decoded, ...]:
        """Decode every image once and return what is then known of each.

        Args:
            image: Size, colour and resize rule of what is written to `out`.
            out: Takes the pixels of those that can be read, `[images, height, width, 3]`.
        """

        def one(index: int) -> Decoded:
            try:
                flat = to_eight_bit(open_image(self.encoded(index)))
                if image is not None and out is not None:
                    out[index] = resize_to_pixels(
                        flat, height=image.height, width=image.width, colour=image.colour, resize=image.resize
                    )
            except TooLargeImageError as error:
                return Decoded(0, 0, "", f"{error}; cut TIFFs of this size into tiles with --tile-size")
            except (ImageError, UnreadableImageError) as error:
                return Decoded(0, 0, "", str(error))
            return Decoded(flat.width, flat.height, _sha256(flat), is_nearly_black=is_nearly_black(flat))

        return tuple(self._each(one))

    def _each(self, one: Callable[[int], Decoded]) -> Iterator[Decoded]:
        with ThreadPoolExecutor(os.cpu_count()) as pool, shown("reading images", len(self)) as progress:
            for start in range(0, len(self), _BLOCK):
                block = range(start, min(start + _BLOCK, len(self)))
                yield from pool.map(one, block)
                progress(len(block), "")


def check_readable(data: LabelledImages, decoded: Sequence[Decoded]) -> None:
    """Make sure that all images can be read.

    Raises:
        DataError: some can't; the first are named, the others counted.
    """
    broken = [f"{source} ({one.fault})" for source, one in zip(data.table.sources, decoded, strict=True) if one.fault]
    if broken:
        more = f"; and {len(broken) - _NAMED} more" if len(broken) > _NAMED else ""
        raise DataError(
            f"{len(broken)} of {len(data):,} images can't be read; mend or remove them, or leave them out with "
            f"--skip-unreadable: {'; '.join(broken[:_NAMED])}{more}"
        )


def check_classes(name: object, classes: Sequence[str]) -> None:
    """Make sure that there is something to tell apart, by names that can be written.

    Raises:
        DataError: there is one class, one with an unprintable name, or one that is spelled in two ways.
    """
    if len(classes) < 2:
        raise DataError(f"{name} has one class, {classes[0]!r}; at least 2 are needed")
    for one in classes:
        if not one.isprintable():
            raise DataError(f"{name} has a class called {one!a}, with unprintable characters; rename it")
    try:
        check_spellings(name, "class", "classes", classes)
    except ValueError as error:
        raise DataError(str(error)) from error


def _sha256(image: Image.Image) -> str:
    digest = hashlib.sha256(f"{image.width} x {image.height}".encode())
    for top in range(0, image.height, _ROWS):
        # By rows: as bytes, a large image would lie in memory twice.
        rows = image.crop((0, top, image.width, min(top + _ROWS, image.height)))
        digest.update(rows.convert("RGB").tobytes())
    return digest.hexdigest()
