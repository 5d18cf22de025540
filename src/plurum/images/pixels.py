"""Decoding of images into the pixels a model sees, the same in training and serving.

Legend: `[height, width, 3]` arrays are uint8, 0 to 255, RGB.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import struct
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, _imaging

from .dicom_pixels import values_from_dicom
from .image_formats import FORMAT_NAMES, FORMATS, format_of
from .image_limits import Structure, UnreadableImageError
from .jpeg_reduction import ends_in_grey, reduction_of
from .jpeg_structure import jpeg_scan, structure_from_scan, with_more_data
from .nifti import NIFTI_TEXT, is_nifti
from .png_structure import has_all_rows
from .windows import FULL, WindowRule, apply_window

__all__ = [
    "content_box",
    "grey_values",
    "is_nearly_black",
    "open_image",
    "pixels_from_image",
    "resize_to_pixels",
    "resizing_from_spec",
    "structure_of",
    "to_eight_bit",
]

# Random bytes, which a JPEG decoder does not turn into the grey that it fills gaps with.
_JUNK = bytes.fromhex("6bd1a94c83e27f15b09c2e57d84361aa1df4c07b3896e5524a8f70c9136db25e")
_ROWS = 256
# First bytes of DICOM data sets that were saved without the beginning of a file.
_DATA_SETS = (b"\x08\0", b"\0\x08", b"\x02\0")
# Exceptions of Pillow's decoders on broken files, found by fuzzing.
_ERRORS = (ArithmeticError, AssertionError, AttributeError, OSError, RuntimeError, ValueError, EOFError, LookupError)
# The limit of 12-bit values in the high byte of 16 bits.
_NEARLY_BLACK = 16
_HIGH_BYTE_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
_EIGHT_BIT_MODES = ("L", "RGB", "RGBA", "LA", "P", "PA", "1", "CMYK", "YCbCr", "LAB", "HSV", "RGBX", "RGBa", "La")


def structure_of(data: bytes) -> Structure:
    """Return the structure of an encoded image without decoding it.

    Raises:
        TooLargeImageError: more than `MAX_PIXELS` in all.
        UnreadableImageError: of none of `FORMATS`, truncated, smaller than `MIN_SIDE` on a side, too costly to
            decode, with several pictures, or of an unsupported kind.
    """
    if found := format_of(data):
        return found.structure(data)
    if data[:2] in _DATA_SETS:
        raise UnreadableImageError("DICOM: expected DICM after a preamble of 128 bytes (PS3.10). Save the file anew")
    if is_nifti(data):
        raise UnreadableImageError(NIFTI_TEXT)
    raise UnreadableImageError(f"{len(data)} bytes that are not a {FORMAT_NAMES} image (they start with {data[:8]!r})")


def open_image(
    data: bytes,
    structure: Structure | None = None,
    window: WindowRule | None = None,
    reduce_to: tuple[int, int] | None = None,
) -> Image.Image:
    """Return the decoded image of a file in one of `FORMATS`.

    Images that are too costly are refused by their structure, before decoding.

    Args:
        data: Content of the file.
        structure: Result of `structure_of` for `data`, if already computed.
        window: Window, or full range, for grey images of more than 8 bits, and for grey DICOM images instead of theirs;
            None applies none.
        reduce_to: Height and width of the pixels to which the image will be resized. A JPEG that is much larger is
            decoded at a reduced scale. None decodes every image as a whole.

    Raises:
        TooLargeImageError: more than `MAX_PIXELS` in all.
        UnreadableImageError: as for `structure_of`, or the decoder finds the image corrupt.
    """
    structure = structure or structure_of(data)
    _check_range(structure, window)
    image = _complete_image(data, structure, window, reduction_of(structure, reduce_to))
    if window is not None and _is_deep(image):
        return _window_image(image, structure, window)
    _check_values(image, structure)
    return image


def grey_values(data: bytes) -> npt.NDArray[Any] | None:
    """Return the values `[height, width]` of an upright image to which windows apply; None for other images.

    They are as stored. DICOM values are those after the modality table, and include grey images of 8 bits.

    Raises:
        UnreadableImageError: as for `open_image`, except that any range of values is accepted.
    """
    structure = structure_of(data)
    if structure.kind == "DICOM":
        return values_from_dicom(structure.clean or data)
    image = _complete_image(data, structure, None)
    return _deep_values(_rotate_upright(image), structure) if _is_deep(image) else None


def _complete_image(data: bytes, structure: Structure, window: WindowRule | None, reduction: int = 1) -> Image.Image:
    encoded = structure.clean or data
    image = _decode(encoded, structure, window, reduction)
    if reduction == 1:
        _check_complete(image, encoded, structure)
    elif ends_in_grey(image, reduction):
        # Only the whole image tells.
        _check_complete(_decode(encoded, structure), encoded, structure)
    image.info["turned"] = structure.turned
    return image


def is_nearly_black(image: Image.Image) -> bool:
    """Return True if no value of an image from `to_eight_bit` exceeds 15 of 255.

    This indicates 16-bit files with values up to 4,095, as 12-bit cameras write them. Only the values can tell.
    """
    return int(np.max(image.getextrema())) < _NEARLY_BLACK


def _has_sixteen_bits(image: Image.Image) -> bool:
    """Return True for a grey image of 16 bits; older Pillows open such PNGs in the mode I."""
    return image.mode in _HIGH_BYTE_MODES or (image.mode == "I" and image.format == "PNG")


def _is_deep(image: Image.Image) -> bool:
    """Return True for a grey image of more than 8 bits, to which windows apply."""
    return _has_sixteen_bits(image) or image.mode in {"I", "F"}


def _deep_values(image: Image.Image, structure: Structure) -> npt.NDArray[Any]:
    """Return the values of a grey image of more than 8 bits; Pillow holds most kinds as 32 signed bits."""
    size_bytes = 2 if structure.bits <= 16 else 4
    return np.asarray(image).astype(f"{structure.number}{size_bytes}", copy=False)


def _window_image(image: Image.Image, structure: Structure, window: WindowRule) -> Image.Image:
    """Return a grey image of more than 8 bits with 8, upright."""
    result = Image.fromarray(apply_window(_deep_values(_rotate_upright(image), structure), window))
    result.info["turned"] = False
    return result


def _check_range(structure: Structure, window: WindowRule | None) -> None:
    """Check that the window maps values of this kind to 8 bits."""
    if structure.number == "f" and window == FULL:
        raise UnreadableImageError(
            f"floating-point values have no full range ({structure.about}). Train with --window LOW%,HIGH%"
        )
    if window is None and (structure.number != "u" or structure.bits > 16):
        raise UnreadableImageError(
            f"values whose range is unknown ({structure.about}): save them as 8- or 16-bit grey, or train with "
            f"--window LOW%,HIGH%"
        )


def _decode(data: bytes, structure: Structure, window: WindowRule | None = None, reduction: int = 1) -> Image.Image:
    _silence_decoders()
    try:
        with warnings.catch_warnings():
            # Pillow warns of unusual metadata that does not affect the pixels.
            warnings.simplefilter("ignore")
            image = FORMATS[structure.kind].decoder(data, window)
            if structure.bits < 8 and image.mode in {"1", "L"} and "transparency" in image.info:
                _scale_transparency(image, structure.bits)
            if reduction > 1:
                image.draft(None, (structure.width // reduction, structure.height // reduction))
            image.load()
    except UnreadableImageError:
        raise
    except SyntaxError as error:
        # Pillow raises SyntaxError for a header that it does not support, though the structure is valid.
        raise UnreadableImageError(f"a {structure.kind} that can't be decoded here ({structure.about})") from error
    except _ERRORS as error:
        raise UnreadableImageError(f"image is corrupt or truncated ({structure.about}): {error}") from error
    return image


def _scale_transparency(image: Image.Image, bits: int) -> None:
    """Scale the transparent grey value to 0 to 255, as Pillow scales the pixels."""
    image.info["transparency"] = (image.info["transparency"] & ((1 << bits) - 1)) * 255 // ((1 << bits) - 1)


def _check_complete(image: Image.Image, data: bytes, structure: Structure) -> None:
    """Check that all pixels come from the file, as decoders fill in missing ones.

    libtiff checks this itself, except for JPEGs in a TIFF.
    """
    if structure.kind == "PNG":
        last = image.crop((0, image.height - 1, image.width, image.height))
        # Missing rows are decoded as zeros.
        if not any(last.tobytes()) and not has_all_rows(data):
            raise UnreadableImageError("image is truncated: a PNG whose last rows are missing")
    is_complete = structure.sequential and not _has_flat_grey(image, image.size, everywhere=structure.restarts)
    if structure.kind == "JPEG" and not is_complete:
        _check_stream(image, data, structure)
    for end, stream in structure.streams:
        scan = structure_from_scan(jpeg_scan(stream))
        if structure.turned or not scan.sequential or _has_flat_grey(image, end, everywhere=False):
            _check_stream(_decode(stream, scan), stream, scan)


def _check_stream(image: Image.Image, data: bytes, structure: Structure) -> None:
    """Check that the JPEG `data`, decoded as `image`, has all of its pixels."""
    # A decoder with complete data skips the added bytes.
    longer = _decode(with_more_data(data, structure.scans, _JUNK), structure)
    for top in range(0, image.height, _ROWS):
        box = (0, top, image.width, min(top + _ROWS, image.height))
        if image.crop(box).tobytes() != longer.crop(box).tobytes():
            raise UnreadableImageError("image is truncated: the data of a JPEG end before its last pixels")


def _has_flat_grey(image: Image.Image, end: tuple[int, int], *, everywhere: bool) -> bool:
    """Return True if the last block of 8 × 8 pixels before `end`, or any block, may be the grey fill of libjpeg."""
    if not everywhere:
        # The first channel of the last pixel excludes nearly all images.
        last = image.getpixel((end[0] - 1, end[1] - 1))
        if not 126 <= (last[0] if isinstance(last, tuple) else last or 0) <= 129:
            return False
        left, top = (end[0] - 1) // 8 * 8, (end[1] - 1) // 8 * 8
        return bool(_is_grey(image.crop((left, top, *end))).all())
    across, down = image.width // 8, image.height // 8
    # One pixel per block excludes nearly all images.
    middles = image.resize((across, down), Image.Resampling.NEAREST, (0, 0, across * 8, down * 8))
    if not _is_grey(middles).reshape(down, across, -1).all(axis=-1).any():
        return False
    pixels = image.crop((0, 0, across * 8, down * 8))
    return bool(_is_grey(pixels).reshape(down, 8, across, -1).all(axis=(1, 3)).any())


def _is_grey(image: Image.Image) -> npt.NDArray[np.bool_]:
    """Return where values are 128, with a tolerance for colour conversion."""
    return np.asarray(np.asarray(image) - np.uint8(126) <= 3)


def _check_values(image: Image.Image, structure: Structure) -> None:
    """Check that the range of the pixel values is known."""
    if image.mode == "P" and image.palette is not None:
        most = int(np.asarray(image).max())
        colours = len(image.palette.palette) // len(image.palette.mode)
        if most >= colours:
            raise UnreadableImageError(f"image is corrupt: colour {most} of a palette of {colours}")
    # If the file states the number of significant bits, they must be the high ones.
    least = max(256, 1 << structure.stated_bits if structure.stated_bits < 16 else 0)
    if structure.bits == 16 and _largest(image) < least:
        raise UnreadableImageError(
            f"image of 16 bits whose values are all below {least:,}, so it would be dark: scale them up to "
            f"65,535, or train with --window CENTRE,WIDTH or LOW%,HIGH%"
        )


def _largest(image: Image.Image) -> int:
    """Return the largest value of a 16-bit image without opacity; for colours, which Pillow reduces, a lower bound."""
    if image.mode in {*_HIGH_BYTE_MODES, "I"}:
        return int(np.asarray(image).max())
    highest = np.reshape(image.getextrema(), (-1, 2))[:, 1]
    opacity = image.getbands()[-1] in {"A", "a"}
    return int(highest[:-1].max() if opacity else highest.max()) << 8


def pixels_from_image(image: Image.Image, **resizing: Any) -> npt.NDArray[np.uint8]:
    """Return the `[height, width, 3]` pixels a member sees.

    First applies the EXIF orientation, then keeps the high byte of 16-bit values, then composites transparent pixels
    over white. With `grey`, converts to luminance (ITU-R 601-2). Finally resizes with antialiased bilinear
    interpolation. `stretch` ignores the aspect ratio; `crop` crops the centre to the target's aspect ratio first; `pad`
    keeps the aspect ratio and fills the sides.

    Args:
        image: Decoded image.
        **resizing: Arguments of `resize_to_pixels`.

    Raises:
        UnreadableImageError: pixels are neither 8- nor 16-bit (32-bit and floating point have no known range).
    """
    return resize_to_pixels(to_eight_bit(image), **resizing)


def to_eight_bit(image: Image.Image) -> Image.Image:
    """Return `image` at its own size, upright, 8-bit and opaque, of mode L if it has one channel, else RGB.

    Raises:
        UnreadableImageError: as for `pixels_from_image`.
    """
    return _eight_bit(_rotate_upright(image))


def resize_to_pixels(
    image: Image.Image,
    *,
    height: int,
    width: int,
    colour: Literal["rgb", "grey"] = "rgb",
    resize: Literal["stretch", "crop", "pad"] = "stretch",
    fill: tuple[int, int, int] = (0, 0, 0),
) -> npt.NDArray[np.uint8]:
    """Return the resized `[height, width, 3]` pixels of an image from `to_eight_bit`.

    Args:
        image: Image from `to_eight_bit`.
        height: Height of the result, in pixels.
        width: Width of the result, in pixels.
        colour: Colour mode; `grey` converts to luminance.
        resize: Resize rule, see `pixels_from_image`.
        fill: Colour of the sides that `pad` adds, RGB, 0 to 255.
    """
    grey_or_rgb = image.convert("L") if colour == "grey" else image
    size = (width, height)
    # Avoid the copy that Pillow makes even without a change.
    if grey_or_rgb.size == size:
        result = grey_or_rgb
    elif resize == "crop":
        result = ImageOps.fit(grey_or_rgb, size, Image.Resampling.BILINEAR)
    elif resize == "pad":
        left, top, right, bottom = content_box(image.size, height, width)
        content = grey_or_rgb.resize((right - left, bottom - top), Image.Resampling.BILINEAR)
        # A list where the rule came as JSON.
        result = Image.new("RGB", size, tuple(fill))
        result.paste(content, (left, top))
    else:
        result = grey_or_rgb.resize(size, Image.Resampling.BILINEAR)
    return np.asarray(result if result.mode == "RGB" else result.convert("RGB"))


def content_box(size: tuple[int, int], height: int, width: int) -> tuple[int, int, int, int]:
    """Return the box of an image of `size` `(width, height)` within its padded pixels: left, top, right, bottom."""
    scale = min(width / size[0], height / size[1])
    across, down = (max(1, round(side * scale)) for side in size)
    left, top = (width - across) // 2, (height - down) // 2
    return left, top, left + across, top + down


def resizing_from_spec(image: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments of `resize_to_pixels` for an image spec, as `ensemble.json` states it.

    Padding has the colour that the members subtract, so that normalisation turns it into 0.
    """
    resizing = {key: image[key] for key in ("height", "width", "colour", "resize")}
    if image["resize"] == "pad":
        mean = [round(255 * value) for value in image["mean"]]
        grey = round(0.299 * mean[0] + 0.587 * mean[1] + 0.114 * mean[2])
        resizing["fill"] = (grey,) * 3 if image["colour"] == "grey" else tuple(mean)
    return resizing


