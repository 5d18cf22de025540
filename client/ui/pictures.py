"""Images as a browser can show them, and those that were asked about lately."""

from __future__ import annotations

import asyncio
import io
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from PIL import Image

from plurum.client.connection.predictions import Prediction
from plurum.errors import ImageError
from plurum.images import UnreadableImageError, open_image, structure_of, to_eight_bit

__all__ = ["Asked", "Decoding", "Recent", "readable", "shown"]

_LONGEST_SIDE = 640
# Larger images are decoded one at a time: up to 64 megapixels, they take hundreds of MB each.
_LARGE_PIXELS = 8_000_000
# Small images are enlarged as the squares that they are: a browser would blur them into something that isn't there.
_ENLARGED_BELOW, _ENLARGED_TO = 160, 320


def readable(data: bytes) -> Image.Image:
    """Return an image upright and with 8 bits, by the rule that the server has, too.

    Raises:
        ImageError: it can't be read, or is larger than is decoded at once.
    """
    try:
        return to_eight_bit(open_image(data))
    except UnreadableImageError as error:
        raise ImageError(str(error)) from error


def shown(data: bytes) -> tuple[bytes, str]:
    """Return an image as people are to see it, upright and of moderate size, and its media type.

    Raises:
        ImageError: it can't be read.
    """
    image = readable(data)
    longest, file = max(image.size), io.BytesIO()
    if longest < _ENLARGED_BELOW:
        times = _ENLARGED_TO // longest
        size = (image.width * times, image.height * times)
        image.resize(size, Image.Resampling.NEAREST).save(file, "PNG")
        return file.getvalue(), "image/png"
    image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE), Image.Resampling.BILINEAR)
    image.save(file, "JPEG", quality=88)
    return file.getvalue(), "image/jpeg"


class Decoding:
    """Decoding in threads, bounded in memory: several small images at once, and one of more than 8 megapixels.

    Args:
        small: How many small images are decoded at once.
    """

    def __init__(self, small: int) -> None:
        self._small, self._large = asyncio.Semaphore(small), asyncio.Semaphore(1)

    @asynccontextmanager
    async def room(self, data: bytes) -> AsyncIterator[None]:
        """Wait until there is room to decode an image, and hold it until the block ends."""
        async with self._large if await asyncio.to_thread(_is_large, data) else self._small:
            yield


def _is_large(data: bytes) -> bool:
    try:
        structure = structure_of(data)
    except UnreadableImageError:
        # It will not be decoded.
        return False
    return structure.width * structure.height > _LARGE_PIXELS


@dataclass(frozen=True)
class Asked:
    """An image with its answer.

    Attributes:
        name: What its file was called.
        data: Its bytes.
        prediction: What the ensemble answered.
    """

    name: str
    data: bytes
    prediction: Prediction


class Recent:
    """What was asked about lately, in memory alone: an image that nobody sends to review is never written to a disk.

    Args:
        limit_bytes: Of all images together; the oldest are forgotten.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._held: OrderedDict[str, Asked] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, sha256: str, asked: Asked) -> None:
        """Remember an image by its SHA-256."""
        with self._lock:
            self._held.pop(sha256, None)
            self._held[sha256] = asked
            while len(self._held) > 1 and sum(len(one.data) for one in self._held.values()) > self._limit_bytes:
                self._held.popitem(last=False)

    def get(self, sha256: str) -> Asked | None:
        """Return what was asked about, if it isn't forgotten."""
        with self._lock:
            return self._held.get(sha256)

    def forget(self, sha256: str) -> None:
        """Do so at once."""
        with self._lock:
            self._held.pop(sha256, None)
