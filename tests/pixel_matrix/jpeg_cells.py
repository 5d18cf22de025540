"""Cells of JPEGs, written by Pillow and imagecodecs, and read by OpenCV; lossy decoders may differ by 2 levels."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import cv2
import imagecodecs
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

from tests.pixel_matrix.cell import Cell, Pixels
from tests.pixel_matrix.tiff_cells import smooth


def jpeg_cells() -> Iterator[Cell]:
    """Yield all."""
    yield from _ordinary_cells()
    yield from _colour_cells()
    yield from _refused_cells()


def reference(data: bytes) -> Pixels:
    """Return what OpenCV reads, upright."""
    return np.asarray(cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB))


def encoded(encode: Callable[..., Any], pixels: npt.NDArray[Any], **options: Any) -> bytes:
    """Return a JPEG by one of imagecodecs' encoders."""
    return bytes(encode(pixels, **options))


def saved(image: Image.Image, **options: Any) -> bytes:
    """Return a JPEG by Pillow."""
    file = io.BytesIO()
    image.save(file, "JPEG", **{"quality": 92, **options})
    return file.getvalue()


def _ordinary_cells() -> Iterator[Cell]:
    sizes = {
        "48 x 64": smooth(),
        "odd": np.ascontiguousarray(smooth()[:43, :51]),
        "8 x 8": np.ascontiguousarray(smooth()[:8, :8]),
    }
    for size, mode, sampling, progressive, restarts, optimised in product(
        sizes, ("L", "RGB", "CMYK"), (0, 1, 2, "4:1:1"), (False, True), (0, 1, 5), (False, True)
    ):
        if mode != "RGB" and sampling:
            continue
        image = Image.fromarray(sizes[size]).convert(mode)
        options = {
            "subsampling": sampling,
            "progressive": progressive,
            "restart_marker_blocks": restarts,
            "optimize": optimised,
        }
        data = saved(image, **options)
        name = (
            f"JPEG {size} {mode} {sampling}{' progressive' * progressive} restarts {restarts}{' optimised' * optimised}"
        )
        yield Cell(name, data, reference(data), 2)
    for orientation, mode in product(range(1, 9), ("L", "RGB")):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = saved(Image.fromarray(smooth()).convert(mode), exif=exif)
        yield Cell(f"JPEG EXIF orientation {orientation} {mode}", data, reference(data), 2)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for quality in (1, 30, 75, 100):
        data = saved(Image.fromarray(smooth()), quality=quality, icc_profile=profile, comment=b"x")
        yield Cell(f"JPEG ICC profile, quality {quality}", data, reference(data), 2)


def _colour_cells() -> Iterator[Cell]:
    pixels = smooth()
    for colours, sampling in product(("rgb", "ycbcr"), ((1, 1), (2, 1), (2, 2))):
        data = encoded(
            imagecodecs.jpeg8_encode, pixels, level=92, colorspace="rgb", outcolorspace=colours, subsampling=sampling
        )
        yield Cell(f"JPEG stored as {colours} {sampling}", data, reference(data), 2)
    named = encoded(imagecodecs.jpeg8_encode, pixels, level=92, colorspace="rgb", outcolorspace="rgb")
    yield Cell(
        "JPEG stored as rgb, by the names of its colours",
        without_adobe(named, b"RGB"),
        reference(without_adobe(named, b"RGB")),
        2,
    )
    ink = np.asarray(Image.fromarray(pixels).convert("CMYK"))
    for colours in ("cmyk", "ycck"):
        data = encoded(imagecodecs.jpeg8_encode, 255 - ink, level=92, colorspace="cmyk", outcolorspace=colours)
        yield Cell(f"JPEG stored as {colours}", data, reference(data), 3)
        plain = without_adobe(data, b"\1\2\3\4")
        yield Cell(f"JPEG stored as {colours} without Adobe's marker", plain, None)


def without_adobe(data: bytes, names: bytes) -> bytes:
    """Return a JPEG without Adobe's and JFIF's markers, its colours called by one byte each of `names`."""
    place, kept, old = 2, [data[:2]], b""
    while True:
        marker, size = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        segment = bytearray(data[place : place + 2 + size])
        if marker in {0xC0, 0xC1}:
            old = bytes(segment[10::3])
            segment[10::3] = names
        if marker == 0xDA:
            segment[5 : 5 + 2 * segment[4] : 2] = bytes(
                names[old.index(one)] for one in segment[5 : 5 + 2 * segment[4] : 2]
            )
            return b"".join([*kept, bytes(segment), data[place + 2 + size :]])
        if marker not in {0xE0, 0xEE}:
            kept.append(bytes(segment))
        place += 2 + size


def _refused_cells() -> Iterator[Cell]:
    pixels = smooth()
    yield Cell("JPEG 12 bits", encoded(imagecodecs.jpeg8_encode, pixels.astype(np.uint16) << 4, bitspersample=12), None)
    yield Cell("JPEG lossless", encoded(imagecodecs.ljpeg_encode, pixels[..., 0].astype(np.uint16)), None)
    yield Cell("JPEG lossless 8 bits", encoded(imagecodecs.jpeg8_encode, pixels, lossless=True, predictor=1), None)
    yield Cell("JPEG LS", encoded(imagecodecs.jpegls_encode, pixels[..., 0]), None)
    plain = saved(Image.fromarray(pixels))
    for marker in (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF):
        yield Cell(f"JPEG frame {marker:#x}", plain.replace(b"\xff\xc0", bytes([0xFF, marker]), 1), None)
    yield Cell("JPEG twice", plain + plain, None)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "MPO", save_all=True, append_images=[Image.fromarray(pixels[::-1])])
    yield Cell("JPEG multi-picture", file.getvalue(), None)
