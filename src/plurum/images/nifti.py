"""Recognition of NIfTI files, which hold volumes and are not read."""

from __future__ import annotations

import zlib

__all__ = ["NIFTI_SUFFIXES", "NIFTI_TEXT", "is_nifti"]

NIFTI_SUFFIXES = (".nii", ".nii.gz")
NIFTI_TEXT = "NIfTI is out of scope: save each slice as DICOM, or as PNG or TIFF of 16 bits"
# Bytes of the header of version 1, and compressed bytes that are enough to have them.
_HEADER_BYTES, _COMPRESSED_BYTES = 348, 4096
_GZIP = 31


def is_nifti(data: bytes) -> bool:
    """Return True for a NIfTI file of version 1 or 2, which may be compressed by gzip."""
    if data[:2] == b"\x1f\x8b":
        try:
            data = zlib.decompressobj(_GZIP).decompress(data[:_COMPRESSED_BYTES], _HEADER_BYTES)
        except zlib.error:
            return False
    return data[344:348] in {b"n+1\0", b"ni1\0"} or data[4:8] in {b"n+2\0", b"ni2\0"}
