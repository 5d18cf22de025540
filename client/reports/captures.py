"""Pictures of heat maps as DICOM Secondary Captures (PS3.3, A.8.1), in the study of their image."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from plurum import __version__
from plurum.client.reports.sources import quiet_dicom
from plurum.client.reports.structured_reports import ReportedImage, ReportWriter

__all__ = ["capture_from_picture"]

# As for reports, but another series.
_SERIES_NUMBER = 9902


def capture_from_picture(path: Path, writer: ReportWriter, image: ReportedImage, picture: bytes) -> Any:
    """Return a Secondary Capture of a picture, as a dataset of pydicom.

    Args:
        path: File of the image, for messages.
        writer: Writer of the reports of the same run.
        image: The image that the picture explains, and its prediction.
        picture: PNG of a heat map over the image.

    Raises:
        DataError: the elements of the file make no valid object.
    """
    with quiet_dicom(path):
        from highdicom import UID
        from highdicom.sc import SCImage
        from pydicom import Dataset

        series, number = writer.place(image.source, "OT")
        capture: Any = SCImage.from_ref_dataset(
            ref_dataset=image.source,
            pixel_array=np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")),
            photometric_interpretation="RGB",
            bits_allocated=8,
            coordinate_system="PATIENT",
            patient_orientation=("L", "P"),
            series_instance_uid=series,
            series_number=_SERIES_NUMBER,
            series_description="Plurum heat maps",
            sop_instance_uid=UID(),
            instance_number=number,
            manufacturer="Plurum",
            manufacturer_model_name="Plurum",
            software_versions=__version__,
            specific_character_set="ISO_IR 192",
        )
        # highdicom wants an orientation; the picture may be cropped or stretched, so it states none.
        capture.PatientOrientation = None
        capture.Laterality = ""
        capture.ImageType = ["DERIVED", "SECONDARY"]
        capture.DerivationDescription = f"Grad-CAM map of {image.prediction.label} over the image"
        source = Dataset()
        source.ReferencedSOPClassUID = image.source.SOPClassUID
        source.ReferencedSOPInstanceUID = image.source.SOPInstanceUID
        if image.frame is not None:
            source.ReferencedFrameNumber = image.frame
        capture.SourceImageSequence = [source]
        return capture
