"""Structure of a DICOM image, checked without decoding it: its size, cost and kind.

Compressed pixels must have the size that the elements state, because a decoder allocates what the pixels state.
"""

from __future__ import annotations

import struct

from .dicom_elements import PIXEL_DATA, fault_at
from .dicom_file import ENCAPSULATED, DicomFile, read_dicom, refuse_corrupt
from .dicom_writer import with_only_pixels
from .image_limits import (
    MAX_PIXELS,
    MIN_SIDE,
    Structure,
    TooLargeImageError,
    UnreadableImageError,
    check_work,
    too_large_text,
)
from .jpeg_structure import jpeg_scan, structure_from_scan

__all__ = ["dicom_structure"]

_SAMPLES, _PHOTOMETRIC, _FRAMES, _ROWS, _COLUMNS = 0x00280002, 0x00280004, 0x00280008, 0x00280010, 0x00280011
_ALLOCATED, _STORED, _HIGH, _SIGNED = 0x00280100, 0x00280101, 0x00280102, 0x00280103
# Samples per pixel of the photometric interpretations that are read.
_PHOTOMETRICS = {"MONOCHROME1": 1, "MONOCHROME2": 1, "PALETTE COLOR": 1, "RGB": 3, "YBR_FULL": 3, "YBR_FULL_422": 3}
_COMPRESSED_ONLY = {"YBR_ICT": 3, "YBR_RCT": 3, "YBR_PARTIAL_420": 3, "YBR_PARTIAL_422": 3}
_JPEG, _EXTENDED, _RLE = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.5"
# Each byte pair of RLE makes at most 128 bytes.
_RLE_RATIO = 64
# Pixel visits of decoders other than libjpeg's, in those of libjpeg.
_SLOW = 4
_MAX_SEGMENTS, _MAX_TILES, _MAX_BOXES = 1000, 10_000, 1024
# SOF markers of JPEG, and of JPEG-LS.
_FRAME_HEADERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_GPL = (
    "12-bit JPEG Extended (1.2.840.10008.1.2.4.51) is not supported, because its decoder for Python, "
    "pylibjpeg-libjpeg, is under the GPL. Convert the file"
)


@refuse_corrupt()
def dicom_structure(data: bytes) -> Structure:
    """Return the structure of a DICOM image of one frame.

    Raises:
        TooLargeImageError: the image has more than `MAX_PIXELS`.
        UnreadableImageError: the image is truncated, too costly to decode, one of several frames, or of an unsupported
            kind. The message names the tag or the transfer syntax.
    """
    file = read_dicom(data)
    if file.frames > 1:
        raise fault_at(_FRAMES, f"expected an image of 1 frame, got {file.frames}. Name a frame, as in FILE#frame=0")
    return _structure(file, data)


