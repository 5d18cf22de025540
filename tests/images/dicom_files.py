"""Small DICOM files for tests, with the names of a patient in them."""

from __future__ import annotations

import importlib
import io
from typing import Any

import numpy.typing as npt
import pytest

pydicom: Any = pytest.importorskip("pydicom")
importlib.import_module("pydicom.encaps")

__all__ = ["PATIENT_ID", "PATIENT_NAME", "PLANTED", "STUDY_UID", "dicom", "identifying_values", "pydicom"]

# Planted in files; must not appear elsewhere.
PATIENT_ID, PATIENT_NAME = "QX-7731-PLANTED", "Zebrowska^Planted"
STUDY_UID = "1.2.826.77310001.1"
PLANTED = {
    "PatientName": PATIENT_NAME,
    "PatientBirthDate": "19431107",
    "AccessionNumber": "ACC-PLANTED-5512",
    "InstitutionName": "St Planted Hospital",
    "StudyInstanceUID": STUDY_UID,
    "SeriesInstanceUID": "1.2.826.77310001.2",
    "SOPInstanceUID": "1.2.826.77310001.3",
}
EXPLICIT, CT_IMAGE = "1.2.840.10008.1.2.1", "1.2.840.10008.5.1.4.1.1.2"


def dicom(
    pixels: npt.NDArray[Any],
    *,
    patient: str = PATIENT_ID,
    syntax: str = EXPLICIT,
    encoded: bytes = b"",
    **elements: Any,
) -> bytes:
    """Return a file with these stored values, `[height, width]`, `[height, width, 3]` or `[frames, height, width]`.

    With `encoded`, it holds these compressed pixels instead, and `pixels` state the size.
    """
    from pydicom.dataset import Dataset, FileMetaDataset

    data: Any = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = CT_IMAGE
    data.file_meta.MediaStorageSOPInstanceUID = PLANTED["SOPInstanceUID"]
    data.PatientID = patient
    for name, value in PLANTED.items():
        setattr(data, name, value)
    is_rgb = pixels.ndim == 3 and pixels.shape[-1] == 3
    frames, size = (pixels.shape[0], pixels.shape[1:]) if pixels.ndim == 3 and not is_rgb else (1, pixels.shape[:2])
    data.Rows, data.Columns = size
    data.SamplesPerPixel, data.PhotometricInterpretation = (3, "RGB") if is_rgb else (1, "MONOCHROME2")
    if is_rgb:
        data.PlanarConfiguration = 0
    if frames > 1:
        data.NumberOfFrames = frames
    data.BitsAllocated = data.BitsStored = 8 * pixels.itemsize
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    data.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    data["PixelData"].VR = "OW"
    if encoded:
        data.PixelData = pydicom.encaps.encapsulate([encoded])
        data["PixelData"].VR, data["PixelData"].is_undefined_length = "OB", True
    for name, value in elements.items():
        setattr(data, name, value)
    data.HighBit = data.BitsStored - 1
    file = io.BytesIO()
    pydicom.dcmwrite(file, data, enforce_file_format=True)
    return file.getvalue()


def identifying_values(content: bytes, patient: str = PATIENT_ID) -> list[str]:
    """Return the planted values that appear in `content`; `patient` is the ID."""
    return [value for value in (patient, *PLANTED.values()) if value.encode() in content]
