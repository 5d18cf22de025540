"""Convert images to request tensors. Pure functions, used by gRPC and HTTP.

Encoded images are sent to the model `ensemble` unchanged, except that DICOM files are left without what identifies a
patient. uint8 arrays of exactly the served size are sent to `ensemble_pixels`. Other images are encoded as lossless PNG
and sent to `ensemble`, so that only the server resizes images.

Legend: `[batch, 1]` tensors hold bytes objects; `[batch, height, width, 3]` tensors are uint8, 0 to 255, RGB.
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

from plurum.client.connection.predictions import Failure
from plurum.dicom_files import file_and_frame
from plurum.errors import ImageError, SettingsError
from plurum.images import UnreadableImageError, structure_of
from plurum.images.dicom_file import is_dicom
from plurum.images.dicom_writer import with_only_pixels
from plurum.regular_files import MAX_IMAGE_BYTES, read_regular
from plurum.spec import IMAGE, INPUT_PIXELS

__all__ = [
    "ENSEMBLE",
    "ENSEMBLE_PIXELS",
    "AnyImage",
    "BatchSize",
    "PreparedImage",
    "batches",
    "grey_tensor",
    "image_name",
    "prepare_image",
    "tensor_from_images",
    "without_patient",
]

ENSEMBLE = "ensemble"
ENSEMBLE_PIXELS = "ensemble_pixels"
# A larger request takes longer to transfer than batching saves.
MAX_BATCH_BYTES = 32 << 20

# Adaptive batch size: first and largest number of images, and response times that count as quick and slow, seconds.
_FIRST_IMAGES, _MOST_IMAGES = 8, 32
_QUICK_S, _SLOW_S = 0.5, 4.0

AnyImage = str | Path | bytes | Image.Image | npt.NDArray[np.uint8]

# Pillow modes that PNG supports; the modes below are converted to the nearest of them.
_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})
_NEAREST_PNG_MODE = {"CMYK": "RGB", "YCbCr": "RGB", "LAB": "RGB", "HSV": "RGB", "RGBX": "RGB"} | {
    "PA": "RGBA",
    "RGBa": "RGBA",
    "La": "LA",
}


@dataclass(frozen=True)
class PreparedImage:
    """One image, prepared for a request.

    Attributes:
        index: Position of the image in the input, from 0.
        name: Path of the image, or `image 3` for an image without one.
        payload: Encoded bytes for `ensemble`, or pixels `[height, width, 3]` for `ensemble_pixels`.
        patient: Patient of the image; empty if unknown.
    """

    index: int
    name: str
    payload: bytes | npt.NDArray[np.uint8]
    patient: str = ""

    @property
    def model(self) -> str:
        """Name of the model that accepts the payload."""
        return ENSEMBLE if isinstance(self.payload, bytes) else ENSEMBLE_PIXELS

    @property
    def size_bytes(self) -> int:
        """Size of the payload, bytes."""
        return len(self.payload) if isinstance(self.payload, bytes) else self.payload.nbytes


def prepare_image(
    index: int, image: AnyImage, served_shape: tuple[int, int, int] | None, *, encoded: bool = True
) -> PreparedImage:
    """Prepare `image` for a request.

    Args:
        index: Position of the image, from 0.
        image: A path, encoded bytes, a Pillow image, or uint8 pixels `[height, width, 3]` or `[height, width]`.
        served_shape: Input shape `(height, width, 3)` of `ensemble_pixels`; None if it is not served.
        encoded: True if a model that accepts encoded images is available.

    Raises:
        ImageError: the file can't be read, the pixels have an unsupported type, or only pixels of `served_shape` are
            accepted and the image has others.
    """
    if not encoded:
        return PreparedImage(index, image_name(index, image), _exact_pixels(image, served_shape))
    if isinstance(image, str | Path):
        return PreparedImage(index, image_name(index, image), _bytes_from_file(image))
    name = image_name(index, image)
    if isinstance(image, bytes):
        return PreparedImage(index, name, without_patient(image))
    if isinstance(image, Image.Image):
        return PreparedImage(index, name, _png_from_image(image))
    if not isinstance(image, np.ndarray):
        raise ImageError(f"expected a path, bytes, a Pillow image or an array, got a {type(image).__name__}")
    if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
        shape = ", ".join(map(str, image.shape))
        raise ImageError(
            f"expected uint8 [height, width, 3] or [height, width], got an array of {image.dtype} [{shape}]"
        )
    if image.shape == served_shape:
        return PreparedImage(index, name, np.ascontiguousarray(image))
    if 0 in image.shape:
        raise ImageError("expected an array with pixels, got an empty one")
    return PreparedImage(index, name, _png_from_image(Image.fromarray(image)))


def image_name(index: int, image: object) -> str:
    """Return the name of the image at position `index` (from 0) for messages."""
    return str(image) if isinstance(image, str | Path) else f"image {index}"


def without_patient(data: bytes, frame: int | None = None) -> bytes:
    """Return a DICOM file with only what the pixels of a frame depend on; other files as they are.

    Args:
        data: Content of the file.
        frame: The frame, from 0; None expects a file of one.

    Raises:
        ImageError: the DICOM file can't be read, has no such frame, or has several and `frame` is None.
    """
    if not is_dicom(data):
        return data
    try:
        if frame is None:
            structure_of(data)
        return with_only_pixels(data, frame or 0)
    except UnreadableImageError as error:
        raise ImageError(str(error)) from error


class BatchSize:
    """Number of images per request: fixed, or adapted to the response time.

    Larger requests cost less per image on both sides, but may exceed the time limit if the ensemble is slow.

    Args:
        fixed: Fixed number of images; None adapts it.
        most: Maximum number that the server accepts.

    Attributes:
        images: Maximum number of images in the next request.

    Raises:
        SettingsError: `fixed` is below 1.
    """

    def __init__(self, fixed: int | None, most: int) -> None:
        if fixed is not None and fixed < 1:
            raise SettingsError(f"batch_size: expected at least 1, got {fixed}.")
        self._fixed = fixed is not None
        self._most = min(most, fixed or _MOST_IMAGES)
        self.images = min(fixed or _FIRST_IMAGES, self._most)

    def note(self, images: int, took_s: float) -> None:
        """Adapt to the time that a request of `images` images took, seconds."""
        if self._fixed or images < self.images:
            return
        if took_s < _QUICK_S:
            self.images = min(2 * images, self._most)
        elif took_s > _SLOW_S:
            self.images = max(1, images // 2)


def batches(entries: Iterable[PreparedImage | Failure], size: BatchSize) -> Iterator[list[PreparedImage | Failure]]:
    """Group neighbouring images for the same model: at most `size.images` and, beyond the first image, 32 MiB.

    Images that failed before they were sent keep their position.
    """
    batch: list[PreparedImage | Failure] = []
    batch_bytes, model = 0, ""
    for entry in entries:
        entry_bytes, entry_model = (entry.size_bytes, entry.model) if isinstance(entry, PreparedImage) else (0, model)
        full = len(batch) >= size.images or batch_bytes + entry_bytes > MAX_BATCH_BYTES
        if batch and (full or (model and entry_model != model)):
            yield batch
            batch, batch_bytes = [], 0
        batch.append(entry)
        batch_bytes += entry_bytes
        model = entry_model
    if batch:
        yield batch


def tensor_from_images(images: list[PreparedImage]) -> tuple[str, str, npt.NDArray[Any]]:
    """Return the model's name, its input's name, and the tensor: `[batch, 1]` or `[batch, height, width, 3]`."""
    if images[0].model == ENSEMBLE:
        encoded = np.empty((len(images), 1), dtype=np.object_)
        encoded[:, 0] = [image.payload for image in images]
        return ENSEMBLE, IMAGE, encoded
    return ENSEMBLE_PIXELS, INPUT_PIXELS, np.stack([image.payload for image in images])


def grey_tensor(tensor: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return one grey image in the form of `tensor`: a PNG of 64 × 64 pixels `[1, 1]`, or `[1, height, width, 3]`."""
    if tensor.dtype != np.object_:
        return np.full((1, *tensor.shape[1:]), 128, np.uint8)
    encoded = np.empty((1, 1), dtype=np.object_)
    encoded[0, 0] = _png_from_image(Image.new("RGB", (64, 64), (128, 128, 128)))
    return encoded


