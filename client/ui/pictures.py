"""Convert images for browsers, and keep recent ones in memory."""

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
from plurum.images.windows import WindowRule

__all__ = ["Decoding", "RecentImage", "RecentImages", "decode_image", "picture_from_image"]

_LONGEST_SIDE = 640
# Larger images are decoded one at a time: up to 64 megapixels, they take hundreds of MB each.
_LARGE_PIXELS = 8_000_000
# Small images are enlarged without interpolation: a browser would blur them.
_ENLARGED_BELOW, _ENLARGED_TO = 160, 320


def decode_image(data: bytes, window: WindowRule | None = None) -> Image.Image:
    """Return an image upright and with 8 bits, by the same rule as a server that applies `window`.

    Raises:
        ImageError: the image can't be read, or is too large.
    """
    try:
        return to_eight_bit(open_image(data, window=window))
    except UnreadableImageError as error:
        raise ImageError(str(error)) from error


def picture_from_image(data: bytes, window: WindowRule | None = None) -> tuple[bytes, str]:
    """Return an image for display, upright and of moderate size, and its media type; `window` as for `decode_image`.

    Raises:
        ImageError: the image can't be read.
    """
    image = decode_image(data, window)
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
        small: Maximum number of small images that are decoded at once.
    """

    def __init__(self, small: int) -> None:
        self._small, self._large = asyncio.Semaphore(small), asyncio.Semaphore(1)

    @asynccontextmanager
    async def room(self, data: bytes) -> AsyncIterator[None]:
        """Wait until the image may be decoded; the block holds its place."""
        async with self._large if await asyncio.to_thread(_is_large, data) else self._small:
            yield


def _is_large(data: bytes) -> bool:
    try:
        structure = structure_of(data)
    except UnreadableImageError:
        # It won't be decoded.
        return False
    return structure.width * structure.height > _LARGE_PIXELS


@dataclass(frozen=True)
class RecentImage:
    """An image with its prediction.

    Attributes:
        name: Name of the file.
        data: Encoded image.
        prediction: Prediction of the ensemble.
        audit_rate: Probability with which the server draws images for audit; None if it draws none, or hides it.
    """

    name: str
    data: bytes
    prediction: Prediction
    audit_rate: float | None = None


class RecentImages:
    """Recently classified images, in memory: an image is written to disk only if it is sent to review.

    Args:
        limit_bytes: Maximum size of all images together; the oldest are dropped.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._held: OrderedDict[str, RecentImage] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, sha256: str, image: RecentImage) -> None:
        """Keep an image under its SHA-256."""
        with self._lock:
            self._held.pop(sha256, None)
            self._held[sha256] = image
            while len(self._held) > 1 and sum(len(one.data) for one in self._held.values()) > self._limit_bytes:
                self._held.popitem(last=False)

    def get(self, sha256: str) -> RecentImage | None:
        """Return an image; None if it was dropped."""
        with self._lock:
            return self._held.get(sha256)

    def forget(self, sha256: str) -> None:
        """Drop an image."""
        with self._lock:
            self._held.pop(sha256, None)
