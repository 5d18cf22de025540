"""The images that load is made of: as files or synthetic, decoded, and as perf_analyzer's JSON input data."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from plurum.client import image_files
from plurum.errors import ImageError
from plurum.images import UnreadableImageError, open_image, pixels_from_image
from plurum.regular_files import MAX_IMAGE_BYTES, read_regular
from plurum.spec import IMAGE, INPUT_PIXELS, ImageSpec

__all__ = ["MAX_IMAGES", "decoded", "encoded_from_folder", "input_data", "synthetic_images"]

# perf_analyzer keeps them all in memory and sends them in turn.
MAX_IMAGES = 64
_SYNTHETIC = 16


def encoded_from_folder(folder: Path) -> list[bytes]:
    """Return the first `MAX_IMAGES` images below `folder` as they are, encoded.

    Raises:
        DataError: there is none.
        ImageError: one of them is no image that the server would take.
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


def synthetic_images(spec: ImageSpec) -> list[bytes]:
    """Return JPEGs of blurred noise of the served size: as costly to decode as photographs are, unlike flat colour."""
    draws = np.random.default_rng(0)
    images = []
    for _ in range(_SYNTHETIC):
        noise = draws.integers(0, 256, (spec.height, spec.width, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(noise).filter(ImageFilter.GaussianBlur(2)).save(file, "JPEG", quality=90)
        images.append(file.getvalue())
    return images


def decoded(image: bytes, spec: ImageSpec) -> npt.NDArray[np.uint8]:
    """Return the pixels that the server would make of an encoded image, `[height, width, 3]`.

    Raises:
        UnreadableImageError: the server would refuse it.
    """
    return pixels_from_image(
        open_image(image), height=spec.height, width=spec.width, colour=spec.colour, resize=spec.resize
    )


def input_data(images: Sequence[bytes], spec: ImageSpec, tensor: str) -> str:
    """Return the text of an input data file for a model that takes `tensor`.

    Args:
        images: Encoded.
        spec: The size and colour of what is served.
        tensor: `IMAGE` sends them as they are, `PIXELS` as uint8 `[height, width, 3]`.
    """
    if tensor == IMAGE:
        # Raw data of Triton's BYTES: each element after its length, four bytes, the least first.
        raw = [len(image).to_bytes(4, "little") + image for image in images]
        entry: dict[str, object] = {"shape": [1]}
    elif tensor == INPUT_PIXELS:
        raw = [decoded(image, spec).tobytes() for image in images]
        entry = {"shape": [spec.height, spec.width, 3]}
    else:
        raise ImageError(f"a model that takes {tensor!r}; {IMAGE} or {INPUT_PIXELS} can be sent")
    return json.dumps({"data": [{tensor: {"b64": base64.b64encode(one).decode(), **entry}} for one in raw]})
