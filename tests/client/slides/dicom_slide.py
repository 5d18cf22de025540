"""Slides in DICOM files as scanners write them: a file for each level, in one series."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.images.dicom_files import PLANTED, dicom, pydicom

__all__ = ["write_dicom_slide"]

_WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"


def write_dicom_slide(folder: Path, pixels: npt.NDArray[np.uint8], levels: int, microns: float) -> list[Path]:
    """Write a slide of uint8 `[height, width, 3]`, each level half as large as the one before."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"level{number}.dcm" for number in range(levels)]
    for number, path in enumerate(paths):
        _write_level(path, np.ascontiguousarray(pixels[:: 1 << number, :: 1 << number]), number, microns)
    return paths


def _write_level(path: Path, pixels: npt.NDArray[np.uint8], number: int, microns: float, side: int = 256) -> None:
    data: Any = pydicom.dcmread(io.BytesIO(dicom(np.zeros((side, side, 3), np.uint8))))
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = _WHOLE_SLIDE
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"{PLANTED['SOPInstanceUID']}.{number}"
    data.ImageType = (
        ["DERIVED", "PRIMARY", "VOLUME", "RESAMPLED"] if number else ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    )
    data.TotalPixelMatrixRows, data.TotalPixelMatrixColumns = pixels.shape[:2]
    down, across = -(-pixels.shape[0] // side), -(-pixels.shape[1] // side)
    data.NumberOfFrames, data.DimensionOrganizationType = down * across, "TILED_FULL"
    measures, groups, path_item = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    measures.PixelSpacing = [microns / 1000 * (1 << number)] * 2
    groups.PixelMeasuresSequence = [measures]
    data.SharedFunctionalGroupsSequence = [groups]
    path_item.OpticalPathIdentifier = "1"
    data.OpticalPathSequence = [path_item]
    padded = np.pad(pixels, ((0, down * side - pixels.shape[0]), (0, across * side - pixels.shape[1]), (0, 0)))
    data.PixelData = padded.reshape(down, side, across, side, 3).swapaxes(1, 2).tobytes()
    data["PixelData"].VR = "OB"
    pydicom.dcmwrite(path, data, enforce_file_format=True)
