"""The images that load is made of: from files or synthetic, decoded, and as perf_analyzer's JSON input data."""

from __future__ import annotations

import base64
import io
import json
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from plurum.client import image_files
from plurum.errors import ImageError
from plurum.files import write_bytes
from plurum.images import UnreadableImageError, open_image, pixels_from_image
from plurum.regular_files import MAX_IMAGE_BYTES, read_regular
from plurum.spec import IMAGE, INPUT_PIXELS, ImageSpec

__all__ = [
    "MAX_IMAGES",
    "bytes_element",
    "coloured_jpegs",
    "decode_pixels",
    "encoded_from_folder",
    "input_data",
    "jpeg_from_pixels",
    "random_pixels",
    "synthetic_images",
    "write_images",
]

# perf_analyzer keeps them all in memory and sends them in turn.
MAX_IMAGES = 64
_SYNTHETIC = 16

Pixels = npt.NDArray[np.uint8]


def encoded_from_folder(folder: Path) -> list[bytes]:
    """Return the first `MAX_IMAGES` images below `folder`, encoded as they are.

    Raises:
        DataError: The folder holds no image.
        ImageError: The server would refuse one of the images.
    """
    images = []
    for path in image_files([folder])[:MAX_IMAGES]:
        try:
            data = read_regular(path, MAX_IMAGE_BYTES)
            open_image(data)
        except (OSError, UnreadableImageError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ImageError(f"{path}: {reason}") from error
        images.append(data)
    return images


def jpeg_from_pixels(pixels: Pixels, quality: int = 90, blur: int = 0) -> bytes:
    """Return a JPEG of `pixels`, `[height, width]` or `[height, width, 3]`, after a Gaussian blur of `blur` pixels."""
    image, file = Image.fromarray(pixels), io.BytesIO()
    if blur:
        image = image.filter(ImageFilter.GaussianBlur(blur))
    image.convert("RGB").save(file, "JPEG", quality=quality)
    return file.getvalue()


def synthetic_images(spec: ImageSpec) -> list[bytes]:
    """Return JPEGs of blurred noise in the served size: as costly to decode as photographs, unlike flat colour."""
    draws = np.random.default_rng(0)
    shape = (spec.height, spec.width, 3)
    return [jpeg_from_pixels(draws.integers(0, 256, shape, dtype=np.uint8), blur=2) for _ in range(_SYNTHETIC)]


def coloured_jpegs(height: int, width: int, count: int = _SYNTHETIC) -> list[bytes]:
    """Return JPEGs of blurred noise, as costly to decode as photographs, each in its own range of colours.

    Members with random weights give nearly the same prediction for all noise of the same colours. Equal predictions
    would then prove little.
    """
    draws = np.random.default_rng(0)
    images = []
    for _ in range(count):
        darkest, brightest = np.sort(draws.uniform(0, 255, (2, 3)), axis=0)
        noise = darkest + (brightest - darkest) * draws.random((height, width, 3))
        images.append(jpeg_from_pixels(noise.astype(np.uint8), quality=95, blur=1))
    return images


def write_images(folder: Path, images: Iterable[bytes], prefix: str = "") -> tuple[Path, ...]:
    """Write JPEG files named by `prefix` and their number into `folder`; return their paths."""
    paths = []
    for number, image in enumerate(images):
        paths.append(folder / f"{prefix}{number}.jpg")
        write_bytes(paths[-1], image)
    return tuple(paths)


def random_pixels(height: int, width: int, count: int = 1) -> Pixels:
    """Return `count` images of noise, uint8 `[count, height, width, 3]`, the same at every call."""
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def decode_pixels(image: bytes, spec: ImageSpec) -> Pixels:
    """Return the pixels that the server makes of an encoded image, `[height, width, 3]`.

    Raises:
        UnreadableImageError: The server would refuse the image.
    """
    return pixels_from_image(open_image(image, **spec.decoding), **spec.resizing)


def bytes_element(content: bytes) -> bytes:
    """Return an element of a BYTES tensor as Triton takes it: the length in 4 bytes, little-endian, then the bytes."""
    return struct.pack("<I", len(content)) + content


def input_data(images: Sequence[bytes], spec: ImageSpec, tensor: str) -> str:
    """Return the text of perf_analyzer's input data file for a model that takes `tensor`.

    Args:
        images: Encoded images.
        spec: Size and colour of the served images.
        tensor: `IMAGE` sends the images as they are, `PIXELS` as uint8 `[height, width, 3]`.

    Raises:
        ImageError: The tensor has another name.
    """
    if tensor == IMAGE:
        raw = [bytes_element(image) for image in images]
        entry: dict[str, object] = {"shape": [1]}
    elif tensor == INPUT_PIXELS:
        raw = [decode_pixels(image, spec).tobytes() for image in images]
        entry = {"shape": [spec.height, spec.width, 3]}
    else:
        raise ImageError(f"input of the model: expected {IMAGE} or {INPUT_PIXELS}, got {tensor!r}")
    return json.dumps({"data": [{tensor: {"b64": base64.b64encode(one).decode(), **entry}} for one in raw]})
