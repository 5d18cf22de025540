"""Pixels of pydicom's test files: compare them with pydicom's own functions, or see them refused by name.

    python -m plurum.benchmarks.claims.images.dicom

Files come from pydicom's wheel and, if it is installed, from the package pydicom-data. The reference applies
`apply_modality_lut`, `apply_voi` or `apply_windowing`, and `apply_color_lut` to the decoded pixels, and maps the result
to 0 to 255. Plurum maps stored values by a table instead. Both decode with pydicom, so decoders are not compared. Of a
file of several frames, the second one is compared.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from plurum.errors import needs_extra
from plurum.images import UnreadableImageError, open_image
from plurum.images.dicom_file import read_dicom
from plurum.images.dicom_writer import with_only_pixels

__all__ = ["compare", "main", "pydicom_files", "reference"]

# Largest accepted difference, of 255.
_TOLERANCE = 1
# pydicom reads the palettes of these big-endian files as little-endian; the other file has the same pixels.
_TWINS = {
    "OBXXXX1A_expb.dcm": "OBXXXX1A.dcm",
    "OBXXXX1A_expb_2frame.dcm": "OBXXXX1A_2frame.dcm",
    "gdcm-US-ALOKA-16_big.dcm": "gdcm-US-ALOKA-16.dcm",
}


def main() -> None:
    """Print the counts, and the message of each refused file."""
    counts: Counter[str] = Counter()
    for path in pydicom_files():
        outcome, text = compare(path)
        counts[outcome] += 1
        if text and outcome != "without pixels":
            print(f"{path.name}: {outcome}: {text}")
    print(json.dumps(dict(sorted(counts.items()))))


def compare(path: Path) -> tuple[str, str]:
    """Return the outcome for a file, and the message of a refusal or the difference of its pixels.

    Outcomes are `equal`, `equal, multi-frame`, `different`, `refused` and `without pixels`.
    """
    data = path.read_bytes()
    try:
        frame = min(1, read_dicom(data).frames - 1)
        pixels = np.asarray(open_image(with_only_pixels(data, frame)), np.int64)
    except UnreadableImageError as error:
        return "without pixels" if "PixelData (7FE0,0010): is missing" in str(error) else "refused", str(error)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = reference(path, frame)
    if pixels.shape != expected.shape:
        return "different", f"shape {pixels.shape}, expected {expected.shape}"
    if (most := np.abs(pixels - expected).max()) > _TOLERANCE:
        return "different", f"{most:.0f} of 255"
    return "equal, multi-frame" if frame else "equal", ""


def pydicom_files() -> Iterator[Path]:
    """Yield the files of pydicom's wheel and, if it is installed, of the package pydicom-data."""
    with needs_extra("dicom"):
        roots = [Path(str(importlib.import_module("pydicom").__file__)).parent / "data"]
    with contextlib.suppress(ModuleNotFoundError):
        roots += map(Path, importlib.import_module("data_store").__path__)
    for root in roots:
        for path in sorted(root.rglob("*")):
            if path.is_file() and path.read_bytes()[128:132] == b"DICM":
                yield path


def reference(path: Path, frame: int) -> npt.NDArray[np.float64]:
    """Return 8-bit pixels of a frame by pydicom's functions, which are applied to the pixels, not to a table."""
    path = path.with_name(_TWINS.get(path.name, path.name))
    data = importlib.import_module("pydicom").dcmread(path)
    processing: Any = importlib.import_module("pydicom.pixels")
    pixels = processing.pixel_array(data, index=frame)
    if data.PhotometricInterpretation == "PALETTE COLOR":
        pixels = processing.apply_color_lut(pixels, data)
        return np.asarray(np.rint(pixels / np.iinfo(pixels.dtype).max * 255))
    bits = int(data.BitsStored)
    if data.SamplesPerPixel > 1:
        return np.asarray(np.rint(pixels / (2**bits - 1) * 255))
    _lift_groups(data, frame)
    shares = _grey(processing, data, processing.apply_modality_lut(pixels, data), bits)
    inverted = data.PhotometricInterpretation == "MONOCHROME1"
    return np.rint(255 * np.clip(1 - shares if inverted else shares, 0, 1))


def _grey(processing: Any, data: Any, values: npt.NDArray[Any], bits: int) -> npt.NDArray[np.float64]:
    if "VOILUTSequence" in data and data.VOILUTSequence[0].get("LUTData") is not None:
        most = 2 ** data.VOILUTSequence[0].LUTDescriptor[2] - 1
        return np.asarray(processing.apply_voi(values.astype(int), data) / most)
    least, most = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if data.PixelRepresentation else (0, 2**bits - 1)
    if "ModalityLUTSequence" in data:
        least, most = 0, 2 ** data.ModalityLUTSequence[0].LUTDescriptor[2] - 1
    elif "RescaleSlope" in data:
        slope, intercept = float(data.RescaleSlope), float(data.RescaleIntercept)
        least, most = sorted((least * slope + intercept, most * slope + intercept))
    if data.get("WindowCenter") is not None:
        values = processing.apply_windowing(values, data)
    return np.asarray((values - least) / (most - least))


def _lift_groups(data: Any, frame: int) -> None:
    """Copy the values of a frame's functional groups to where pydicom's functions read them."""
    for groups, index in (("SharedFunctionalGroupsSequence", 0), ("PerFrameFunctionalGroupsSequence", frame)):
        for sequence in ("FrameVOILUTSequence", "PixelValueTransformationSequence"):
            if groups in data and sequence in data[groups][index]:
                for element in data[groups][index][sequence][0]:
                    data[element.tag] = element


if __name__ == "__main__":
    main()