def _exact_pixels(image: AnyImage, served_shape: tuple[int, int, int] | None) -> npt.NDArray[np.uint8]:
    """Return the image as pixels of exactly `served_shape`; only the server resizes images."""
    if isinstance(image, Image.Image) and image.mode in {"L", "RGB"}:
        image = np.asarray(image.convert("RGB"))
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape != served_shape:
        got = f"an array of {list(image.shape)}" if isinstance(image, np.ndarray) else f"a {type(image).__name__}"
        shape = ", ".join(map(str, served_shape or ()))
        raise ImageError(f"expected uint8 pixels [{shape}], got {got}. The model {ENSEMBLE!r} accepts any image.")
    return np.ascontiguousarray(image)


def _bytes_from_file(path: str | Path) -> bytes:
    try:
        file, frame = file_and_frame(str(path))
        return without_patient(read_regular(file, MAX_IMAGE_BYTES), frame)
    except OSError as error:
        raise ImageError(f"can't be read: {error.strerror}") from error
    except ValueError as error:
        # The name has a NUL, or letters that the locale does not support.
        raise ImageError(f"can't be read: {error}") from error


def _png_from_image(image: Image.Image) -> bytes:
    try:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I;16"):
            upright = Image.fromarray(np.asarray(upright).astype(np.uint16))
        elif upright.mode in _NEAREST_PNG_MODE:
            upright = upright.convert(_NEAREST_PNG_MODE[upright.mode])
        elif upright.mode not in _PNG_MODES:
            raise ImageError(
                f"expected 8- or 16-bit grey, palette or colour, got a Pillow image of mode {image.mode!r}"
            )
        file = io.BytesIO()
        # Fastest compression: the PNG is sent once and not kept.
        upright.save(file, "PNG", compress_level=1)
    # Pillow decodes lazily, so a broken file that was opened elsewhere fails here.
    except (OSError, SyntaxError, ValueError, TypeError) as error:
        raise ImageError(f"the Pillow image can't be encoded: {error}") from error
    return file.getvalue()
