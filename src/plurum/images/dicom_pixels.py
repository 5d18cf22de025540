"""Pixels of a DICOM image with 8 bits, by the rules of PS3.3: modality, window or VOI table, and palette.

A table maps each stored value to 8 bits, so that the rule costs no more than 65,536 values:

1. The modality table, or RescaleSlope and RescaleIntercept.
2. The given window, or full range of BitsStored; else the file's VOI table; else its first window; else that range.
3. MONOCHROME1 is inverted.

Legend: `[values]` tables are uint8, 0 to 255, by stored value.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from .dicom_elements import fault_at
from .dicom_file import ENCAPSULATED, DicomFile, Lut, read_dicom, refuse_corrupt
from .dicom_writer import encapsulate
from .image_limits import UnreadableImageError
from .windows import FULL, WINDOW_FUNCTIONS, Window, WindowRule, eight_bit_from_shares, shares_from_window

__all__ = ["image_from_dicom", "values_from_dicom"]

_SAMPLES, _PHOTOMETRIC, _PLANAR, _ROWS, _COLUMNS = 0x00280002, 0x00280004, 0x00280006, 0x00280010, 0x00280011
_ALLOCATED, _STORED, _SIGNED = 0x00280100, 0x00280101, 0x00280103
_CENTRE, _WIDTH, _FUNCTION, _INTERCEPT, _SLOPE = 0x00281050, 0x00281051, 0x00281056, 0x00281052, 0x00281053
_MODALITY_LUT, _VOI_LUT, _LUT_DESCRIPTOR = 0x00283000, 0x00283010, 0x00283002
_PALETTES = ((0x00281101, 0x00281201), (0x00281102, 0x00281202), (0x00281103, 0x00281203))
_SEGMENTED = 0x20
# Smallest fraction of the full range that the values of an image without a window fill.
_LEAST_FILLED = 1 / 16


@refuse_corrupt()
def image_from_dicom(data: bytes, window: WindowRule | None = None) -> Image.Image:
    """Return the image of a file that `dicom_structure` accepts, as L or RGB.

    Args:
        data: Content of the file.
        window: Window, or full range, to apply instead of the file's window, to grey images.

    Raises:
        UnreadableImageError: the pixels can't be decoded, or their range is unknown; the message names the tag or the
            transfer syntax.
    """
    file = read_dicom(data)
    pixels, is_rgb = _decode(file)
    if is_rgb:
        return Image.fromarray(_scale(pixels, file.number(_STORED)))
    stored = _stored(file, pixels)
    if file.text(_PHOTOMETRIC) == "PALETTE COLOR":
        return Image.fromarray(_palette(file)[stored])
    return Image.fromarray(_grey_table(file, stored, window)[stored])


@refuse_corrupt()
def values_from_dicom(data: bytes) -> npt.NDArray[np.float64] | None:
    """Return the values `[height, width]` after the modality table, to which windows apply; None for colours.

    Raises:
        UnreadableImageError: as for `image_from_dicom`, except that any range of values is accepted.
    """
    file = read_dicom(data)
    pixels, is_rgb = _decode(file)
    if is_rgb or file.text(_PHOTOMETRIC) == "PALETTE COLOR":
        return None
    return np.asarray(_values(file)[_stored(file, pixels)])


def _decode(file: DicomFile) -> tuple[npt.NDArray[Any], bool]:
    """Return the stored values, `[height, width]` or `[height, width, 3]`, and True if they are RGB."""
    try:
        from pydicom.pixels.decoders.base import get_decoder
        from pydicom.uid import UID
    except ModuleNotFoundError as error:
        raise UnreadableImageError("DICOM needs the package pydicom. Run: pip install 'plurum[dicom]'") from error
    pixels, samples = file.frame_bytes(0), file.number(_SAMPLES, 1)
    compressed = file.syntax in ENCAPSULATED
    options: dict[str, Any] = {
        "rows": file.number(_ROWS),
        "columns": file.number(_COLUMNS),
        "samples_per_pixel": samples,
        "photometric_interpretation": file.text(_PHOTOMETRIC),
        "bits_allocated": file.number(_ALLOCATED),
        "bits_stored": file.number(_STORED),
        "pixel_representation": file.number(_SIGNED, 0),
        "number_of_frames": 1,
        "pixel_keyword": "PixelData",
    }
    if samples > 1:
        options["planar_configuration"] = file.number(_PLANAR, 0)
    if file.reader.order == ">":
        options["pixel_vr"] = file.pixel_vr
    try:
        found, about = get_decoder(UID(file.syntax)).as_array(
            encapsulate(pixels) if compressed else pixels + b"\0" * (len(pixels) % 2), index=0, **options
        )
    except (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise UnreadableImageError(f"DICOM: transfer syntax {file.syntax}: the pixel data can't be decoded") from error
    if found.shape != (file.number(_ROWS), file.number(_COLUMNS), 3)[: 2 + (samples > 1)] or found.itemsize > 2:
        raise UnreadableImageError(f"DICOM: transfer syntax {file.syntax}: the pixel data have another shape")
    if samples > 1 and about["photometric_interpretation"] != "RGB":
        raise fault_at(_PHOTOMETRIC, f"can't be converted to RGB with the transfer syntax {file.syntax}")
    return found.astype(found.dtype.newbyteorder("="), copy=False), samples > 1


def _stored(file: DicomFile, pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the stored bits; unused ones may hold overlays, and those of negative numbers their sign."""
    return np.asarray(pixels.view(f"u{pixels.itemsize}") & ((1 << file.number(_STORED)) - 1))