def _structure(file: DicomFile, data: bytes) -> Structure:
    rows, columns = file.number(_ROWS), file.number(_COLUMNS)
    if rows * columns > MAX_PIXELS:
        raise TooLargeImageError(f"DICOM: Rows and Columns: {too_large_text(columns, rows)}")
    if min(rows, columns) < MIN_SIDE:
        raise UnreadableImageError(
            f"DICOM: Rows (0028,0010) and Columns (0028,0011): expected at least {MIN_SIDE}, got {rows} and {columns}"
        )
    allocated = _check_samples(file)
    pixels = file.frame_bytes(0)
    work = rows * columns * -(-allocated // 8)
    streams: tuple[tuple[tuple[int, int], bytes], ...] = ()
    if file.syntax in ENCAPSULATED:
        work *= _check_compressed(file, pixels, (columns, rows))
        if file.syntax in {_JPEG, _EXTENDED}:
            streams = (((columns, rows), pixels),)
    check_work(work)
    return Structure(
        "DICOM",
        columns,
        rows,
        work + len(data) // 3,
        about=f"DICOM with {ENCAPSULATED.get(file.syntax, 'uncompressed')} pixels",
        turned=bool(streams),
        # A deflated file is inflated once.
        clean=b"" if file.reader.data is data else with_only_pixels(data),
        streams=streams,
        apart=file.syntax in ENCAPSULATED,
    )


def _check_samples(file: DicomFile) -> int:
    """Check the layout of the samples, and return the number of allocated bits."""
    samples, allocated, stored = file.number(_SAMPLES, 1), file.number(_ALLOCATED), file.number(_STORED)
    photometric = file.text(_PHOTOMETRIC)
    known = _PHOTOMETRICS | (_COMPRESSED_ONLY if file.syntax in ENCAPSULATED else {})
    if photometric not in known:
        raise fault_at(_PHOTOMETRIC, f"expected {', '.join(known)}, got another")
    if samples != known[photometric]:
        raise fault_at(_SAMPLES, f"expected {known[photometric]} for {photometric}, got {samples}")
    if allocated not in ((1, 8, 16) if samples == 1 else (8, 16)):
        raise fault_at(_ALLOCATED, f"expected 8 or 16 bits, or 1 of grey, got {allocated}")
    if not 1 <= stored <= allocated:
        raise fault_at(_STORED, f"expected 1 to {allocated}, the allocated bits, got {stored}")
    if (high := file.number(_HIGH, stored - 1)) != stored - 1:
        raise fault_at(_HIGH, f"expected {stored - 1}, one less than BitsStored, got {high}")
    if file.number(_SIGNED, 0) > (samples == 1 and not photometric.startswith("PALETTE")):
        raise fault_at(_SIGNED, f"expected 0{' or 1' * (samples == 1)} for {photometric}")
    return allocated


def _check_compressed(file: DicomFile, pixels: bytes, size: tuple[int, int]) -> int:
    """Check the size that compressed pixels state, and return the visits of each pixel."""
    kind, samples = ENCAPSULATED[file.syntax], file.number(_SAMPLES, 1)
    if file.syntax == _RLE:
        _check_rle(pixels, size[0] * size[1], samples * file.number(_ALLOCATED) // 8)
        return _SLOW * samples
    found = _size_of_jpeg2000(pixels) if kind in {"JPEG 2000", "HTJ2K"} else _size_of_jpeg(pixels)
    if found is None:
        raise UnreadableImageError(f"DICOM: transfer syntax {file.syntax}: the pixel data are not {kind}, or truncated")
    *found_size, found_samples, bits = found
    if (*found_size, found_samples) != (*size, samples):
        raise UnreadableImageError(
            f"DICOM: transfer syntax {file.syntax}: {kind} of {found_size[0]} x {found_size[1]} pixels and "
            f"{found_samples} samples, but Columns, Rows and SamplesPerPixel are {size[0]}, {size[1]} and {samples}"
        )
    if file.syntax == _EXTENDED and bits != 8:
        raise UnreadableImageError(f"DICOM: {_GPL}")
    if bits > file.number(_ALLOCATED):
        raise fault_at(_ALLOCATED, f"expected at least the {bits} bits of the {kind}, got {file.number(_ALLOCATED)}")
    if file.syntax in {_JPEG, _EXTENDED}:
        structure = structure_from_scan(jpeg_scan(pixels))
        return max(1, structure.work // (size[0] * size[1])) * 3
    return _SLOW * samples


def _check_rle(pixels: bytes, count: int, segments: int) -> None:
    header = struct.unpack_from("<16I", pixels)
    if header[0] != segments:
        raise fault_at(PIXEL_DATA, f"expected {segments} RLE segments, got {header[0]}")
    ends = (*header[2 : segments + 1], len(pixels))
    for start, end in zip(header[1 : segments + 1], ends, strict=True):
        if not 64 <= start <= end <= len(pixels) or (end - start) * _RLE_RATIO < count:
            raise fault_at(PIXEL_DATA, f"RLE segments are truncated, or too short for {count:,} pixels")


def _size_of_jpeg(pixels: bytes) -> tuple[int, int, int, int] | None:
    """Return width, height, samples and bits of a JPEG or JPEG-LS; None if it is neither, or has no end."""
    place = 2
    if pixels[:2] != b"\xff\xd8" or b"\xff\xd9" not in pixels[-16:]:
        return None
    for _ in range(_MAX_SEGMENTS):
        mark, kind, length = struct.unpack_from(">BBH", pixels, place)
        if mark != 0xFF or kind == 0xDA:
            return None
        if kind in _FRAME_HEADERS:
            bits, height, width, samples = struct.unpack_from(">BHHB", pixels, place + 4)
            return width, height, samples, bits
        place += 2 + length
    return None


def _size_of_jpeg2000(pixels: bytes) -> tuple[int, int, int, int] | None:
    """Return width, height, samples and bits of a JPEG 2000 codestream; None if it is none, or has no end."""
    # Some writers put the codestream into a JP2 file.
    start = pixels.find(b"\xff\x4f\xff\x51", 0, _MAX_BOXES) if pixels[4:8] == b"jP  " else 0
    if start < 0 or pixels[start : start + 4] != b"\xff\x4f\xff\x51" or b"\xff\xd9" not in pixels[-16:]:
        return None
    right, bottom, left, top, across, down, _, _, samples = struct.unpack_from(">8IH", pixels, start + 8)
    parts = [struct.unpack_from(">BBB", pixels, start + 42 + 3 * index) for index in range(min(samples, 3))]
    tiles = -(-right // max(1, across)) * -(-bottom // max(1, down))
    # Subsampled components, and tiles so small that their headers cost more than their pixels.
    if any(part[1:] != (1, 1) for part in parts) or tiles > _MAX_TILES:
        return None
    return right - left, bottom - top, samples, max(((part[0] & 0x7F) + 1 for part in parts), default=0)
