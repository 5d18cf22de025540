"""From images to request tensors. Pure functions; gRPC and HTTP share them.

An encoded image goes to the model `ensemble` as it is, a uint8 array of exactly the served size to
`ensemble_pixels`. Everything else that has pixels is written as a PNG, which loses nothing, and goes to `ensemble`,
so that the server alone decides how images are brought to size.

Legend: `[batch, 1]` tensors hold bytes objects, `[batch, height, width, 3]` ones are uint8, 0 to 255, RGB.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from plurum.client.predictions import Failure
from plurum.errors import ImageError, SettingsError
from plurum.regular_files import MAX_IMAGE_BYTES, read_regular
from plurum.spec import IMAGE, INPUT_PIXELS

__all__ = [
    "ENSEMBLE",
    "ENSEMBLE_PIXELS",
    "AnyImage",
    "BatchSize",
    "Item",
    "batches",
    "grey_tensor",
    "item_from_image",
    "name_of",
    "tensor_from_items",
]

ENSEMBLE = "ensemble"
ENSEMBLE_PIXELS = "ensemble_pixels"
# A request of more than this waits longer for its bytes than it saves by being one.
MAX_BATCH_BYTES = 32 << 20

# Of a request that is left to itself: how many images it begins with and ends at, and what is quick and slow, seconds.
_FIRST_IMAGES, _MOST_IMAGES = 8, 32
_QUICK_S, _SLOW_S = 0.5, 4.0

AnyImage = str | Path | bytes | Image.Image | npt.NDArray[np.uint8]

# PNG holds these as they are; of the others these are brought to the next that it does.
_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})
_NEAREST_PNG_MODE = {"CMYK": "RGB", "YCbCr": "RGB", "LAB": "RGB", "HSV": "RGB", "RGBX": "RGB"} | {
    "PA": "RGBA",
    "RGBa": "RGBA",
    "La": "LA",
}


@dataclass(frozen=True)
class Item:
    """One image, ready to be asked about.

    Attributes:
        index: Its place among all that were asked about, from 0.
        name: Its path, or `image 3` for one that has none.
        payload: Encoded bytes for `ensemble`, or pixels `[height, width, 3]` for `ensemble_pixels`.
    """

    index: int
    name: str
    payload: bytes | npt.NDArray[np.uint8]

    @property
    def model(self) -> str:
        """The one to ask."""
        return ENSEMBLE if isinstance(self.payload, bytes) else ENSEMBLE_PIXELS

    @property
    def size_bytes(self) -> int:
        """What it takes on the wire."""
        return len(self.payload) if isinstance(self.payload, bytes) else self.payload.nbytes


def item_from_image(
    index: int, image: AnyImage, served_shape: tuple[int, int, int] | None, *, encoded: bool = True
) -> Item:
    """Return `image` ready for the wire.

    Args:
        index: Its place, from 0.
        image: A path, encoded bytes, a Pillow image, or uint8 pixels `[height, width, 3]` or `[height, width]`.
        served_shape: `(height, width, 3)` of `ensemble_pixels`, or None where it isn't served.
        encoded: Whether a model that takes encoded images is asked, too.

    Raises:
        ImageError: the file can't be read, the pixels are of a kind whose range isn't known, or only pixels of
            `served_shape` are taken and these are none.
    """
    if not encoded:
        return Item(index, name_of(index, image), _pixels_as_they_are(image, served_shape))
    if isinstance(image, str | Path):
        return Item(index, name_of(index, image), _bytes_from_file(image))
    name = name_of(index, image)
    if isinstance(image, bytes):
        return Item(index, name, image)
    if isinstance(image, Image.Image):
        return Item(index, name, _png_from_image(image))
    if not isinstance(image, np.ndarray):
        raise ImageError(f"a {type(image).__name__} is no image: a path, bytes, a Pillow image or an array is needed")
    if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
        shape = ", ".join(map(str, image.shape))
        raise ImageError(f"an array of {image.dtype} [{shape}]: uint8 [height, width, 3] or [height, width] is needed")
    if image.shape == served_shape:
        return Item(index, name, np.ascontiguousarray(image))
    if 0 in image.shape:
        raise ImageError("an array without pixels")
    return Item(index, name, _png_from_image(Image.fromarray(image)))


def name_of(index: int, image: object) -> str:
    """Return what to call the image at place `index` (from 0) in messages."""
    return str(image) if isinstance(image, str | Path) else f"image {index}"


class BatchSize:
    """How many images go into one request: as many as were asked for or, left to itself, as are answered quickly.

    Larger requests cost less an image, on both sides; those of a slow ensemble would be late all together.

    Args:
        wanted: By whoever asks; None leaves it to itself.
        most: What the server takes.

    Attributes:
        images: Of the next request, at most.

    Raises:
        SettingsError: less than one image is wanted.
    """

    def __init__(self, wanted: int | None, most: int) -> None:
        if wanted is not None and wanted < 1:
            raise SettingsError(f"a batch of {wanted} images is none; give 1 or more")
        self._fixed = wanted is not None
        self._most = min(most, wanted or _MOST_IMAGES)
        self.images = min(wanted or _FIRST_IMAGES, self._most)

    def note(self, images: int, took_s: float) -> None:
        """Take note of how long a request of so many images took, seconds."""
        if self._fixed or images < self.images:
            return
        if took_s < _QUICK_S:
            self.images = min(2 * images, self._most)
        elif took_s > _SLOW_S:
            self.images = max(1, images // 2)


def batches(entries: Iterable[Item | Failure], size: BatchSize) -> Iterator[list[Item | Failure]]:
    """Group neighbours that go to the same model: as many as `size` says and, beyond the first, at most 32 MiB.

    What failed before it was asked about keeps its place among its neighbours.
    """
    batch: list[Item | Failure] = []
    batch_bytes, model = 0, ""
    for entry in entries:
        entry_bytes, wanted = (entry.size_bytes, entry.model) if isinstance(entry, Item) else (0, model)
        full = len(batch) >= size.images or batch_bytes + entry_bytes > MAX_BATCH_BYTES
        if batch and (full or (model and wanted != model)):
            yield batch
            batch, batch_bytes = [], 0
        batch.append(entry)
        batch_bytes += entry_bytes
        model = wanted
    if batch:
        yield batch


def tensor_from_items(items: list[Item]) -> tuple[str, str, npt.NDArray[Any]]:
    """Return the model to ask, the name of its input and the tensor: `[batch, 1]` or `[batch, height, width, 3]`."""
    if items[0].model == ENSEMBLE:
        encoded = np.empty((len(items), 1), dtype=np.object_)
        encoded[:, 0] = [item.payload for item in items]
        return ENSEMBLE, IMAGE, encoded
    return ENSEMBLE_PIXELS, INPUT_PIXELS, np.stack([item.payload for item in items])


def grey_tensor(tensor: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return one grey image in the form of `tensor`: a PNG of 64 × 64 pixels `[1, 1]`, or `[1, height, width, 3]`."""
    if tensor.dtype != np.object_:
        return np.full((1, *tensor.shape[1:]), 128, np.uint8)
    encoded = np.empty((1, 1), dtype=np.object_)
    encoded[0, 0] = _png_from_image(Image.new("RGB", (64, 64), (128, 128, 128)))
    return encoded