def _rotate_upright(image: Image.Image) -> Image.Image:
    # Searching for absent EXIF data takes longer than resizing a small image.
    if image.info.get("turned") is False:
        return image
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
                return image
            return ImageOps.exif_transpose(image)
    except (ArithmeticError, AttributeError, OSError, SyntaxError, ValueError, LookupError, TypeError, struct.error):
        # Unreadable metadata give no orientation; the pixels are complete.
        return image


@functools.cache
def _silence_decoders() -> None:
    """Keep the TIFF decoders from writing to standard error; errors arrive as exceptions."""
    logging.getLogger("PIL.TiffImagePlugin").setLevel(logging.CRITICAL)
    # libtiff writes from C. This fails, harmlessly, with a Pillow that is not linked as its wheels are.
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(_imaging.__file__)
        library.TIFFSetErrorHandler(None)
        library.TIFFSetWarningHandler(None)


def _eight_bit(image: Image.Image) -> Image.Image:
    """Return `image` as RGB, or as L if it has one channel."""
    if _has_sixteen_bits(image):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode not in _EIGHT_BIT_MODES:
        raise UnreadableImageError(f"image mode: expected 8- or 16-bit grey, palette or colour, got {image.mode!r}")
    if image.mode == "La":
        image = image.convert("LA")
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image if image.mode in {"L", "RGB"} else image.convert("L" if image.mode == "1" else "RGB")