def _scale(pixels: npt.NDArray[Any], bits: int) -> npt.NDArray[np.uint8]:
    """Return unsigned values of this many bits as 8 bits."""
    if bits == 8:
        return np.ascontiguousarray(pixels, np.uint8)
    table = eight_bit_from_shares(np.arange(1 << bits) / ((1 << bits) - 1))
    return np.asarray(table[pixels & ((1 << bits) - 1)])


def _palette(file: DicomFile) -> npt.NDArray[np.uint8]:
    """Return the colour of each possible stored value (PS3.3, C.7.6.3.1.5), uint8 `[values, 3]`."""
    columns, values = [], np.arange(1 << file.number(_STORED), dtype=np.float64)
    for descriptor, data in _PALETTES:
        table = file.values.get(data, b"")
        if not table:
            bits = (*file.reader.numbers(file.values.get(descriptor, b"")), 0, 0, 0)[2]
            table = _expand(file, data + _SEGMENTED, "B" if bits == 8 else "H")
        found, most = _table(file, Lut(file.values.get(descriptor, b""), table), values, descriptor)
        columns.append(eight_bit_from_shares(found / most))
    return np.stack(columns, axis=1)


def _expand(file: DicomFile, tag: int, form: str) -> bytes:
    """Return the entries of a segmented palette (PS3.3, C.7.9.2), 65,536 at most."""
    numbers = file.reader.numbers(file.values.get(tag, b""), form)
    entries: list[int] = []
    place = 0
    while place + 2 < len(numbers) and len(entries) <= 1 << 16:
        kind, count, value = numbers[place : place + 3]
        if kind == 0:
            entries += numbers[place + 2 : place + 2 + count]
            place += 2 + count
        elif kind == 1 and entries:
            entries += np.linspace(entries[-1], value, count + 1)[1:].round().astype(int).tolist()
            place += 3
        else:
            raise fault_at(tag, "indirect segments are not supported")
    return struct.pack(f"{file.reader.order}{len(entries)}{form}", *entries)


def _values(file: DicomFile) -> npt.NDArray[np.float64]:
    """Return the value of each possible stored value, after the modality table, `[values]`."""
    bits = file.number(_STORED)
    values = np.arange(1 << bits, dtype=np.float64)
    if file.number(_SIGNED, 0):
        values[1 << bits - 1 :] -= 1 << bits
    return _modality(file, values)


