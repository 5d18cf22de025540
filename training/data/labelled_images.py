"""Labelled images, and their pixels at the members' input size.

Legend: `[images, height, width, 3]` arrays are uint8, 0 to 255, RGB.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from plurum.errors import DataError, ImageError
from plurum.images import (
    Structure,
    TooLargeImageError,
    UnreadableImageError,
    is_nearly_black,
    open_image,
    reduction_of,
    resize_to_pixels,
    structure_of,
    to_eight_bit,
)
from plurum.images.windows import WindowRule
from plurum.run import Table
from plurum.spec import ImageSpec
from plurum.spellings import check_spellings
from plurum.training.progress import show_progress

__all__ = ["DecodedImage", "LabelledImages", "check_classes", "check_readable"]

Result = TypeVar("Result")

# Images in flight at once: enough for all cores, and few enough to stop soon after Ctrl-C.
_BLOCK = 64
_NAMED = 5
_FIX = "repair or remove them, or leave them out with --skip-unreadable"
# Rows of an image that are hashed at once.
_ROWS = 256


@dataclass(frozen=True)
class DecodedImage:
    """Properties of a decoded image.

    Attributes:
        width: Width of the upright image before resizing, in pixels; 0 if unreadable.
        height: Height of the upright image before resizing, in pixels; 0 if unreadable.
        sha256: Hexadecimal SHA-256 of the size and the upright 8-bit RGB pixels before resizing. It is equal for the
            same picture in another lossless format or with other metadata, and differs after new lossy compression.
        fault: Reason why the image is unreadable; empty if it is readable.
        is_nearly_black: True if all pixels are darker than 16 of 255, as with 12 bits in a 16-bit file.
    """

    width: int
    height: int
    sha256: str
    fault: str = ""
    is_nearly_black: bool = False


@dataclass(frozen=True)
class LabelledImages:
    """Images with a class each, divided into splits, and decoded on demand.

    Attributes:
        name: Data source, as named by the user.
        classes: Class names, in the order of the labels.
        table: Source, label, patient and split of each image.
        fingerprint: SHA-256 that changes when the images change, computed without decoding them.
        side: Longer side of equally large images, in pixels; None for files.
        read: Function that returns the encoded image at an index: a file's bytes, or a PNG.
        skip_unreadable: If True, leave out unreadable images instead of refusing the data.
        notes: Remarks on how the source was read and what was left out, one sentence each.
        window: Window for grey images of more than 8 bits and DICOM; None applies that of each DICOM file. An image
            spec's comes first.
    """

    name: str
    classes: tuple[str, ...]
    table: Table
    fingerprint: str
    side: int | None
    read: Callable[[int], bytes]
    skip_unreadable: bool = False
    notes: tuple[str, ...] = ()
    window: WindowRule | None = None

    def __len__(self) -> int:
        return len(self.table.sources)

    def read_encoded(self, index: int) -> bytes:
        """Return the image at `index` as JPEG, PNG, TIFF or DICOM, as a client would send it to a server.

        Raises:
            ImageError: the file can't be read.
        """
        try:
            return self.read(index)
        except OSError as error:
            raise ImageError(f"{self.table.sources[index]} can't be read: {error.strerror or error}") from error

    def select(self, rows: npt.NDArray[np.int64]) -> LabelledImages:
        """Return the images at these indices, with the same fingerprint."""
        read = self.read
        return replace(self, table=self.table.select(rows), read=lambda index: read(int(rows[index])))

    def pixels(self, image: ImageSpec, out: npt.NDArray[np.uint8] | None = None) -> npt.NDArray[np.uint8]:
        """Return all images at the members' input size, `[images, height, width, 3]`.

        Images are converted by `plurum.images`, as in serving.

        Args:
            image: Size, colour mode and resize rule; mean and std are not used.
            out: Array to write to, such as a mapped file; a new array by default.

        Raises:
            DataError: some images are unreadable; the message names the first and counts the others.
        """
        if out is None:
            out = np.empty((len(self), image.height, image.width, 3), dtype=np.uint8)
        check_readable(self, self.decode(image, out))
        return out

    def decode(
        self, image: ImageSpec | None = None, out: npt.NDArray[np.uint8] | None = None
    ) -> tuple[DecodedImage, ...]:
        """Decode every image once and return the properties of each.

        Args:
            image: Size, colour mode, resize rule, window and reduced decoding of the pixels in `out`.
            out: Array for the pixels of readable images, `[images, height, width, 3]`.
        """
        window = self.window if image is None else image.window

        def one(index: int) -> DecodedImage:
            try:
                encoded = self.read_encoded(index)
                structure = structure_of(encoded)
                flat = to_eight_bit(open_image(encoded, structure, window))
                if image is not None and out is not None:
                    out[index] = _member_pixels(encoded, structure, flat, image)
            except TooLargeImageError as error:
                return DecodedImage(0, 0, "", f"{error}; cut TIFFs of this size into tiles with --tile-size")
            except (ImageError, UnreadableImageError) as error:
                return DecodedImage(0, 0, "", str(error))
            return DecodedImage(flat.width, flat.height, _sha256(flat), is_nearly_black=is_nearly_black(flat))

        return tuple(self.map_each(one))

    def map_each(self, one: Callable[[int], Result]) -> Iterator[Result]:
        """Yield the result of `one` for the index of every image, computed in threads."""
        with (
            ThreadPoolExecutor(os.cpu_count()) as pool,
            show_progress("reading images", len(self), "images") as progress,
        ):
            for start in range(0, len(self), _BLOCK):
                block = range(start, min(start + _BLOCK, len(self)))
                yield from pool.map(one, block)
                progress(len(block), "")


def check_readable(data: LabelledImages, decoded: Sequence[DecodedImage], fix: str = _FIX) -> None:
    """Check that all images are readable.

    Args:
        data: Images.
        decoded: Properties of each image.
        fix: Advice in the message.

    Raises:
        DataError: some images are unreadable; the message names the first and counts the others.
    """
    broken = [f"{source} ({one.fault})" for source, one in zip(data.table.sources, decoded, strict=True) if one.fault]
    if broken:
        more = f"; and {len(broken) - _NAMED} more" if len(broken) > _NAMED else ""
        raise DataError(
            f"{len(broken)} of {len(data):,} images can't be read; {fix}: {'; '.join(broken[:_NAMED])}{more}"
        )


def check_classes(name: object, classes: Sequence[str]) -> None:
    """Check that there are at least two classes, with printable names and one spelling each.

    Raises:
        DataError: there is only one class, a name is unprintable, or a name has two spellings.
    """
    if len(classes) < 2:
        raise DataError(f"{name}: expected at least 2 classes, got {classes[0]!r}")
    for one in classes:
        if not one.isprintable():
            raise DataError(f"{name} has a class named {one!a}, with unprintable characters; rename it")
    check_spellings(name, "class", "classes", classes)


def _member_pixels(encoded: bytes, structure: Structure, flat: Image.Image, image: ImageSpec) -> npt.NDArray[np.uint8]:
    """Return the pixels that a server makes of an image, `[height, width, 3]`; `flat` is the whole image."""
    if reduction_of(structure, image.decoding["reduce_to"]) > 1:
        flat = to_eight_bit(open_image(encoded, structure, **image.decoding))
    return resize_to_pixels(flat, **image.resizing)


def _sha256(image: Image.Image) -> str:
    digest = hashlib.sha256(f"{image.width} x {image.height}".encode())
    for top in range(0, image.height, _ROWS):
        # By rows, so that a large image is not copied as a whole.
        rows = image.crop((0, top, image.width, min(top + _ROWS, image.height)))
        digest.update(rows.convert("RGB").tobytes())
    return digest.hexdigest()
