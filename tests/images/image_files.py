"""Images as files: written by Pillow, or by hand where Pillow can't."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from plurum.images import open_image, pixels_from_image
from tests.pixel_matrix.png_cells import chunk

__all__ = ["Pixels", "encoded", "gradient", "photograph", "png", "png_from_pixels", "seen", "tiff"]

Pixels = npt.NDArray[np.uint8]


def seen(data: bytes, side: int = 16, reduce_to: tuple[int, int] | None = None, **options: Any) -> Pixels:
    return pixels_from_image(open_image(data, reduce_to=reduce_to), height=side, width=side, **options)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, depth: int, colour: int, body: bytes, *extra: bytes) -> bytes:
    """Return a hand-written PNG: Pillow writes neither 16-bit colour nor wrong headers."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def tiff(width: int, height: int, bits: tuple[int, ...], body: bytes) -> bytes:
    """Return a little-endian, uncompressed TIFF with one strip, RGB or grey by the number of `bits`."""
    entries = 8
    extra = 8 + 2 + entries * 12 + 4
    bits_value = extra if len(bits) > 2 else bits[0]
    tags = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, len(bits), bits_value),
        (259, 3, 1, 1),
        (262, 3, 1, 2 if len(bits) == 3 else 1),
        (273, 4, 1, extra + 6),
        (277, 3, 1, len(bits)),
        (279, 4, 1, len(body)),
    ]
    directory = struct.pack("<H", entries) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + b"\0" * 4
    return b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<3H", *(bits * 3)[:3]) + body


def gradient(height: int = 16, width: int = 16) -> Pixels:
    """Return an image with distinct rows, columns and channels, so that each orientation looks different."""
    rows, columns = np.mgrid[0:height, 0:width]
    pixels: Pixels = np.stack([rows * 8 + 20, columns * 8 + 60, (rows + columns) * 4 + 100], axis=-1).astype(np.uint8)
    return pixels


def png_from_pixels(pixels: Pixels) -> bytes:
    return encoded(Image.fromarray(pixels))


def photograph(width: int = 256, height: int = 192) -> Image.Image:
    """Return smooth colours with some noise."""
    noise = np.random.default_rng(0).normal(0, 12, (height, width, 3))
    ramp = np.asarray(Image.fromarray(gradient()).convert("RGB").resize((width, height), Image.Resampling.BICUBIC))
    return Image.fromarray(np.clip(ramp + noise, 0, 255).astype(np.uint8))