def _pixels_as_they_are(image: AnyImage, served_shape: tuple[int, int, int] | None) -> npt.NDArray[np.uint8]:
    """Return pixels that need no bringing to size, which is for the server alone to do."""
    if isinstance(image, Image.Image) and image.mode in {"L", "RGB"}:
        image = np.asarray(image.convert("RGB"))
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape != served_shape:
        got = f"an array of {list(image.shape)}" if isinstance(image, np.ndarray) else f"a {type(image).__name__}"
        shape = ", ".join(map(str, served_shape or ()))
        raise ImageError(
            f"{got}: this model takes uint8 pixels [{shape}] alone; the model {ENSEMBLE!r} takes any image"
        )
    return np.ascontiguousarray(image)


def _bytes_from_file(path: str | Path) -> bytes:
    try:
        return read_regular(path, MAX_IMAGE_BYTES)
    except OSError as error:
        raise ImageError(f"can't be read: {error.strerror}") from error
    except ValueError as error:
        # A name with NUL, or with letters that the locale has not.
        raise ImageError(f"can't be read: {error}") from error


def _png_from_image(image: Image.Image) -> bytes:
    try:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I;16"):
            upright = Image.fromarray(np.asarray(upright).astype(np.uint16))
        elif upright.mode in _NEAREST_PNG_MODE:
            upright = upright.convert(_NEAREST_PNG_MODE[upright.mode])
        elif upright.mode not in _PNG_MODES:
            raise ImageError(f"a Pillow image of mode {image.mode!r}: 8- or 16-bit grey, palette or colour is needed")
        file = io.BytesIO()
        # The least effort: it is made to cross a wire once, not to be kept.
        upright.save(file, "PNG", compress_level=1)
    # Pillow decodes late: a broken file that was opened elsewhere shows here.
    except (OSError, SyntaxError, ValueError, TypeError) as error:
        raise ImageError(f"a Pillow image that can't be encoded: {error}") from error
    return file.getvalue()