def _grey_table(file: DicomFile, stored: npt.NDArray[Any], window: WindowRule | None) -> npt.NDArray[np.uint8]:
    """Return the 8-bit value of each possible stored value, uint8 `[values]`."""
    values = _values(file)
    full = (values - values.min()) / max(values.max() - values.min(), 1e-9)
    centres, widths = file.decimals(_CENTRE), file.decimals(_WIDTH)
    if window == FULL:
        shares = full
    elif window is not None:
        shares = shares_from_window(values, window)
    elif _VOI_LUT in file.luts:
        outputs, largest = _table(file, file.luts[_VOI_LUT], values)
        shares = outputs / largest
    elif centres and widths:
        shares = _file_window(file, values, (centres[0], widths[0]))
    else:
        shares = full
        _check_filled(shares, stored, file.number(_STORED))
    table = eight_bit_from_shares(shares)
    return 255 - table if file.text(_PHOTOMETRIC) == "MONOCHROME1" else table


def _check_filled(shares: npt.NDArray[np.float64], stored: npt.NDArray[Any], bits: int) -> None:
    """Check that an image of more than 8 bits without a window would not be nearly constant."""
    if bits <= 8:
        return
    present = np.zeros(len(shares), np.bool_)
    present[stored] = True
    found = shares[present]
    if found.max() - found.min() < _LEAST_FILLED:
        raise fault_at(
            _CENTRE,
            f"is missing, and the values fill less than 1/16 of {bits} bits. Give --window CENTRE,WIDTH or LOW%,HIGH%",
        )


def _modality(file: DicomFile, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    if _MODALITY_LUT in file.luts:
        return _table(file, file.luts[_MODALITY_LUT], values)[0]
    slopes, intercepts = file.decimals(_SLOPE), file.decimals(_INTERCEPT)
    if not slopes:
        return values
    if not slopes[0]:
        raise fault_at(_SLOPE, "expected a number other than 0")
    return values * slopes[0] + (intercepts or (0.0,))[0]


def _file_window(file: DicomFile, values: npt.NDArray[np.float64], window: Window) -> npt.NDArray[np.float64]:
    """Return values by the window of the file, from 0 to 1."""
    function = file.text(_FUNCTION) or "LINEAR"
    if function not in WINDOW_FUNCTIONS:
        raise fault_at(_FUNCTION, f"expected {', '.join(WINDOW_FUNCTIONS)}, got another")
    if not (window[1] >= 1 if function == "LINEAR" else window[1] > 0):
        raise fault_at(_WIDTH, f"expected {'at least 1' if function == 'LINEAR' else 'more than 0'} for {function}")
    return shares_from_window(values, window, function)


def _table(
    file: DicomFile, lut: Lut, values: npt.NDArray[np.float64], tag: int = _LUT_DESCRIPTOR
) -> tuple[npt.NDArray[np.float64], int]:
    """Return the values after a look-up table (PS3.3, C.11.1.1), and the largest possible one.

    Args:
        file: The file.
        lut: The table.
        values: Values before the table.
        tag: Element of the table's descriptor, for messages.
    """
    if len(lut.descriptor) != 6:
        raise fault_at(tag, "expected 3 numbers")
    count, first, bits = file.reader.numbers(lut.descriptor)
    count = count or 1 << 16
    if values.min() < 0 and first >= 1 << 15:
        first -= 1 << 16
    if not 8 <= bits <= 16:
        raise fault_at(tag, f"expected 8 to 16 bits, got {bits}")
    # Some writers pack entries of 8 bits, and pad an odd number.
    packed = len(lut.data) in {count, count + 1} and count > 1
    entries = np.array(file.reader.numbers(lut.data, "B" if packed else "H")[:count], np.float64)
    if len(entries) != count:
        raise fault_at(tag, f"expected {count} entries, got {len(entries)}")
    indices = np.clip(np.floor(values) - first, 0, count - 1).astype(np.int64)
    return entries[indices], (1 << bits) - 1
